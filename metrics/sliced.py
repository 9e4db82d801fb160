"""Sliced Wasserstein distance between two sets of features: MIND on Inception (arXiv 2605.06797)."""

from typing import NamedTuple

import torch
from torch import Tensor

from storage.distances import exact_products

DIRECTIONS_AT_ONCE = 64


class DistanceAndError(NamedTuple):
    """A distance, and its standard error over the images of the first set, drawn independently."""

    value: float
    error: float


def sliced_wasserstein(
    features: Tensor, reference: Tensor, num_directions: int = 1000, seed: int = 2020
) -> DistanceAndError:
    """3 D times the squared 2-Wasserstein distance of both sets along a direction, averaged over random directions.

    Along a direction, the optimal transport of two sets of numbers pairs them in order; sets of different sizes by
    their quantiles, so every image counts. The factor is the paper's. The error follows from how much each image adds,
    which along a direction is Kantorovich's potential of the transport (arXiv 1705.01299, theorem 4.1).

    Args:
        features: [N, D].
        reference: [M, D], on the same device.
        num_directions: random unit vectors.
        seed: of the directions.

    Examples:
        >>> reference = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> round(sliced_wasserstein(reference + 1, reference, num_directions=20_000).value, 1)  # 3 |(1, 1)|²
        6.0
    """
    dim, device = features.shape[1], features.device
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(num_directions, dim, generator=generator), dim=1).to(device)
    centre = reference.mean(dim=0, dtype=torch.float64)  # float32 does then, however far from 0 the features are
    ours, theirs = ((side - centre).float() for side in (features, reference))
    n, m = len(ours), len(theirs)
    edges = torch.cat([torch.arange(n) * m, torch.arange(m) * n, torch.tensor([n * m])]).unique().to(device)
    shares = edges.diff() / (n * m)  # of each run of quantiles in which both sides are constant
    own_rank, their_rank = edges[:-1] // m, edges[:-1] // n
    steps = torch.arange(1, n, device=device) * m  # between one of our images and the next
    total, potentials = 0.0, torch.zeros(n, dtype=torch.float64, device=device)
    for part in directions.split(DIRECTIONS_AT_ONCE):
        with exact_products(device.type):
            x, order = (part @ ours.T).double().sort(dim=1)  # [directions, N]
            y = (part @ theirs.T).double().sort(dim=1).values  # [directions, M]
        total += float(((x[:, own_rank] - y[:, their_rank]).square() @ shares.double()).sum())
        target = (y[:, (steps - 1) // n] + y[:, steps // n]) / 2
        slopes = (x[:, 1:] + x[:, :-1] - 2 * target) * x.diff(dim=1)  # of the potential, from one image to the next
        potential = torch.nn.functional.pad(slopes.cumsum(dim=1), (1, 0))
        potential -= potential.mean(dim=1, keepdim=True)
        potentials += torch.zeros_like(potential).scatter_(1, order, potential).sum(dim=0)
    scale = 3 * dim / num_directions
    return DistanceAndError(scale * total, scale * float(potentials.std()) / n**0.5)
