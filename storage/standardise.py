"""Standardised features: the same for those that a head is trained on and for new ones."""

import torch
from torch import Tensor

MINIMAL_STD = 1e-6  # up to here a dimension counts as one that never changes, and tells nothing


def standardise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(values − mean) / std, 0 where a dimension never changes: `[N, D]` of values `[N, D]`, mean and std `[D]`.

    However much such a dimension changes in other values.
    """
    return (values - mean) / torch.where(std > MINIMAL_STD, std, torch.inf)
