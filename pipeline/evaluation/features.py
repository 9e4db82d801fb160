"""One pass over a set of images: what each feature extractor says of it, worked out by all processes together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from datamodules.backbones.backbone_base import Backbone
from metrics.collected_features import CollectedFeatures
from metrics.frechet import FeatureStatistics, Statistics


class ImageSet(Protocol):
    """Images by their row in a set."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Images `indices` [B] as uint8 [B, C, R, R]."""


class GeneratedSet(ImageSet, Protocol):
    """One set of generated images at the data set's resolution."""

    fingerprint: str  # changes with any image

    @property
    def cluster_ids(self) -> list[int] | None:
        """The cluster that each image was made for, as in the pseudo-labels; None where that is not known."""

    @property
    def description(self) -> dict[str, Any]:
        """Where they come from, as JSON can hold it: part of the protocol of every number."""

    def name(self, index: int) -> str:
        """What to call an image: its file, or its seed."""

    def to(self, device: torch.device) -> None:
        """Where the images are made, if they are made."""


@dataclass(frozen=True)
class Features:
    """What one extractor says of a set."""

    statistics: Statistics  # mean and covariance of the features
    rows: Tensor | None = None  # the features, float32 [N, D] in the set's order, on the CPU; None where none were kept


def extract(
    images: ImageSet,
    extractors: Sequence[Backbone],
    keep: Collection[str],
    batch_size: int,
    device: torch.device,
    name: str,
) -> dict[str, Features]:
    """Features of every image by every extractor, by the extractor's name; each image is gathered once.

    Rank r of W takes the r-th of W equal parts, so that the features of all ranks, one after the other, lie in the
    order of the set, and no metric on them depends on the number of processes. Every rank gets the whole result.

    Args:
        keep: names of the extractors whose features are kept; of the others there are the statistics alone.
        batch_size: images at once on each device.
        device: of this process.
        name: of the set, for the progress bar.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sums_device = torch.device("cpu") if device.type == "mps" else device  # the one device without float64
    statistics = {e.name: FeatureStatistics(e.dim).to(sums_device) for e in extractors}
    kept = {e.name: CollectedFeatures(e.dim).to(device) for e in extractors if e.name in keep}
    for extractor in extractors:
        extractor.to(device)
    own = torch.arange(len(images)).tensor_split(world_size)[rank]
    with tqdm(total=len(own), desc=name, unit="img", disable=rank != 0, dynamic_ncols=True) as bar:
        for part in own.split(batch_size) if len(own) else ():
            pixels = images.gather(part).to(device)  # [B, C, R, R]
            for extractor in extractors:
                features = extractor.extract(pixels)  # [B, D]
                statistics[extractor.name].update(features.to(sums_device))
                if extractor.name in kept:
                    kept[extractor.name].update(features)
            bar.update(len(part))
    rows = {backbone: metric.compute().cpu() for backbone, metric in kept.items()}
    sums = {backbone: metric.compute() for backbone, metric in statistics.items()}
    on_cpu = {backbone: Statistics(of_one.mean.cpu(), of_one.cov.cpu(), of_one.n) for backbone, of_one in sums.items()}
    return {backbone: Features(of_one, rows.get(backbone)) for backbone, of_one in on_cpu.items()}
