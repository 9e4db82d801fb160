"""Are generated images copies of training images? Authenticity (arXiv 2102.08921), with its yardstick.

Distances are compared in float64, whatever the features come in; of training images at equal distances, the first is
the nearest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from storage.distances import BLOCK_ENTRIES, SquaredDistances

ROUNDING = 1e-4  # of the training images' spacing: features of one image differ by less from batch to batch


@dataclass(frozen=True)
class TrainingNeighbours:
    """The nearest other training image of each training image.

    Attributes:
        indices: int64 [M].
        distances: float64 [M], in feature space.
        distances_to_next: float64 [M], to the second nearest one; infinite where there is none.
    """

    indices: Tensor
    distances: Tensor
    distances_to_next: Tensor

    @property
    def rounding(self) -> float:
        """Images that are no further apart are taken for the same image."""
        return ROUNDING * float(self.distances.median())

    @property
    def authenticity(self) -> float:
        """The authenticity of training images, each held against the others: what real, unseen images would have.

        Image x with its nearest other image y is authentic where it is no nearer to y than all third images are, and no
        copy of y. Around half of the images of any set are; it depends on the dimension.
        """
        itself = torch.arange(len(self.indices))
        first, second = self.distances[self.indices], self.distances_to_next[self.indices]  # as seen from y
        third = torch.where(self.indices[self.indices] == itself, second, first)
        return float(((self.distances >= third) & (self.distances > self.rounding)).double().mean())


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

    Examples:
        >>> training_neighbours(torch.tensor([[0.0], [1.0], [3.0]])).distances.tolist()
        [1.0, 1.0, 2.0]
    """
    if len(reference) < 2:
        raise ValueError(f"a nearest other training image needs at least 2 of them, not {len(reference)}")
    squared, indices = SquaredDistances(reference, block_entries=block_entries).nearest(min(2, len(reference) - 1))
    distances = squared.cpu().sqrt()  # [M, 1 or 2]
    none = torch.full((len(reference), 1), torch.inf, dtype=torch.float64)
    return TrainingNeighbours(indices[:, 0].cpu(), distances[:, 0], torch.cat([distances, none], dim=1)[:, 1])


def memorisation(
    features: Tensor, reference: Tensor, neighbours: TrainingNeighbours, block_entries: int = BLOCK_ENTRIES
) -> Memorisation:
    """Hold generated images against the training images.

    Args:
        features: [N, D], of generated images.
        reference: [M, D], of the training images.
        neighbours: of `reference`.
        block_entries: how many of the N × M distances are held at once; at least a row of them.

    Examples:
        >>> reference = torch.tensor([[0.0], [1.0], [3.0]])
        >>> found = memorisation(torch.tensor([[0.0], [9.0]]), reference, training_neighbours(reference))
        >>> found.nearest.tolist(), found.ratios.tolist(), found.authenticity  # a copy, and an image that is none
        ([0, 2], [0.0, 3.0], 0.5)
    """
    squared, indices = SquaredDistances(features, reference.to(features.device), block_entries).nearest(1)
    nearest, distances = indices[:, 0].cpu(), squared[:, 0].cpu().sqrt()
    equal = distances <= neighbours.rounding  # a copy, also of an image that is there twice
    ratios = torch.where(equal, 0.0, distances / neighbours.distances[nearest])
    return Memorisation(nearest, distances, ratios)
