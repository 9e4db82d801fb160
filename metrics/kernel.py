"""Kernel distance between two sets of features: KID on Inception (arXiv 1801.01401)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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
        estimate, each = _squared_mmd(x, y)
        estimates.append(estimate)
        added[chosen] += each
        times[chosen] += 1
    drawn = times > 0
    of_images = float((added[drawn] / times[drawn]).var()) / len(features)
    std = float(np.std(estimates))
    return KernelDistance(float(np.mean(estimates)), std, (of_images + std**2 / num_subsets) ** 0.5)


def _squared_mmd(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Unbiased estimate from x [n, D] and y [n, D], where pairs of a point with itself are left out.

    Beside it is what each row of x adds, but for a constant, [n]: twice its mean kernel with x less that with y, the
    first-order term of a U-statistic.
    """
    n = len(x)
    own, other, cross = _kernel(x, x).fill_diagonal_(0), _kernel(y, y).fill_diagonal_(0), _kernel(x, y)
    estimate = (own.sum() + other.sum()) / (n * (n - 1)) - 2 * cross.mean()
    return float(estimate), 2 * (own.sum(dim=1) / (n - 1) - cross.mean(dim=1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3
