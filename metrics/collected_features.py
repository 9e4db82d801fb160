"""The features themselves, for the metrics that need every one of them, not only their sums."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class CollectedFeatures(Metric):
    """Keeps all rows handed to `update`, on the CPU's or the metric's device, and joins those of all processes.

    Args:
        num_features: D.

    Examples:
        >>> metric = CollectedFeatures(num_features=3)
        >>> metric.update(torch.zeros(2, 3))
        >>> metric.update(torch.ones(1, 3))
        >>> metric.compute().shape
        torch.Size([3, 3])
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Adds rows [B, D]; ValueError where the shape is another or a value is not finite."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"expected features [images, {self.num_features}], got {list(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("a feature is not finite")
        self.rows.append(features.detach().float())

    def collected(self) -> Tensor:
        """All rows so far, [N, D]."""
        return dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, self.num_features)

    def compute(self) -> Any:
        """All rows of all processes, [N, D]: those of rank 0, then those of rank 1, …"""
        return self.collected()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics', but a process without rows takes part with none of the right width."""
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(torch.empty(0, self.num_features, device=self.device))
        super().sync(*args, **kwargs)
