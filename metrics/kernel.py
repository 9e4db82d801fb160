"""Kernel distance between two sets of features: KID on Inception (arXiv 1801.01401)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.sliced import DistanceAndError

KERNELS_AT_ONCE = 1 << 24  # entries: 128 MB


class MeanAndStd(NamedTuple):
    """A score's mean and (population) standard deviation over its subsets."""

    mean: float
    std: float


class KernelDistance(NamedTuple):
    """The same, and the mean's standard error over the images of the first set, drawn independently."""

    mean: float
    std: float
    error: float


def kernel_distance(
    features: Tensor, reference: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel k(x, y) = (⟨x, y⟩ / D + 1)³, averaged over random subsets.

    Each subset's estimate is the unbiased one, so it may come out below 0 for sets that are alike. The subsets are
    those of torch-fidelity for the same seed. The error has two parts: how much each image adds to the distance, as the
    subsets tell that it was drawn into, and how far the mean of so many subsets is from that of all.

    Args:
        features: [N, D].
        reference: [M, D].
        num_subsets: how many subsets are drawn.
        subset_size: images that each subset takes from either side, without replacement.
        seed: of the draws.

    Raises:
        ValueError: a side has fewer than `subset_size` images.

    Examples:
        >>> near, far = torch.zeros(20, 4), torch.ones(20, 4)
        >>> kernel_distance(far, near, num_subsets=2, subset_size=10).mean  # k = 8 within `far`, 1 elsewhere: 8 + 1 − 2
        7.0
    """
    if min(len(features), len(reference)) < subset_size:
        raise ValueError(
            f"subsets of {subset_size} images need as many on both sides, not {len(features)} and {len(reference)}: "
            "generate more images or choose a smaller subset_size (and report it)"
        )
    draw = np.random.RandomState(seed)
    estimates = []
    added, times = (torch.zeros(len(features), dtype=torch.float64, device=features.device) for _ in range(2))
    for _ in range(num_subsets):
        chosen, theirs = (
            torch.from_numpy(draw.choice(len(side), subset_size, replace=False)).to(side.device)
            for side in (features, reference)
        )
        x, y = features[chosen].double(), reference[theirs].double().to(features.device)
        estimate, own, cross = _squared_mmd(x, y)
        estimates.append(estimate)
        added[chosen] += 2 * (own / (subset_size - 1) - cross / subset_size)  # to first order, but for a constant
        times[chosen] += 1
    drawn = times > 0
    of_images = float((added[drawn] / times[drawn]).var()) / len(features)
    std = float(np.std(estimates))
    return KernelDistance(float(np.mean(estimates)), std, (of_images + std**2 / num_subsets) ** 0.5)


def kernel_distance_of_all(features: Tensor, reference: Tensor) -> DistanceAndError:
    """The same squared discrepancy, of all images of both sides at once: for sets too small to draw subsets from.

    It is unbiased for any number of images, so sets of different sizes compare. The error is the jackknife's, by
    leaving out one image of the first set after the other; unlike a first-order one it holds where the sets are alike,
    and where they are small it is rather too large (Efron and Stein 1981).

    Args:
        features: [N, D], at least 3.
        reference: [M, D], at least 2, on the same device.
    """
    x, y = features.double(), reference.double()
    n, m = len(x), len(y)
    estimate, own, cross = _squared_mmd(x, y)
    left = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross) / ((n - 1) * m)  # without each, [N]
    return DistanceAndError(estimate, float((n - 1) * left.var(correction=0)) ** 0.5)


def _squared_mmd(x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
    """Unbiased estimate from x [n, D] and y [m, D], where pairs of a point with itself are left out.

    Beside it are the sums of each row of x's kernels with the others of x and with y, [n] each.
    """
    n, m = len(x), len(y)
    own, other, cross = (_sums(a, b) for a, b in ((x, x), (y, y), (x, y)))
    own, other = (sums - _kernel(a[:, None], a[:, None])[:, 0, 0] for sums, a in ((own, x), (other, y)))
    estimate = own.sum() / (n * (n - 1)) + other.sum() / (m * (m - 1)) - 2 * cross.sum() / (n * m)
    return float(estimate), own, cross


def _sums(x: Tensor, y: Tensor) -> Tensor:
    """The sum of each row of x's kernels with those of y, [n]."""
    return torch.cat([_kernel(part, y).sum(dim=-1) for part in x.split(max(1, KERNELS_AT_ONCE // len(y)))])


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[-1] + 1) ** 3
