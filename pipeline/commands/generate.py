"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from tqdm import tqdm

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.sampler import draw_labels
from pipeline.evaluation.image_output import ImageOutput, check_format
from pipeline.evaluation.rejection import judge_of, keep_confident, num_candidates
from pipeline.evaluation.sampling import Sampler, place, spelled, typed_sampler
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.checks import LARGEST_SEED
from pipeline.settings.command import command
from pipeline.settings.inputs import denoiser_file, typed_head_file
from pipeline.settings.words import is_typed
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import file_stem

WRITERS = 8  # images that are written at a time
MOST_IMAGES = 10**9


@command
def generate(cfg: DictConfig) -> None:
    ckpt = denoiser_file(Path(str(cfg.ckpt)))
    denoiser = Denoiser.from_pretrained(ckpt)
    seeds = seeds_of(cfg)
    labels = labels_of(cfg, denoiser, seeds)
    sampler = typed_sampler(cfg)
    check_guidance(sampler, denoiser, ckpt)
    check_format(cfg.format, denoiser, ckpt)
    judge = judge_of(cfg, denoiser)
    inputs = {"denoiser": file_digest(ckpt)}
    if judge is not None:
        inputs["head"] = file_digest(typed_head_file(Path(str(cfg.head))))
    settings = run_settings(cfg, inputs, ("num", "first_seed", "seeds", "clusters", "keep", "format", "sampler"))
    cfg.dataset.name = file_stem(str(denoiser.meta.get("dataset", "unknown")))  # as the file says, whoever made it
    _, folder = join(cfg, lambda: choose_run_folder(cfg, "generate", settings))
    with side_by_side(cfg) as fabric, opened_run_folder(folder, settings, cfg.overwrite, fabric.global_rank):
        place = folder if judge is None else folder / "candidates"
        output = ImageOutput(place, cfg.format, seeds, cluster_ids_of(denoiser, labels))
        write_images(cfg, fabric, output, sampler, denoiser, labels)
        if not fabric.is_global_zero:
            return
        chosen: dict[str, Any] = {}
        if judge is not None:
            judge.to(fabric.device)
            rows, output, chosen = keep_confident(cfg, folder, judge, output)
            seeds = seeds[rows]
        written, grid = output.finish(), output.write_grid()
        results = {
            "num_images": len(seeds),
            "images": str(written),
            "steps": sampler.num_steps(denoiser.img_resolution),
            "sampler": spelled(cfg.sampler),
            "nimg": denoiser.meta.get("nimg"),
            **chosen,
        }
        write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(seeds):,})\ngrid        {grid}")


def check_guidance(sampler: Sampler, denoiser: Denoiser, ckpt: Path) -> None:
    """Refuse guidance with a model that never learned what it needs."""
    if sampler.guidance == 1:
        return
    if not denoiser.label_dim:
        raise UserError(f"guidance={sampler.guidance}: {ckpt} was trained without clusters. Type guidance=1.")
    if denoiser.meta.get("label_dropout") == 0:
        raise UserError(
            f"guidance={sampler.guidance}: {ckpt} never saw an image without its label. "
            "Type guidance=1, or a model that was trained with training.label_dropout=0.1."
        )


def write_images(
    cfg: DictConfig, fabric: Fabric, output: ImageOutput, sampler: Sampler, denoiser: Denoiser, labels: Tensor | None
) -> None:
    """Generate on all devices, rank r of W the images r, r + W, …, but for those that are there already."""
    place(denoiser, fabric.device, cfg.trainer.compile)
    fabric.barrier()  # rank 0 has opened the run folder
    own = range(fabric.global_rank, len(output.seeds), fabric.world_size)
    missing = [row for row in own if not output.is_there(row)]
    progress = tqdm(
        total=len(own),
        initial=len(own) - len(missing),
        unit="img",
        desc="generate",
        dynamic_ncols=True,
        disable=not fabric.is_global_zero,
    )
    with progress, ThreadPoolExecutor(WRITERS) as writers:  # each file is waited for until it is on the disk
        for rows, images in generated(sampler, denoiser, output.seeds, labels, cfg.batch_size, missing):
            for _ in writers.map(output.write, rows, images):
                progress.update()
    fabric.barrier()


def cluster_ids_of(denoiser: Denoiser, labels: Tensor | None) -> list[int] | None:
    """The cluster id of each label, as in the pseudo-labels; None without clusters."""
    return None if labels is None or denoiser.cluster_ids is None else denoiser.cluster_ids[labels].tolist()


def generated(
    sampler: Sampler, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None, batch_size: int, rows: list[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of the `rows` of seeds and labels, with their uint8 images [B, C, H, W]."""
    for part in torch.tensor(rows, dtype=torch.int64).split(batch_size):
        yield part.tolist(), sampler(denoiser, seeds[part], None if labels is None else labels[part]).cpu()


def seeds_of(cfg: DictConfig) -> Tensor:
    """`seeds`, or `num` from `first_seed` on, and more where not all of them are kept."""
    if cfg.seeds is not None and is_typed("num"):
        raise UserError(f"num={cfg.num} seeds={cfg.seeds}: the seeds already tell how many images. Leave num= out.")
    if cfg.seeds is None:
        if not isinstance(cfg.num, int) or cfg.num < 1:
            raise UserError(f"num={cfg.num}: type a number of images, such as num=64.")
        count = num_candidates(cfg.num, cfg.keep)
        if count > MOST_IMAGES:
            raise UserError(f"num={cfg.num}: at most {MOST_IMAGES:,} images are generated at once.")
        return cfg.first_seed + torch.arange(count)
    seeds = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else [cfg.seeds]
    usable = all(isinstance(seed, int) and 0 <= seed <= LARGEST_SEED for seed in seeds)
    if not seeds or not usable or len(set(seeds)) < len(seeds):
        raise UserError(
            f"seeds={cfg.seeds}: type a list of different whole numbers from 0 to {LARGEST_SEED}, such as seeds=[3,17]."
        )
    return torch.tensor(seeds)


def labels_of(cfg: DictConfig, denoiser: Denoiser, seeds: Tensor) -> Tensor | None:
    """Label index of each seed [B]: from the training frequencies, uniform, or the clusters asked for in turn."""
    clusters = cfg.clusters
    if not denoiser.label_dim:
        if clusters != "frequencies":
            raise UserError(f"clusters={clusters}: this model was trained without clusters. Leave clusters= out.")
        return None
    if denoiser.cluster_frequencies is None or denoiser.cluster_ids is None:
        raise UserError(
            f"ckpt={cfg.get('ckpt', cfg.get('generated'))}: this model has labels, but does not tell which clusters "
            "they are. Set cluster_frequencies and cluster_ids before save_pretrained."
        )
    if clusters == "frequencies":
        return draw_labels(seeds, denoiser.cluster_frequencies)
    if clusters == "uniform":
        return draw_labels(seeds, torch.ones(denoiser.label_dim))
    index = {int(cluster): label for label, cluster in enumerate(denoiser.cluster_ids)}
    wanted = list(clusters) if isinstance(clusters, ListConfig) else [clusters]
    if not wanted or not all(isinstance(cluster, int) and cluster in index for cluster in wanted):
        raise UserError(
            f"clusters={clusters}: type clusters=frequencies, clusters=uniform, or a list of cluster ids such as "
            f"clusters=[{','.join(map(str, list(index)[:2]))}]; this model knows {len(index)} of them, "
            f"from {min(index)} to {max(index)}."
        )
    chosen = torch.tensor([index[cluster] for cluster in wanted])
    return chosen[seeds % len(chosen)]  # by its seed, whichever others were asked for


if __name__ == "__main__":
    generate()
