"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from callbacks.image_grid import image_grid
from datamodules.artifacts import UserError, atomic_path, file_digest, write_json
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.sampler import draw_labels
from pipeline.command import command
from pipeline.embed import device_of
from pipeline.inputs import plain
from pipeline.run_folder import choose_run_folder, open_run_folder, run_settings, write_summary
from pipeline.sampling import Sampler

GRID_ROWS, GRID_COLUMNS = 16, 12


@command
def generate(cfg: DictConfig) -> None:
    ckpt = denoiser_file(Path(str(cfg.ckpt)))
    denoiser = Denoiser.from_pretrained(ckpt).to(device_of(cfg.trainer.accelerator))
    seeds = seeds_of(cfg)
    labels = labels_of(cfg, denoiser, seeds)
    sampler = Sampler(**plain(cfg.sampler))
    if sampler.guidance != 1 and not denoiser.label_dim:
        raise UserError(f"guidance={sampler.guidance}: {ckpt} was trained without clusters. Type guidance=1.")
    inputs = {"denoiser": file_digest(ckpt)}
    settings = run_settings(cfg, inputs, groups=("num", "seeds", "clusters", "format", "sampler"))
    cfg.dataset.name = denoiser.meta.get("dataset", "unknown")
    folder = choose_run_folder(cfg, "generate", settings)
    open_run_folder(folder, settings, cfg.overwrite)

    names = [f"{seed // 1000:05d}/img{seed:08d}.png" for seed in seeds.tolist()]
    if cfg.format == "zip":
        written = write_zip(folder / "images.zip", names, sampler, denoiser, seeds, labels, cfg.batch_size)
    elif cfg.format == "png":
        written = write_folder(folder / "images", names, sampler, denoiser, seeds, labels, cfg.batch_size)
    else:
        raise UserError(f"format={cfg.format}: type format=png or format=zip.")
    write_grid(folder / "grid.png", sampler, denoiser, seeds, labels)
    results = {
        "num_images": len(seeds),
        "images": str(written),
        "steps": sampler.num_steps(denoiser),
        "sampler": {key: value for key, value in plain(cfg.sampler).items() if key != "S_max"},
        "nimg": denoiser.meta.get("nimg"),
    }
    write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(seeds):,})\ngrid        {folder / 'grid.png'}")


def denoiser_file(ckpt: Path) -> Path:
    """The denoiser in a run folder, or the file itself.

    Raises:
        UserError: there is none.
    """
    path = ckpt / "denoiser.safetensors" if ckpt.is_dir() else ckpt
    if not path.is_file():
        raise UserError(
            f"ckpt={ckpt}: there is no {path}. Give a denoiser.safetensors or the folder of a training run, "
            "such as runs/digits/train-temi-40/TIME; `make train` makes one."
        )
    return path


def seeds_of(cfg: DictConfig) -> Tensor:
    """`seeds`, or 0 … num−1."""
    if cfg.seeds is None:
        if not isinstance(cfg.num, int) or cfg.num < 1:
            raise UserError(f"num={cfg.num}: type a number of images, such as num=64.")
        return torch.arange(cfg.num)
    seeds = list(cfg.seeds) if not isinstance(cfg.seeds, int) else [cfg.seeds]
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={cfg.seeds}: type a list of different whole numbers, such as seeds=[3,17].")
    return torch.tensor(seeds)


def labels_of(cfg: DictConfig, denoiser: Denoiser, seeds: Tensor) -> Tensor | None:
    """Label index of each seed [B]: from the training frequencies, uniform, or the clusters asked for in turn."""
    clusters = cfg.clusters
    if not denoiser.label_dim:
        if clusters != "frequencies":
            raise UserError(f"clusters={clusters}: this model was trained without clusters. Leave clusters= out.")
        return None
    assert denoiser.cluster_frequencies is not None
    assert denoiser.cluster_ids is not None
    if clusters == "frequencies":
        return draw_labels(seeds, denoiser.cluster_frequencies)
    if clusters == "uniform":
        return draw_labels(seeds, torch.ones(denoiser.label_dim))
    index = {int(cluster): label for label, cluster in enumerate(denoiser.cluster_ids)}
    wanted = [clusters] if isinstance(clusters, int) else clusters
    unknown = wanted if isinstance(wanted, str) else [cluster for cluster in wanted if cluster not in index]
    if unknown or not wanted:
        raise UserError(
            f"clusters={clusters}: type clusters=frequencies, clusters=uniform, or a list of cluster ids such as "
            f"clusters=[{','.join(map(str, list(index)[:2]))}]; this model knows {len(index)} of them, "
            f"from {min(index)} to {max(index)}."
        )
    chosen = torch.tensor([index[cluster] for cluster in wanted])
    return chosen[torch.arange(len(seeds)) % len(chosen)]


def batches(
    sampler: Sampler, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None, rows: list[int], batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """(row, uint8 image [C, H, W]) for each of `rows`, with a progress bar."""
    with tqdm(total=len(seeds), initial=len(seeds) - len(rows), unit="img", desc="generate", dynamic_ncols=True) as bar:
        for part in torch.tensor(rows, dtype=torch.int64).split(batch_size):
            images = sampler(denoiser, seeds[part], None if labels is None else labels[part]).cpu()
            yield from zip(part.tolist(), images, strict=True)
            bar.update(len(part))


def write_folder(
    folder: Path,
    names: list[str],
    sampler: Sampler,
    denoiser: Denoiser,
    seeds: Tensor,
    labels: Tensor | None,
    batch_size: int,
) -> Path:
    """PNG files and `dataset.json` with the cluster of each; images that are there already are not made again."""
    rows = [row for row, name in enumerate(names) if not (folder / name).exists()]
    for row, image in batches(sampler, denoiser, seeds, labels, rows, batch_size):
        with atomic_path(folder / names[row]) as temporary:
            temporary.write_bytes(png(image))
    write_json(folder / "dataset.json", dataset_json(names, denoiser, labels))
    return folder


def write_zip(
    path: Path,
    names: list[str],
    sampler: Sampler,
    denoiser: Denoiser,
    seeds: Tensor,
    labels: Tensor | None,
    batch_size: int,
) -> Path:
    """One ZIP in EDM's format: the PNG files and `dataset.json`, written whole or not at all."""
    if path.exists():
        return path
    rows = list(range(len(names)))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row, image in batches(sampler, denoiser, seeds, labels, rows, batch_size):
            archive.writestr(names[row], png(image))
        archive.writestr("dataset.json", json.dumps(dataset_json(names, denoiser, labels)))
    return path


def dataset_json(names: list[str], denoiser: Denoiser, labels: Tensor | None) -> dict[str, Any]:
    """EDM's label file; a label is the cluster id, as in the pseudo-labels."""
    if labels is None or denoiser.cluster_ids is None:
        return {"labels": None}
    return {"labels": [[name, int(denoiser.cluster_ids[label])] for name, label in zip(names, labels, strict=True)]}


def png(image: Tensor) -> bytes:
    """A uint8 image [C, H, W] of 1 or 3 channels as a PNG file."""
    pixels = image.permute(1, 2, 0).squeeze(-1) if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "png")
    return buffer.getvalue()


def write_grid(path: Path, sampler: Sampler, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None) -> None:
    """The first images, ordered by cluster where there are clusters."""
    count = min(len(seeds), GRID_ROWS * GRID_COLUMNS)
    columns = min(count, GRID_COLUMNS)
    count -= count % columns
    order = torch.arange(count) if labels is None else torch.argsort(labels[:count], stable=True)
    images = sampler(denoiser, seeds[:count], None if labels is None else labels[:count]).cpu()[order]
    picture = image_grid(images.unflatten(0, (-1, columns)))
    with atomic_path(path) as temporary:
        picture.save(temporary)


if __name__ == "__main__":
    generate()
