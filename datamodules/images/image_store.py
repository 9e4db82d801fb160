"""A data set's images at one size: decoded once, into a file of the cache that processes share, or when asked for."""

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
from torch import Tensor

from datamodules.images.decoding import each_row
from datamodules.images.images import decode
from datamodules.images.sources import ImageSource
from storage.artifacts import entry_path, make_once
from storage.errors import UserError, disk_is_full
from storage.fingerprints import file_stem, fingerprint

KIND = "packed-images"

log = logging.getLogger(__name__)


class ImageStore:
    """The images of a source at one size, by index.

    Args:
        source: where the images come from.
        resolution, channels: the size of every image, [channels, resolution, resolution].
        memory_gb: decode them once when they need no more than this, else each when it is asked for.
    """

    def __init__(self, source: ImageSource, resolution: int, channels: int, memory_gb: float = 8) -> None:
        self.source, self.resolution, self.channels = source, resolution, channels
        self._packed = packed_images(source, resolution, channels, memory_gb)
        self.in_memory = self._packed is not None
        size_gb = gigabytes(source, resolution, channels)
        where = f"streamed from {source.kind}, over memory_gb={memory_gb:g}"
        if self._packed is not None:
            where = "in memory" if self._packed.file is None else f"in {self._packed.file}"
        self.description = f"{len(source):,} images of {resolution}x{resolution}x{channels} ({size_gb:.2f} GB) {where}"

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Tensor) -> Tensor:
        """Images `indices` [B] as uint8 [B, C, R, R]."""
        if self._packed is not None:
            return self._packed.images[self._packed.rows[indices]]
        images = [decode(self.source, index, self.resolution, self.channels) for index in indices.tolist()]
        return torch.stack(images)


class Packed(NamedTuple):
    """Decoded images."""

    images: Tensor  # uint8 [N, C, R, R], of the source or of all that it is a part of
    rows: Tensor  # int64 [n], the places of the source's images in there
    file: Path | None  # that they are mapped from; None: this process holds them


def packed_images(source: ImageSource, resolution: int, channels: int, memory_gb: float) -> Packed | None:
    """The images of a source, out of the file of the undivided one, so that all its parts share one.

    None where they need more than `memory_gb`. Where the undivided source needs more, or has an image that cannot be
    decoded and is not in this part, the part gets a file of its own.

    Raises:
        UserError: an image cannot be decoded.
    """
    whole = source.undivided
    if whole is not source and gigabytes(whole, resolution, channels) <= memory_gb:
        with suppress(UserError):
            images, file = packed_once(whole, resolution, channels)
            return Packed(images, source.places, file)
    if gigabytes(source, resolution, channels) > memory_gb:
        return None
    images, file = packed_once(source, resolution, channels)
    return Packed(images, torch.arange(len(source)), file)


def gigabytes(source: ImageSource, resolution: int, channels: int) -> float:
    """What its decoded images need."""
    return len(source) * channels * resolution**2 / 1e9


def packed_once(source: ImageSource, resolution: int, channels: int) -> tuple[Tensor, Path | None]:
    """All images of a source [N, C, R, R] and their file in its cache, made by one process where there is none.

    Without a cache, or with one that takes no more, this process decodes and holds its own.
    """
    decoded = partial(decode_all, source, resolution, channels)
    if source.cache_dir is None:
        return decoded(), None
    made_from = {
        "source": source.images_fingerprint,
        "num_images": len(source),
        "resolution": resolution,
        "channels": channels,
        "fit": source.fit,
        "pillow": PIL.__version__,
    }
    stem = file_stem(source.name, f"{resolution}x{resolution}x{channels}", fingerprint(made_from))
    made: list[Tensor] = []

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        made.append(decoded())
        return {"images": made[0]}, made_from

    try:
        path = entry_path(source.cache_dir / "packed-images" / f"{stem}.safetensors", KIND, made_from)
        return make_once(path, KIND, make, mapped=True).tensors["images"], path
    except (OSError, UserError) as error:
        if not isinstance(error, PermissionError) and not disk_is_full(error):
            raise
        log.warning("The decoded images cannot be kept in the cache, so each process holds its own: %s", error)
        return made[0] if made else decoded(), None


def decode_all(source: ImageSource, resolution: int, channels: int) -> Tensor:
    """All images of a source, uint8 [N, C, R, R]."""
    images = torch.empty(len(source), channels, resolution, resolution, dtype=torch.uint8)
    work = partial(decode, source, resolution=resolution, channels=channels)
    for index, image in enumerate(each_row(work, len(source), f"decoding {source.name}")):
        images[index] = image
    return images
