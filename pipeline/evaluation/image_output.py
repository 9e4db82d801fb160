"""How generated images are written: a folder of PNG files, EDM's ZIP format, or one array of any number of channels.

Each image is first a file of its own in a folder, so that several devices can write and a stopped run loses nothing;
where one file is wanted, the folder is packed into it in the end.
"""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid, row_name
from storage.files import atomic_path, write_json

GRID_ROWS, GRID_COLUMNS = 16, 12


@dataclass(frozen=True)
class ImageOutput:
    """The images of one run, by their row."""

    folder: Path  # of the run
    format: str  # png, zip or npy
    seeds: Tensor  # of the images, int64 [N]; they name the files
    cluster_ids: list[int] | None  # of each image, for EDM's label file; None without clusters
    cluster_names: Mapping[int, str] = field(default_factory=dict)  # of those that have one

    @property
    def images(self) -> Path:
        """The folder of single images."""
        return self.folder / "images"

    @property
    def written(self) -> Path:
        """What is there in the end."""
        return self.images if self.format == "png" else self.folder / f"images.{self.format}"

    @property
    def is_packed(self) -> bool:
        """Whether the single images are in one file already."""
        return self.format != "png" and self.written.exists()

    def name(self, row: int) -> str:
        """The image's path below the folder, or inside the ZIP."""
        seed = int(self.seeds[row])
        return f"{seed // 1000:05d}/img{seed:08d}.{'npy' if self.format == 'npy' else 'png'}"

    def is_there(self, row: int) -> bool:
        """Whether the image is written already."""
        return self.is_packed or (self.images / self.name(row)).exists()

    def write(self, row: int, image: Tensor) -> None:
        """Write one image, uint8 [C, H, W], whole or not at all."""
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        with atomic_path(self.images / self.name(row)) as temporary, temporary.open("wb") as file:
            if self.format == "npy":
                np.save(file, pixels)
            else:
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "png")

    def read(self, row: int) -> Tensor:
        """One image that is not packed yet, uint8 [C, H, W]."""
        path = self.images / self.name(row)
        pixels = np.load(path) if self.format == "npy" else np.array(Image.open(path))  # [H, W] or [H, W, C]
        return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)

    def finish(self) -> tuple[Path, Path]:
        """With all images written: the labels beside them, one file where one is wanted, and a grid to look at.

        Returns:
            Where the images are, and the grid.
        """
        grid = self.folder / "grid.png"
        names = [self.name(row) for row in range(len(self.seeds))]
        if not self.is_packed:
            self._draw_grid(grid)
            labels = None if self.cluster_ids is None else list(zip(names, self.cluster_ids, strict=True))
            if self.format == "png":
                write_json(self.images / "dataset.json", {"labels": labels})
            elif self.format == "zip":
                with atomic_path(self.written) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                    for name in names:
                        archive.write(self.images / name, name)
                    archive.writestr("dataset.json", json.dumps({"labels": labels}))
            else:
                self._pack_array(names)
        if self.format != "png":
            self._remove_single_images(names)
        return self.written, grid

    def _remove_single_images(self, names: list[str]) -> None:
        """Remove what `write` wrote, and the folders of it, unless something else lies in there."""
        own = [self.images / name for name in (*names, "dataset.json")]
        for file in own:
            file.unlink(missing_ok=True)
        for folder in sorted({file.parent for file in own}, reverse=True):
            with suppress(OSError):
                folder.rmdir()

    def _pack_array(self, names: list[str]) -> None:
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

    def _draw_grid(self, path: Path) -> None:
        """As many of the first images as fill whole rows; with clusters in their order, and named by row."""
        columns = min(len(self.seeds), GRID_COLUMNS)
        count = min(len(self.seeds) // columns, GRID_ROWS) * columns
        order, names = torch.arange(count), None
        if self.cluster_ids is not None:
            clusters, order = torch.tensor(self.cluster_ids[:count]).sort(stable=True)
            ends = clusters.view(-1, columns)[:, [0, -1]].tolist()
            names = [row_name(a, self.cluster_names) if a == b else f"clusters {a}–{b}" for a, b in ends]
        title = "" if count == len(self.seeds) else f"{count} of {len(self.seeds):,} images"
        images = torch.stack([self.read(row) for row in order.tolist()]).unflatten(0, (-1, columns))
        with atomic_path(path) as temporary:
            image_grid(images, names, title).save(temporary)
