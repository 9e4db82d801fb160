"""Are generated images copies of training images? Authenticity (arXiv 2102.08921), with its yardstick."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.prdc import BLOCK_ENTRIES, distance_blocks

ROWS_AT_ONCE = 4096
ROUNDING = 1e-4  # of the training images' spacing: features of one image differ by less from batch to batch


@dataclass(frozen=True)
class TrainingNeighbours:
    """The nearest other training image of each training image.

    Attributes:
        indices: int64 [M].
        distances: float64 [M], in feature space.
    """

    indices: Tensor
    distances: Tensor

    @property
    def authenticity(self) -> float:
        """The authenticity of training images, each held against the others: what real, unseen images would have.

        Image x with its nearest other image y is inauthentic where it is nearer to y than any third image is, that is,
        where x is y's nearest too. Around half of the images of any set are; it depends on the dimension.
        """
        return float((self.indices[self.indices] != torch.arange(len(self.indices))).double().mean())


@dataclass(frozen=True)
class Memorisation:
    """Generated images against their nearest training images.

    Attributes:
        nearest: int64 [N], the nearest training image of each generated one.
        distances: float64 [N], to that training image.
        ratios: float64 [N], that distance divided by the one from that training image to its own nearest other
            training image. Below 1: nearer to a training image than any other training image is.
    """

    nearest: Tensor
    distances: Tensor
    ratios: Tensor

    @property
    def authenticity(self) -> float:
        """Share of generated images with a ratio of at least 1."""
        return float((self.ratios >= 1).double().mean())

    def most_suspicious(self, count: int) -> Tensor:
        """Generated images with the lowest ratios, the lowest first, int64 [count or N]."""
        return self.ratios.argsort(stable=True)[:count]


def training_neighbours(reference: Tensor, block_entries: int = BLOCK_ENTRIES) -> TrainingNeighbours:
    """Nearest other training image of each, from features [M, D].

    Raises:
        ValueError: there is but one image.
    """
    if len(reference) < 2:
        raise ValueError(f"a nearest other training image needs at least 2 of them, not {len(reference)}")
    indices = nearest_rows(reference, None, block_entries)
    return TrainingNeighbours(indices, _distances(reference, reference, indices))


def memorisation(
    features: Tensor, reference: Tensor, neighbours: TrainingNeighbours, block_entries: int = BLOCK_ENTRIES
) -> Memorisation:
    """Hold generated images against the training images.

    Args:
        features: [N, D], of generated images.
        reference: [M, D], of the training images.
        neighbours: of `reference`.
        block_entries: how many of the N × M distances are held at once; at least a row of them.
    """
    reference = reference.to(features.device)
    nearest = nearest_rows(features, reference, block_entries)
    distances = _distances(features, reference, nearest)
    equal = distances <= ROUNDING * neighbours.distances.median()  # a copy, also of an image that is there twice
    ratios = torch.where(equal, 0.0, distances / neighbours.distances[nearest])
    return Memorisation(nearest, distances, ratios)


def nearest_rows(features: Tensor, others: Tensor | None, block_entries: int = BLOCK_ENTRIES) -> Tensor:
    """Index of the row of `others` [M, D] nearest to each row of `features` [N, D]; None: of its nearest other row."""
    nearest = []
    for start, distances in distance_blocks(features, features if others is None else others, block_entries):
        if others is None:
            rows = torch.arange(len(distances), device=features.device)
            distances[rows, start + rows] = torch.inf  # an image is no neighbour of its own
        nearest.append(distances.argmin(dim=1))
    return torch.cat(nearest).cpu()


def _distances(features: Tensor, others: Tensor, nearest: Tensor) -> Tensor:
    """Distance of each row to its nearest, float64 [N]: from their difference, so that equal rows are at 0."""
    parts = zip(features.split(ROWS_AT_ONCE), nearest.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([(x - others[rows.to(x.device)]).cpu().double().norm(dim=1) for x, rows in parts])
