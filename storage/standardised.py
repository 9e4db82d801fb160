"""What the mean and standard deviation mean that embeddings and clustering heads are stored with."""

import torch
from torch import Tensor

MINIMAL_STD = 1e-6  # up to here a dimension counts as one that never changes, and tells nothing


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(values − mean) / std of `values` [N, D], 0 where a dimension never changes."""
    return (values - mean) / torch.where(std > MINIMAL_STD, std, torch.inf)
