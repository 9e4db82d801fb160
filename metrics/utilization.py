"""How many clusters are in use, and how evenly."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class ClusterUtilization(Metric):
    """Use of C clusters by the images seen since the last reset.

    A cluster is used when some image is assigned to it (`used_when="assigned"`, the ratio r_C of arXiv 2403.00570), or
    when its mean probability exceeds the average, 1/C (`used_when="probable"`, which needs `probabilities`).

    Args:
        num_clusters: C.
        used_when: "assigned" or "probable".

    Examples:
        >>> metric = ClusterUtilization(num_clusters=4)
        >>> metric.update(torch.tensor([0, 0, 1, 1]))
        >>> scores = metric.compute()
        >>> scores["num_used"], scores["utilization_ratio"], scores["counts"].tolist()
        (2, 0.5, [2, 2, 0, 0])
    """

    full_state_update = False
    counts: Tensor  # [C], images per cluster
    probability_sums: Tensor  # [C]

    def __init__(
        self, num_clusters: int, used_when: Literal["assigned", "probable"] = "assigned", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if used_when not in ("assigned", "probable"):
            raise ValueError(f"used_when={used_when!r}: choose 'assigned' or 'probable'")
        self.num_clusters = num_clusters
        self.used_when = used_when
        self.add_state("counts", torch.zeros(num_clusters, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probability_sums", torch.zeros(num_clusters, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, cluster_ids: Tensor, probabilities: Tensor | None = None) -> None:
        """Counts images.

        Args:
            cluster_ids: [B], integers in 0…C−1.
            probabilities: [B, C], the softmax behind them; only `used_when="probable"` reads it.
        """
        check_ids(cluster_ids, self.num_clusters, "cluster")
        self.counts += cluster_ids.flatten().bincount(minlength=self.num_clusters)
        if self.used_when == "probable":
            if probabilities is None:
                raise ValueError("used_when='probable' needs the probabilities [B, C] in every update")
            self.probability_sums += probabilities.sum(dim=0, dtype=torch.float64)

    def compute(self) -> dict[str, Any]:
        """Returns:
            num_used: U, clusters in use.
            utilization_ratio: U / C.
            entropy: of the images' distribution over clusters, in nats; ln C when all are used alike.
            kl_from_uniform: see `kl_from_uniform`.
            counts: images per cluster, int64 [C].

        Raises:
            ValueError: no image was counted.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise ValueError("no image has been assigned to a cluster yet: call update(cluster_ids) first")
        if self.used_when == "assigned":
            used = self.counts > 0
        else:
            used = self.probability_sums / total > 1 / self.num_clusters
        num_used = int(used.sum())
        return {
            "num_used": num_used,
            "utilization_ratio": num_used / self.num_clusters,
            "entropy": float(torch.special.entr(self.counts.double() / total).sum()),
            "kl_from_uniform": kl_from_uniform(self.counts),
            "counts": self.counts.clone(),
        }


def kl_from_uniform(counts: Tensor) -> float:
    """Σ over clusters with images of (1/U) ln((1/U) / f_c), f_c their share of the images, U their number; nats, ≥ 0.

    Args:
        counts: [C], images per cluster.

    Examples:
        >>> kl_from_uniform(torch.tensor([5, 5, 0])), round(kl_from_uniform(torch.tensor([9, 1])), 4)
        (0.0, 0.5108)
    """
    used = counts[counts > 0].double()
    frequencies = used / used.sum()
    return max(0.0, -math.log(len(used)) - float(frequencies.log().mean()))


def check_ids(ids: Tensor, num_ids: int, what: str) -> None:
    """Raises ValueError unless all ids are integers in 0…num_ids−1."""
    if ids.is_floating_point():
        raise ValueError(f"{what} ids must be integers, not {ids.dtype}")
    if ids.numel() and (ids.min() < 0 or ids.max() >= num_ids):
        raise ValueError(f"{what} ids must lie in 0…{num_ids - 1}, but run from {int(ids.min())} to {int(ids.max())}")
