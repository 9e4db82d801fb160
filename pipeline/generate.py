"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
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
from pipeline.embedding import device_of
from pipeline.inputs import plain
from pipeline.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.sampling import Sampler

GRID_ROWS, GRID_COLUMNS = 16, 12


@command
def generate(cfg: DictConfig) -> None:
    ckpt = denoiser_file(Path(str(cfg.ckpt)))
    denoiser = Denoiser.from_pretrained(ckpt).to(device_of(cfg.trainer.accelerator))
    seeds = seeds_of(cfg)
    labels = labels_of(cfg, denoiser, seeds)
    sampler = Sampler(**plain(cfg.sampler))
    check_guidance(sampler, denoiser, ckpt)
    if cfg.format not in ("png", "zip", "npy"):
        raise UserError(f"format={cfg.format}: type format=png, format=zip or format=npy.")
    if cfg.format != "npy" and denoiser.img_channels not in (1, 3):
        raise UserError(
            f"format={cfg.format}: {ckpt} makes images of {denoiser.img_channels} channels, which PNG files do not "
            "hold. Type format=npy."
        )
    inputs = {"denoiser": file_digest(ckpt)}
    settings = run_settings(cfg, inputs, groups=("num", "seeds", "clusters", "format", "sampler"))
    cfg.dataset.name = denoiser.meta.get("dataset", "unknown")
    folder = choose_run_folder(cfg, "generate", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        written = write_images(cfg, folder, sampler, denoiser, seeds, labels)
        results = {
            "num_images": len(seeds),
            "images": str(written),
            "steps": sampler.num_steps(denoiser),
            "sampler": plain(cfg.sampler),
            "nimg": denoiser.meta.get("nimg"),
        }
        write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(seeds):,})\ngrid        {folder / 'grid.png'}")


def write_images(
    cfg: DictConfig, folder: Path, sampler: Sampler, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None
) -> Path:
    """Generate into a folder, a ZIP or an array, and draw the grid; where the images lie."""
    names = [f"{seed // 1000:05d}/img{seed:08d}.png" for seed in seeds.tolist()]
    label_file = dataset_json(names, denoiser, labels)
    images_of = partial(generated, sampler, denoiser, seeds, labels, cfg.batch_size)
    if cfg.format == "zip":
        written = write_zip(folder / "images.zip", names, label_file, images_of)
    elif cfg.format == "npy":
        written = write_array(folder / "images.npy", label_file, images_of, len(names))
    else:
        written = write_folder(folder / "images", names, label_file, images_of)
    write_grid(folder / "grid.png", read_images(written, names[: GRID_ROWS * GRID_COLUMNS]), labels)
    return written


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


def check_guidance(sampler: Sampler, denoiser: Denoiser, ckpt: Path) -> None:
    """Refuse guidance for a model that cannot do without labels, or that has none."""
    if sampler.guidance != 1 and not denoiser.label_dim:
        raise UserError(f"guidance={sampler.guidance}: {ckpt} was trained without clusters. Type guidance=1.")
    if sampler.guidance != 1 and denoiser.meta.get("label_dropout") == 0:
        raise UserError(
            f"guidance={sampler.guidance}: {ckpt} never saw an image without its label. "
            "Type guidance=1, or train with training.label_dropout=0.1."
        )


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


def generated(
    sampler: Sampler, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None, batch_size: int, rows: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """(row, uint8 image [C, H, W]) for each of the `rows` of seeds and labels, with a progress bar."""
    with tqdm(total=len(seeds), initial=len(seeds) - len(rows), unit="img", desc="generate", dynamic_ncols=True) as bar:
        for part in torch.tensor(rows, dtype=torch.int64).split(batch_size):
            images = sampler(denoiser, seeds[part], None if labels is None else labels[part]).cpu()
            yield from zip(part.tolist(), images, strict=True)
            bar.update(len(part))


ImagesOf = Callable[[list[int]], Iterator[tuple[int, Tensor]]]


def write_folder(folder: Path, names: list[str], label_file: dict[str, Any], images_of: ImagesOf) -> Path:
    """PNG files and `dataset.json` with the cluster of each; images that are there already are not made again."""
    for row, image in images_of([row for row, name in enumerate(names) if not (folder / name).exists()]):
        with atomic_path(folder / names[row]) as temporary:
            temporary.write_bytes(png(image))
    write_json(folder / "dataset.json", label_file)
    return folder


def write_zip(path: Path, names: list[str], label_file: dict[str, Any], images_of: ImagesOf) -> Path:
    """One ZIP in EDM's format: the PNG files and `dataset.json`, written whole or not at all."""
    if path.exists():
        return path
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row, image in images_of(list(range(len(names)))):
            archive.writestr(names[row], png(image))
        archive.writestr("dataset.json", json.dumps(label_file))
    return path


def write_array(path: Path, label_file: dict[str, Any], images_of: ImagesOf, count: int) -> Path:
    """One array, uint8 [N, H, W, C], of any number of channels, written whole or not at all; `labels.npy` beside it."""
    if not path.exists():
        images = torch.stack([image for _, image in images_of(list(range(count)))])  # [N, C, H, W]
        with atomic_path(path) as temporary:
            np.save(temporary, images.permute(0, 2, 3, 1).numpy())
        if label_file["labels"] is not None:
            with atomic_path(path.with_name("labels.npy")) as temporary:
                np.save(temporary, np.array([label for _, label in label_file["labels"]]))
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


def read_images(written: Path, names: list[str]) -> Tensor:
    """The images that were written under these names: uint8 [B, C, H, W]."""

    def pixels(stream: Path | IO[bytes]) -> Tensor:
        image = torch.from_numpy(np.array(Image.open(stream)))  # [H, W] or [H, W, C]
        return image.unsqueeze(0) if image.ndim == 2 else image.permute(2, 0, 1)

    if written.suffix == ".npy":
        images = np.load(written, mmap_mode="r")[: len(names)]  # [B, H, W, C]
        return torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    if written.is_dir():
        return torch.stack([pixels(written / name) for name in names])
    with zipfile.ZipFile(written) as archive:
        return torch.stack([pixels(archive.open(name)) for name in names])


def write_grid(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """As many of the images [B, C, H, W] as fill whole rows, ordered by cluster where there are clusters."""
    columns = min(len(images), GRID_COLUMNS)
    count = len(images) // columns * columns
    order = torch.arange(count) if labels is None else torch.argsort(labels[:count], stable=True)
    picture = image_grid(images[order].unflatten(0, (-1, columns)))
    with atomic_path(path) as temporary:
        picture.save(temporary)


if __name__ == "__main__":
    generate()
