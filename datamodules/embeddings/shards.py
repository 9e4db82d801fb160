"""Embedding a data set shard by shard: memory stays small, and an interrupted run goes on from its last whole shard.

A shard is an artifact of its own, the features of `SHARD_IMAGES` consecutive images. Which images it holds depends on
the data set alone. So several processes can share the work, on one device each, and end in the bytes of one process.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.backbones.backbone_base import Backbone, prepare
from datamodules.image_loader import ImageLoader
from datamodules.images.images import decode
from datamodules.images.sources import ImageSource
from storage.artifacts import entry_path, read_artifact, write_artifact
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import numbered, set_aside

log = logging.getLogger(__name__)

KIND = "embedding shard"
SHARD_IMAGES = 512  # minutes of work on a CPU, a tenth of a second on a fast GPU


def shards_of(num_images: int) -> list[range]:
    """The rows of each shard of a data set."""
    return parts_of(range(num_images), SHARD_IMAGES)


def parts_of(rows: range, size: int) -> list[range]:
    """`rows` in parts of `size`; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def shard_path(folder: Path, rows: range) -> Path:
    """Where the features of the images `rows` are kept until all are there."""
    return folder / f"{rows.start:09d}-{rows.stop:09d}.safetensors"


def made_from(source: ImageSource, identity: dict[str, Any], rows: range) -> dict[str, Any]:
    """What the shard `rows` says of itself."""
    return {"source": source.fingerprint, "backbone": identity, "rows": [rows.start, rows.stop]}


def shards_folder(folder: Path, source: ImageSource, identity: dict[str, Any]) -> Path:
    """`folder`, or `NAME-2`, … where shards lie in it that are of something else."""

    def is_free(candidate: Path) -> bool:
        if not candidate.is_dir():
            return not os.path.lexists(candidate)
        paths = {rows: shard_path(candidate, rows) for rows in shards_of(len(source))}
        return all(entry_path(path, KIND, made_from(source, identity, rows)) == path for rows, path in paths.items())

    return next(filter(is_free, numbered(folder)))


def remove_shards(folder: Path, num_images: int) -> None:
    """Remove the shards, and the folder unless something else lies in it."""
    for rows in shards_of(num_images):
        shard_path(folder, rows).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def missing_shards(folder: Path, num_images: int) -> list[range]:
    """The shards that are yet to be made; damaged ones are set aside, to be made again."""
    missing = []
    for rows in shards_of(num_images):
        try:
            read_artifact(shard_path(folder, rows), KIND)
        except MissingArtifactError:
            missing.append(rows)
        except DamagedArtifactError as error:
            log.warning("%s Set aside as %s.", error, set_aside(shard_path(folder, rows)).name)
            missing.append(rows)
    return missing


def embed_shards(
    source: ImageSource,
    backbone: Backbone,
    folder: Path,
    shards: Sequence[range],
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "32-true",
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Write the shards `shards` into `folder`, computed on the backbone's device.

    Args:
        backbone: sees each image whole and at its own size, which its own processing brings to the size it was trained
            with; only `pixels` takes the images of diffusion training.
        shards: rows of the images, as `missing_shards` gives them.
        batch_size: images per forward pass.
        num_workers: processes that decode and resize images while the network computes; 0: this one does.
        precision: `32-true`, or `bf16-mixed`, which a backbone that must be exact (Inception) disregards.
        on_images: told the number of images after each batch.

    Raises:
        UserError: names the image that cannot be decoded, or those for which the backbone returns NaN or infinity.
    """
    device, bf16 = backbone.device, precision == "bf16-mixed" and backbone.takes_bf16
    batches = _PreparedBatches(source, backbone, [part for rows in shards for part in parts_of(rows, batch_size)])
    workers = min(num_workers, len(batches))
    loader = ImageLoader(batches, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")
    inputs: Iterator[list[Tensor]] = iter(loader)
    with ThreadPoolExecutor(1) as writer:  # the network need not wait for the disk
        writing: Future[None] = writer.submit(lambda: None)
        for rows in shards:
            features = []  # on the device until the shard is whole: the network need not wait for each batch either
            for part in parts_of(rows, batch_size):
                batch = next(inputs)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    features.append(backbone.features_of(batch))
                on_images(len(part))
            values = torch.cat(features).cpu()  # [len(rows), dim]
            _check_finite(source, backbone, rows, values)
            path, meta = shard_path(folder, rows), made_from(source, backbone.identity, rows)
            writing.result()  # raises what went wrong
            writing = writer.submit(write_artifact, path, KIND, {"values": values}, meta)
        writing.result()


def join_shards(folder: Path, num_images: int) -> dict[str, Tensor]:
    """All shards as one: `values` [N, D], `mean` [D] and `std` [D] (of the population), float32.

    The values lie in a file that is mapped into memory, not in memory; the statistics are sums in float64, shard by
    shard (Chan, Golub and LeVeque 1983, equation 2.1).
    """
    joined, seen = folder / "joined", 0
    mean = squares = torch.zeros(1, dtype=torch.float64)
    with joined.open("wb") as file:
        for rows in shards_of(num_images):
            values = read_artifact(shard_path(folder, rows), KIND).tensors["values"]  # [len(rows), D]
            file.write(values.numpy().data)
            part_variance, part_mean = torch.var_mean(values.double(), dim=0, correction=0)
            step, total = part_mean - mean, seen + len(rows)
            squares = squares + part_variance * len(rows) + step.square() * (seen * len(rows) / total)
            mean, seen = mean + step * (len(rows) / total), total
    dim = len(mean)
    stored = torch.from_file(str(joined), shared=False, size=num_images * dim, dtype=torch.float32)
    joined.unlink()  # the mapping stays
    return {"values": stored.view(num_images, dim), "mean": mean.float(), "std": (squares / num_images).sqrt().float()}


class _PreparedBatches(Dataset):
    """Batches of images as the network takes them. It holds the preparation, not the network: workers get a copy."""

    def __init__(self, source: ImageSource, backbone: Backbone, batches: list[range]) -> None:
        self.source, self.batches = source, batches
        self.resolution, self.channels = backbone.resolution, backbone.channels
        self.preparation = backbone.preparation

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Tensor]:
        images = [decode(self.source, row, self.resolution, self.channels) for row in self.batches[number]]
        return prepare(self.preparation, images)


def _check_finite(source: ImageSource, backbone: Backbone, rows: range, values: Tensor) -> None:
    bad = [rows[index] for index in values.isfinite().all(dim=1).logical_not().nonzero()[:, 0].tolist()]
    if bad:
        first = ", ".join(repr(source.ids[row]) for row in bad[:3]) + " …" * (len(bad) > 3)
        raise UserError(
            f"{source.name}: backbone {backbone.name} returns NaN or infinity for {first} ({len(bad)} of the "
            f"{len(rows)} images from row {rows.start} on). Look at them. Where they are sound, set "
            "embedding.precision=32-true, or backbone.path=FOLDER for other weights."
        )
