"""Clipped density and clipped coverage (arXiv 2507.01761): shares of good images, robust against outliers."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor

from storage.distances import BLOCK_ENTRIES, SquaredDistances


@dataclass(frozen=True)
class ClippedScores:
    """1 for images like the real ones; falls in proportion as bad ones take their place.

    Attributes:
        density: how well the generated images lie among the real ones.
        coverage: how well the real images have generated ones around them.
    """

    density: float
    coverage: float


def clipped_scores(
    features: Tensor, reference: Tensor, k: int = 5, block_entries: int = BLOCK_ENTRIES
) -> ClippedScores:
    """Density and coverage in which no image counts for more than one, on a scale where shares are shares.

    Around each real image lies a closed ball that reaches to its k-th nearest real neighbour. Density counts the balls
    around a generated image, at most k, of radii cut at the median radius: real outliers have balls that hold anything.
    It is divided by what the real images score themselves. Coverage counts the generated images in a real image's
    ball, at most k, and is read as the number of good images, out of all N, that would be expected to score so.

    Args:
        features: [N, D], of generated images.
        reference: [M, D], of real images, on the same device.
        k: which neighbour.
        block_entries: how many of the N × M distances are held at once; at least a row of them.

    Raises:
        ValueError: the real images have no k-th neighbour, or a feature is not finite.

    Examples:
        >>> images = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> scores = clipped_scores(images + 100, images)
        >>> scores.density, scores.coverage
        (0.0, 0.0)
    """
    if not 1 <= k < len(reference):
        raise ValueError(f"k={k} needs more than k real images, not {len(reference)}")
    among = SquaredDistances(reference, block_entries=block_entries)
    balls = among.nearest(k)[0][:, -1]  # [M], squared radii
    low, high = (float(balls.quantile(0.5, interpolation=side)) for side in ("lower", "higher"))
    cut = balls.clamp(max=low if low == high else ((low**0.5 + high**0.5) / 2) ** 2)  # the median of the radii
    around_real = torch.zeros(len(reference), device=features.device)
    for pairs in among.within(cut.new_full((len(reference),), -torch.inf), cut):
        inside = pairs.squared <= cut[pairs.columns]
        around_real += torch.bincount(pairs.rows[inside], minlength=len(reference))
    around_generated, held = torch.zeros(len(features)).to(around_real), torch.zeros_like(around_real)
    distances = SquaredDistances(features, reference, block_entries)
    for pairs in distances.within(cut.new_full((len(features),), -torch.inf), balls):
        inside = pairs.squared <= balls[pairs.columns]
        held += torch.bincount(pairs.columns[inside], minlength=len(reference))
        inside = pairs.squared <= cut[pairs.columns]
        around_generated += torch.bincount(pairs.rows[inside], minlength=len(features))
    density, of_real, coverage = (
        float(counts.clamp(max=k).double().mean()) / k for counts in (around_generated, around_real, held)
    )
    expected = expected_coverage(len(features), len(reference), k)
    share = float(np.interp(coverage, expected, np.linspace(0, 1, len(expected))))
    return ClippedScores(min(1.0, density / of_real), share)


def expected_coverage(num_generated: int, num_real: int, k: int) -> np.ndarray:
    """E[min(k, B)] / k of B images in a real image's ball, where n are drawn like the real ones, n = 0 … num_generated.

    The ball to the k-th neighbour among M − 1 others holds a share of the distribution that is Beta(k, M − k), in any
    dimension, so B is beta-binomial.

    Returns:
        [num_generated + 1], rising.
    """
    counts = np.arange(k)[:, np.newaxis]
    chances = betabinom.pmf(counts, np.arange(num_generated + 1), k, num_real - k)  # [k, num_generated + 1]
    return 1 - ((1 - counts / k) * chances).sum(axis=0)
