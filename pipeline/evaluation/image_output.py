"""How generated images are written: a folder of PNG files, EDM's ZIP format, or one array of any number of channels.

Each image is first a file of its own in a folder, so that several devices can write and a stopped run loses nothing;
where one file is wanted, the folder is packed into it in the end.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid
from lightning_modules.diffusion.denoiser import Denoiser
from storage.errors import UserError
from storage.files import atomic_path, write_json

GRID_ROWS, GRID_COLUMNS = 16, 12


@dataclass(frozen=True)
class ImageOutput:
    """The images of one run, by their row.

    Attributes:
        folder: of the run.
        format: png, zip or npy.
        seeds: of the images, int64 [N]; they name the files.
        cluster_ids: of each image, for EDM's label file; None without clusters.
    """

    folder: Path
    format: str
    seeds: Tensor
    cluster_ids: list[int] | None

    @property
    def images(self) -> Path:
        """The folder of single images."""
        return self.folder / "images"

    @property
    def written(self) -> Path:
        """What is there in the end."""
        return self.images if self.format == "png" else self.folder / f"images.{self.format}"

    def name(self, row: int) -> str:
        """The image's path below the folder, or inside the ZIP."""
        seed = int(self.seeds[row])
        return f"{seed // 1000:05d}/img{seed:08d}.{'npy' if self.format == 'npy' else 'png'}"

    def is_there(self, row: int) -> bool:
        """Whether the image is written already."""
        return (self.format != "png" and self.written.exists()) or (self.images / self.name(row)).exists()

    def write(self, row: int, image: Tensor) -> None:
        """Write one image, uint8 [C, H, W], whole or not at all."""
        with atomic_path(self.images / self.name(row)) as temporary:
            temporary.write_bytes(encoded(image, self.format))

    def finish(self) -> Path:
        """With all images written: the labels beside them, and one file where one is wanted. What is there then."""
        names = [self.name(row) for row in range(len(self.seeds))]
        labels = (
            None if self.cluster_ids is None else [list(pair) for pair in zip(names, self.cluster_ids, strict=True)]
        )
        if self.format == "png":
            write_json(self.images / "dataset.json", {"labels": labels})
            return self.written
        if not self.written.exists():
            if self.format == "zip":
                self._pack_zip(names, {"labels": labels})
            else:
                self._pack_array(names)
        shutil.rmtree(self.images, ignore_errors=True)
        return self.written

    def _pack_zip(self, names: Sequence[str], label_file: dict[str, Any]) -> None:
        with atomic_path(self.written) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                archive.write(self.images / name, name)
            archive.writestr("dataset.json", json.dumps(label_file))

    def _pack_array(self, names: Sequence[str]) -> None:
        """One array, uint8 [N, H, W, C], and `labels.npy` beside it."""
        if self.cluster_ids is not None:
            with atomic_path(self.folder / "labels.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.array(self.cluster_ids))
        first = np.load(self.images / names[0])
        header = {"descr": first.dtype.str, "fortran_order": False, "shape": (len(names), *first.shape)}
        with atomic_path(self.written) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for name in names:  # written, not mapped: a full disk is an error then, not the end of the process
                file.write(np.load(self.images / name).tobytes())

    def first(self, count: int) -> Tensor:
        """The first images that were written, uint8 [count or N, C, H, W]."""
        names = [self.name(row) for row in range(min(count, len(self.seeds)))]
        if self.format == "npy":
            images = np.load(self.written, mmap_mode="r")[: len(names)]  # [B, H, W, C]
            return torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
        if self.format == "png":
            return torch.stack([decoded(Image.open(self.images / name)) for name in names])
        with zipfile.ZipFile(self.written) as archive:
            return torch.stack([decoded(Image.open(archive.open(name))) for name in names])

    def write_grid(self) -> Path:
        """Draw as many of the first images as fill whole rows; with clusters in their order, and named by row."""
        images = self.first(GRID_ROWS * GRID_COLUMNS)
        columns = min(len(images), GRID_COLUMNS)
        count = len(images) // columns * columns
        order, names = torch.arange(count), None
        if self.cluster_ids is not None:
            clusters, order = torch.tensor(self.cluster_ids[:count]).sort(stable=True)
            names = [row_name(row[0], row[-1]) for row in clusters.view(-1, columns).tolist()]
        title = "" if count == len(self.seeds) else f"{count} of {len(self.seeds):,} images"
        path = self.folder / "grid.png"
        with atomic_path(path) as temporary:
            image_grid(images[order].unflatten(0, (-1, columns)), names, title).save(temporary)
        return path


def row_name(first: int, last: int) -> str:
    """What to call a row of a grid that runs from one cluster to another."""
    return f"cluster {first}" if first == last else f"clusters {first}–{last}"


def check_channels(chosen: str, denoiser: Denoiser, ckpt: Path) -> None:
    """Raise a `UserError` for a format that cannot hold the model's images."""
    if chosen != "npy" and denoiser.img_channels not in (1, 3):
        raise UserError(
            f"format={chosen}: {ckpt} makes images of {denoiser.img_channels} channels, which PNG files do not "
            "hold. Set format=npy."
        )


def encoded(image: Tensor, chosen: str) -> bytes:
    """A uint8 image [C, H, W] as the bytes of a PNG file, or of an array [H, W, C]."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    buffer = BytesIO()
    if chosen == "npy":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def decoded(image: Image.Image) -> Tensor:
    """The pixels of a PNG file, uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
