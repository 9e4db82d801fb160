"""Kernel distance between two sets of features: KID on Inception (arXiv 1801.01401)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class MeanAndStd(NamedTuple):
    """A score's mean and (population) standard deviation over its subsets."""

    mean: float
    std: float


def kernel_distance(
    features: Tensor, reference: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> MeanAndStd:
    """Squared maximum mean discrepancy with the kernel k(x, y) = (⟨x, y⟩ / D + 1)³, averaged over random subsets.

    Each subset's estimate is the unbiased one, so it may come out below 0 for sets that are alike. The subsets are
    those of torch-fidelity for the same seed.

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
    for _ in range(num_subsets):
        x, y = (
            side[torch.from_numpy(draw.choice(len(side), subset_size, replace=False)).to(side.device)].double()
            for side in (features, reference)
        )
        estimates.append(_squared_mmd(x, y.to(x.device)))
    return MeanAndStd(float(np.mean(estimates)), float(np.std(estimates)))


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate from x [n, D] and y [n, D]: the pairs of a point with itself are left out."""
    n = len(x)
    within = sum(_kernel(side, side).fill_diagonal_(0).sum() / (n * (n - 1)) for side in (x, y))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3
