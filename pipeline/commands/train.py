"""`cedm train`: images and pseudo-labels → an EDM diffusion model."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig

from callbacks.curve import draw_curves
from callbacks.frechet import FrechetDistance
from callbacks.sample_grid import SampleGrid
from callbacks.schedule import EveryKimg
from callbacks.snapshots import DenoiserFile, Snapshots
from callbacks.throughput import ImageProgressBar, Throughput
from datamodules.image_datamodule import ImageBatch, ImageDataModule
from datamodules.images.images import ImageStore
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.diffusion.denoiser import Denoiser, build_denoiser
from lightning_modules.edm_module import EDMModule
from pipeline.evaluation.reference import extractor_settings, frechet_extractor, reference_statistics
from pipeline.evaluation.sampling import Sampler, spelled
from pipeline.running.cost import measure_cost
from pipeline.running.fit import fit
from pipeline.running.processes import Machine, join
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, read_summary, run_settings, write_summary
from pipeline.running.trainer_settings import TrainerSettings
from pipeline.settings.command import command, program
from pipeline.settings.inputs import denoiser_file, plain, pseudo_labels_fingerprint, pseudo_labels_of, source_of
from storage.digests import file_digest
from storage.errors import UserError

AUGMENT_DIM = 9
LARGEST_IN_PIXELS = 64
GROUPS = (
    "dataset", "conditioning", "network", "training", "sampler", "evaluation", "trainer", "init_from", "seed"
)  # fmt: skip
NOT_OF_THE_MODULE = ("max_batch_per_device", "duration_kimg", "num_workers", "memory_gb")


@command
def train(cfg: DictConfig) -> None:
    source = source_of(cfg)
    labels = pseudo_labels_of(cfg, source)
    inputs = {"dataset": source.fingerprint}
    if labels is not None:
        inputs["pseudo_labels"] = str(pseudo_labels_fingerprint(labels))
    if cfg.init_from is not None:
        inputs["init_from"] = file_digest(denoiser_file(Path(str(cfg.init_from)), "init_from"), cfg.cache_dir)
    settings = run_settings(cfg, inputs, GROUPS)
    devices = TrainerSettings(**plain(cfg.trainer))
    machine, folder = join(devices, lambda: choose_run_folder(cfg, f"train-{groups_name(cfg, labels)}", settings))
    summary = None if cfg.overwrite else read_summary(folder, "train")
    if summary is not None and model_file(cfg, folder).is_whole():
        if machine.rank == 0:
            print(f"Nothing to do: this run is finished, its loss is {summary['loss']:.4f}.\n{next_steps(folder)}")
        return
    training = cfg.training
    accumulate = accumulation(training.batch_size, machine.world_size, training.max_batch_per_device)
    data = ImageDataModule(
        source,
        labels,
        resolution=cfg.dataset.resolution,
        channels=cfg.dataset.channels,
        batch_size=training.batch_size,
        accumulate=accumulate,
        seed=cfg.seed,
        num_workers=training.num_workers,
        memory_gb=training.memory_gb,
    )
    module = build_module(cfg, data, source)
    if cfg.evaluation.backbone is not None:
        extractor_settings(cfg, cfg.evaluation.backbone)  # tell of a mistake now, not after the run folder is made
    sampler = Sampler(**plain(cfg.sampler))
    with opened_run_folder(folder, settings, cfg.overwrite, machine.rank):
        if machine.rank == 0:
            print(f"run folder  {folder}")
        run(cfg, data, module, sampler, inputs, machine, folder)


def run(
    cfg: DictConfig,
    data: ImageDataModule,
    module: EDMModule,
    sampler: Sampler,
    inputs: Mapping[str, str],
    machine: Machine,
    folder: Path,
) -> None:
    """Say what it will cost, train under the watchers' eyes, sum up."""
    data.setup()
    assert data.store is not None
    batch_size, accumulate = data.batch_size, data.accumulate
    total_images = batch_size * max(1, round(cfg.training.duration_kimg * 1000 / batch_size))
    if machine.rank == 0:
        announce(cfg, module, data, data.store, machine, total_images)
    callbacks, distance = watchers(cfg, data, data.store, sampler, folder, machine, total_images)

    def finish(trainer: Trainer) -> None:
        """What the last step leaves to do, where it was stopped before that or a file was lost since."""
        if distance is not None:
            distance.measure_if_missing(trainer, module)
        if trainer.is_global_zero and not model_file(cfg, folder).is_whole():
            model_file(cfg, folder).write(module)

    trainer = fit(
        cfg,
        folder,
        module,
        data,
        callbacks,
        max_steps=total_images // batch_size,
        precision=cfg.trainer.precision,
        outcomes=("train/loss",) if distance is None else (distance.name, "train/loss"),
        accumulate=accumulate,
        log_every_steps=max(1, round(cfg.evaluation.log_every_kimg * 1000 / batch_size)),
        afterwards=finish,
    )
    if trainer.is_global_zero:
        results: dict[str, Any] = {
            "nimg": total_images,
            "loss": float(module.recent_loss),
            "denoiser": str(folder / "denoiser.safetensors"),
            "batch_size": batch_size,
            "parameters": sum(p.numel() for p in module.denoiser.parameters()),
        }
        if distance is not None and distance.history:
            results[distance.name] = distance.history[-1][1]
            title = (
                f"{data.source.name}, {groups_name(cfg, data.pseudo_labels)}: {distance.num_images:,} generated images"
            )
            curve = {"": distance.history}
            draw_curves(folder / "distance.png", curve, "kimg seen", f"Fréchet distance ({distance.name})", title)
            results["distances"] = {"name": distance.name, "kimg_and_distance": distance.history, **distance.protocol}
        write_summary(folder, "train", results, inputs)
        print(next_steps(folder))


def groups_name(cfg: DictConfig, labels: PseudoLabels | None) -> str:
    """`none`, `temi-40`, `assignments-100` …: what the model is conditioned on, for the run folder's name."""
    if labels is None:
        return "none"
    return f"{'assignments' if cfg.assignments is not None else cfg.clustering.method}-{labels.num_clusters}"


def accumulation(batch_size: int, world_size: int, max_batch_per_device: int | None) -> int:
    """The fewest passes that an optimizer step needs.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    if batch_size % world_size:
        raise UserError(
            f"training.batch_size={batch_size} cannot be shared by {world_size} devices. Type another trainer.devices, "
            f"or training.batch_size={max(1, round(batch_size / world_size)) * world_size}."
        )
    share = batch_size // world_size
    largest = min(share, max_batch_per_device or share)
    if largest < 1:
        raise UserError(f"training.max_batch_per_device={max_batch_per_device}: at least one image is needed.")
    passes = next(passes for passes in range(1, share + 1) if share % passes == 0 and share // passes <= largest)
    if 4 * (share // passes) < largest:
        nearest = -(-share // largest) * largest * world_size
        raise UserError(
            f"training.batch_size={batch_size}: {share} images on each device are no multiple of a number near "
            f"training.max_batch_per_device={largest}. Type training.batch_size={nearest}."
        )
    return passes


def build_module(cfg: DictConfig, data: ImageDataModule, source: ImageSource) -> EDMModule:
    """The EDM module: a fresh denoiser, or one that starts from the weights in `init_from`."""
    torch.manual_seed(cfg.seed)
    try:
        denoiser = build_denoiser(
            plain(cfg.network),
            img_resolution=cfg.dataset.resolution,
            img_channels=cfg.dataset.channels,
            label_dim=data.num_classes,
            augment_dim=AUGMENT_DIM,
        )
    except ValueError as error:
        raise UserError(f"network: {error}") from error
    labels = data.pseudo_labels
    denoiser.cluster_frequencies, denoiser.cluster_ids = data.class_frequencies, data.cluster_ids
    denoiser.meta = {
        "dataset": source.name,
        "conditioning": groups_name(cfg, labels),
        "num_clusters": labels.num_clusters if labels is not None else 0,
        "label_dropout": cfg.training.label_dropout,
        "channels_last": cfg.trainer.channels_last,
    }
    if cfg.init_from is not None:
        start_from(denoiser, denoiser_file(Path(str(cfg.init_from)), "init_from"))
    check_halflives(cfg.training.ema_halflife_kimg, list(cfg.training.extra_ema_halflife_kimg))
    hparams = {key: value for key, value in plain(cfg.training).items() if key not in NOT_OF_THE_MODULE}
    module = EDMModule(denoiser, seed=cfg.seed, **hparams)
    if cfg.trainer.channels_last:
        module.denoiser.to(memory_format=torch.channels_last)
        module.emas.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        module.denoiser.compile()  # in place: names of weights, and so the snapshots, stay as they are
    return module


def check_halflives(first: float, others: list[float]) -> None:
    """Refuse averages that are none, or the same twice: they name files."""
    usable = all(isinstance(kimg, (int, float)) and kimg > 0 for kimg in others)
    if not usable or len({first, *others}) <= len(others):
        raise UserError(
            f"training.extra_ema_halflife_kimg={others}: type numbers above 0 that differ from one another and from "
            f"training.ema_halflife_kimg={first}, such as training.extra_ema_halflife_kimg=[50,2000]."
        )


def start_from(denoiser: Denoiser, path: Path) -> None:
    """Copy weights and sigma_data from another denoiser.

    Weights for the labels start anew where these stand for other clusters, those for augmentation where there was none.

    Raises:
        UserError: the file is no denoiser, or of another network.
    """
    other = Denoiser.from_pretrained(path)
    own, given = denoiser.state_dict(), other.state_dict()
    anew = ["map_augment"] if not other.augment_dim else []
    if cluster_ids_of(denoiser) != cluster_ids_of(other):
        anew.append("map_label")
    own = {name: weight for name, weight in own.items() if not any(part in name for part in anew)}
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    missing = [name for name in own if name not in fitting]
    if missing:
        raise UserError(
            f"init_from={path}: its network is another one ({other.settings} for {other.img_channels} channels of "
            f"{other.img_resolution}×{other.img_resolution} pixels); {missing[0]} does not fit. "
            "Choose the same network= and dataset.resolution=."
        )
    denoiser.load_state_dict(fitting, strict=False)
    denoiser.sigma_data = other.sigma_data


def cluster_ids_of(denoiser: Denoiser) -> list[int] | None:
    """The cluster that each label stands for; None without labels."""
    return None if denoiser.cluster_ids is None else denoiser.cluster_ids.tolist()


def announce(
    cfg: DictConfig, module: EDMModule, data: ImageDataModule, store: ImageStore, machine: Machine, images: int
) -> None:
    """Say what will be trained, on what, and what it will cost, before it starts."""
    parameters = sum(p.numel() for p in module.denoiser.parameters()) / 1e6
    groups = f"{data.num_classes} clusters" if data.num_classes else "no condition"
    if not any(getattr(part, "num_heads", 0) for part in module.denoiser.modules()):
        groups += ", no attention"
    share = data.batch_size // machine.world_size // data.accumulate
    print(
        f"data        {store.description}\n"
        f"network     {cfg.network.architecture}, {parameters:.2f} M parameters, {groups}\n"
        f"batch       {data.batch_size} = {machine} × {share} images "
        f"× {data.accumulate} accumulated, {cfg.trainer.precision}"
    )
    if cfg.dataset.resolution > LARGEST_IN_PIXELS:
        print(
            f"Warning: EDM in pixels is meant for images of up to {LARGEST_IN_PIXELS}×{LARGEST_IN_PIXELS}; at "
            f"{cfg.dataset.resolution}×{cfg.dataset.resolution} its noise levels are too low and a step costs "
            f"{(cfg.dataset.resolution / LARGEST_IN_PIXELS) ** 2:.0f} times as much. "
            f"Type dataset.resolution={LARGEST_IN_PIXELS}."
        )
    batch = ImageBatch(*(field[:share] for field in next(iter(data.train_dataloader()))))
    cost = measure_cost(module, batch, machine.device, machine.world_size, images, cfg.trainer.precision)
    print(f"cost        {cost}")
    if cost.warning:
        print(cost.warning)


def watchers(
    cfg: DictConfig,
    data: ImageDataModule,
    store: ImageStore,
    sampler: Sampler,
    folder: Path,
    machine: Machine,
    total_images: int,
) -> tuple[list[Callback], FrechetDistance | None]:
    """The callbacks of a training, and among them the one that measures distances."""
    evaluation = cfg.evaluation
    callbacks: list[Callback] = [
        ImageProgressBar(data.batch_size // data.accumulate, total_images, "EDM"),
        Throughput(evaluation.log_every_kimg),
        SampleGrid(sampler, folder / "grids", evaluation.grid_every_kimg, batch_size=evaluation.batch_size),
    ]
    found = frechet_extractor(cfg, say=print if machine.rank == 0 else lambda _: None)
    distance = None
    if found is not None:
        name, extractor = found
        reference = reference_statistics(cfg, store, extractor, machine.device)
        distance = FrechetDistance(
            name,
            extractor,
            reference,
            sampler,
            evaluation.every_kimg,
            evaluation.num_images,
            evaluation.batch_size,
            {
                "steps": sampler.num_steps(cfg.dataset.resolution),
                "sampler": spelled(cfg.sampler),
                "labels": "drawn from the clusters' frequencies" if data.num_classes else "none",
            },
        )
        callbacks.append(distance)
    callbacks += [
        model_file(cfg, folder),
        Snapshots(folder / "snapshots", EveryKimg(evaluation.snapshot_every_kimg), evaluation.keep_snapshots),
    ]
    return callbacks, distance


def model_file(cfg: DictConfig, folder: Path) -> DenoiserFile:
    """What writes the model into the run folder."""
    every_kimg, meta = cfg.evaluation.snapshot_every_kimg, {"sampler": plain(cfg.sampler)}
    return DenoiserFile(folder / "denoiser.safetensors", every_kimg, meta)


def next_steps(folder: Path) -> str:
    """Where the run lies, and what to type now."""
    grids = sorted((folder / "grids").glob("*.png"))
    return (
        f"run folder  {folder}\n"
        f"model       {folder / 'denoiser.safetensors'}\n"
        + (f"images      {grids[-1]}\n" if grids else "")
        + (f"distance    {folder / 'distance.png'}\n" if (folder / "distance.png").exists() else "")
        + f"Next: {shlex.join([program(), 'generate', f'ckpt={folder}', 'num=64'])}\n"
        f"      make generate CKPT={shlex.quote(str(folder))}\n"
        f"      make evaluate CKPT={shlex.quote(str(folder))}\n"
        "      make tensorboard"
    )


if __name__ == "__main__":
    train()
