"""`cedm train`: images and pseudo-labels → an EDM diffusion model."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.images.sources import open_source
from pipeline.running.condition import Condition, pseudo_labels_fingerprint
from pipeline.running.run_files import DENOISER, denoiser_file
from pipeline.running.run_folder import (
    TRAINING_IDENTITY,
    as_before,
    choose_run_folder,
    is_first_process,
    opened_run_folder,
    read_settings,
    read_summary,
    run_settings,
    runs_of,
    write_summary,
)
from pipeline.running.trainer_settings import CUDA_GRAPHS
from pipeline.settings.door import program, typed_command
from pipeline.settings.schemas import SharedSettings
from pipeline.settings.words import word
from storage.artifacts import is_whole, read_artifact
from storage.digests import file_digest
from storage.settings import names_in

SHOWN = ("dataset", "network", "training", "optimizer")  # in tables of hyper-parameters
SHOWN_OF_CLUSTERS = ("backbone", "clustering")


def train(settings: SharedSettings) -> float | None:
    """Train a diffusion model, or go on with the unfinished run of the same settings; the last distance, if any."""
    condition = Condition.of(settings)
    source = open_source(settings.dataset, settings.cache_dir)
    labels = condition.pseudo_labels(source)
    whole, source = source, source if labels is None else source.only(labels.ids)
    if settings.sampler.guided_by_label and (labels is None or settings.training.label_dropout == 0):
        expected = "it needs clusters and training.label_dropout above 0, such as 0.1, or another sampler.guide"
        settings.sampler.refuse("guidance", expected)
    inputs = {"dataset": source.fingerprint}
    if source.held_out is not None:
        inputs["held_out"] = source.held_out.fingerprint
    if labels is not None:
        inputs["pseudo_labels"] = pseudo_labels_fingerprint(labels)
    if settings.init_from is not None:
        start = denoiser_file(settings.init_from, "init_from")
        read_artifact(start, "denoiser", mapped=True)  # what is no denoiser may be of any size
        inputs["init_from"] = file_digest(start, settings.cache_dir)
    asked = run_settings(settings, inputs, TRAINING_IDENTITY)
    name = condition.name(labels)

    def choose() -> Path:
        parent = runs_of(settings.dataset.name, f"train-{name}")
        return choose_run_folder(settings.run_dir, parent, asked, settings.overwrite)

    before = None if settings.overwrite else read_settings(choose())
    finished = before is not None and before == as_before(asked, before)
    summary = read_summary(choose(), "train") if finished else None
    if summary is not None and is_whole(choose() / DENOISER, "denoiser"):
        if is_first_process():
            print(f"Nothing to do: this run is finished, its loss is {summary['loss']:.4f}.")
            print(next_steps(choose()))
        return last_distance(summary)

    # Lightning takes seconds to import.
    from datamodules.image_datamodule import ImageDataModule
    from pipeline.evaluation.reference import Extractors
    from pipeline.evaluation.sampling import Sampler
    from pipeline.running.automatic import decided
    from pipeline.running.devices import low_precision_of
    from pipeline.running.fit import hyperparameters
    from pipeline.running.models import ModelSettings, passes_of
    from pipeline.running.processes import as_rank_0, join
    from pipeline.running.training import Training

    machine, folder = join(settings.trainer, choose)
    before = None if settings.overwrite else read_settings(folder)
    settings = as_rank_0(decided(settings, before))
    run = run_settings(settings, inputs, TRAINING_IDENTITY, decided=True)
    data = ImageDataModule(
        source,
        labels,
        resolution=settings.dataset.resolution,
        channels=settings.dataset.channels,
        batch_size=settings.training.batch_size,
        accumulate=passes_of(settings.training, machine.world_size),
        seed=settings.seed,
        num_workers=settings.training.num_workers,
        memory_gb=settings.training.memory_gb,
    )
    if settings.trainer.compile == CUDA_GRAPHS and data.accumulate > 1:
        expected = f"a step of one pass is expected, and here are {data.accumulate}, whose gradients would lie in one "
        expected += "place. Set training.max_batch_per_device=null, or trainer.compile=true"
        settings.trainer.refuse("compile", expected)
    extractors = Extractors(settings.backbone, settings.evaluation.weights, settings.dataset, settings.cache_dir)
    if settings.evaluation.backbone is not None:
        extractors.settings(settings.evaluation.backbone)  # tell of a mistake now, not after the run folder is made
    none = {"C": 0, "Method": "none"} if labels is None else {}
    shown = [getattr(settings, group) for group in (SHOWN if none else (*SHOWN, *SHOWN_OF_CLUSTERS))]
    precision = settings.evaluation.precision
    if precision == "auto":
        precision = low_precision_of(machine.device) or settings.sampler.precision
    training = Training(
        ModelSettings.of(settings).build(data, name),
        data,
        Sampler(replace(settings.sampler.while_training, precision=precision)),
        extractors,
        settings.evaluation,
        settings.trainer,
        machine,
        folder,
        condition,
        name,
        hyperparameters(*shown, conditioning=name, seed=settings.seed) | none,
        settings.loggers,
        names_in(settings.callbacks),
    )
    if machine.rank == 0:
        cost = training.announce()  # before anything is written
        if settings.preset.settings and not settings.confirm:  # images of one's own
            cost.refuse(settings.training.batch_size, settings.preset.name == "laptop")
        elif cost.warning:
            print(cost.warning)
    with opened_run_folder(folder, run, settings.overwrite, machine.rank):
        if machine.rank == 0:
            print(f"run folder  {folder}")
            if len(source) < len(whole):
                print(f"left out    {len(whole) - len(source):,} of {len(whole):,} images, in no cluster (noise=drop)")
        results = training.run(settings.overwrite)
        if machine.rank == 0:
            write_summary(folder, "train", results, inputs)
            print(next_steps(folder))
    return last_distance(results)


def last_distance(summary: dict[str, Any]) -> float | None:
    """What a sweeper minimises; None where no distance was measured."""
    along = summary.get("distances")
    return None if along is None else float(along["kimg_and_distance"][-1][1])


def next_steps(folder: Path) -> str:
    """Where the run lies, and what to run next."""
    grids = sorted((folder / "grids").glob("*.png"))
    tensorboard = shlex.join([str(Path(program()).with_name("tensorboard")), "--logdir", str(folder)])
    watch = "make tensorboard" if Path("Makefile").is_file() else tensorboard
    return (
        f"run folder  {folder}\n"
        f"model       {folder / DENOISER}\n"
        + (f"images      {grids[-1]}\n" if grids else "")
        + (f"distance    {folder / 'distance.png'}\n" if (folder / "distance.png").exists() else "")
        + f"Next: {shlex.join([program(), 'generate', word('ckpt', folder), 'num=64'])}\n"
        f"      {typed_command('evaluate', 'evaluation.backbone=null')} {shlex.quote(word('generated', folder))}"
        + (f"\n      {watch}" if any(folder.glob("events.out.tfevents.*")) else "")
    )
