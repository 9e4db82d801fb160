"""Agreement of cluster ids with class labels."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from torchmetrics import Metric

from metrics.utilization import check_ids, kl_from_uniform


class ClusteringScores(Metric):
    """Accuracy, NMI, AMI and ARI of a clustering against labels, from their contingency table.

    Args:
        num_classes: K.
        num_clusters: C.

    Examples:
        >>> scores = ClusteringScores(num_classes=2, num_clusters=3)
        >>> scores.update(cluster_ids=torch.tensor([2, 2, 0, 0]), labels=torch.tensor([0, 0, 1, 1]))
        >>> {name: round(value, 1) for name, value in scores.compute().items()}
        {'accuracy': 100.0, 'nmi': 100.0, 'ami': 100.0, 'ari': 100.0, 'num_used': 2, 'kl_from_uniform': 0.0}
    """

    full_state_update = False
    contingency: Tensor  # [K, C], images of each class in each cluster

    def __init__(self, num_classes: int, num_clusters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_clusters = num_clusters
        self.add_state("contingency", torch.zeros(num_classes, num_clusters, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, cluster_ids: Tensor, labels: Tensor) -> None:
        """Counts images by cluster and class.

        Args:
            cluster_ids: [B], integers in 0…C−1.
            labels: [B], integers in 0…K−1.
        """
        if cluster_ids.shape != labels.shape:
            raise ValueError(
                f"{cluster_ids.numel()} cluster ids but {labels.numel()} labels: give one of each per image"
            )
        check_ids(cluster_ids, self.num_clusters, "cluster")
        check_ids(labels, self.num_classes, "class")
        cells = labels.flatten().long() * self.num_clusters + cluster_ids.flatten().long()
        table = cells.bincount(minlength=self.num_classes * self.num_clusters)
        self.contingency += table.view(self.num_classes, self.num_clusters)

    def compute(self) -> dict[str, float | int]:
        """Returns:
            accuracy: percent; see `matched_accuracy`.
            nmi: normalised mutual information (arithmetic mean of the entropies), percent.
            ami: adjusted mutual information (arithmetic mean), percent.
            ari: adjusted Rand index, percent.
            num_used: clusters with images.
            kl_from_uniform: see `metrics.utilization.kl_from_uniform`.

        Raises:
            ValueError: no image was counted.
        """
        table = self.contingency.cpu().numpy()
        if not table.any():
            raise ValueError("no image has been counted yet: call update(cluster_ids, labels) first")
        # The scores ignore the order of the images, so the table unrolled is as good as the ids that filled it.
        label, cluster_id = (np.repeat(ids, table[table > 0]) for ids in np.nonzero(table))
        images_per_cluster = self.contingency.sum(dim=0)
        return {
            "accuracy": 100 * matched_accuracy(table),
            "nmi": 100 * float(normalized_mutual_info_score(label, cluster_id)),
            "ami": 100 * float(adjusted_mutual_info_score(label, cluster_id)),
            "ari": 100 * float(adjusted_rand_score(label, cluster_id)),
            "num_used": int((images_per_cluster > 0).sum()),
            "kl_from_uniform": kl_from_uniform(images_per_cluster),
        }


def cluster_purity(cluster_ids: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """The class that most images of each cluster have, and how many of them do.

    Args:
        cluster_ids: [N], integers in 0…C−1.
        labels: [N], integers in 0…K−1.

    Returns:
        Purities, the share of that class, float64 [C], NaN for clusters without images; and the classes, int64 [C],
        the lowest of several that are equally frequent.

    Examples:
        >>> purity, majority = cluster_purity(torch.tensor([0, 0, 1]), torch.tensor([4, 4, 7]), num_clusters=2)
        >>> purity.tolist(), majority.tolist()
        ([1.0, 1.0], [4, 7])
    """
    num_classes = int(labels.max()) + 1
    cells, counts = (cluster_ids.long() * num_classes + labels.long()).unique(return_counts=True)  # of no empty cell
    cluster, label = cells // num_classes, cells % num_classes
    sizes = torch.zeros(num_clusters, dtype=torch.int64)
    most, total = sizes.scatter_reduce(0, cluster, counts, "amax"), sizes.scatter_add(0, cluster, counts)
    majority = torch.full_like(sizes, num_classes).scatter_reduce(
        0, cluster, torch.where(counts == most[cluster], label, num_classes), "amin"
    )
    return most.double() / total, majority.where(total > 0, 0)


def matched_accuracy(contingency: np.ndarray) -> float:
    """Share of images whose cluster stands for their class.

    Clusters are matched one to one to classes so that most images agree (Hungarian method); then each surplus cluster
    goes to the class that most of its images have. Among equally good matches, the one that leaves the most to the
    surplus counts (say, a class that nobody found takes an empty cluster rather than another class's second one).

    Args:
        contingency: [K, C], images of each class in each cluster.

    Examples:
        >>> matched_accuracy(np.array([[4, 1, 0], [0, 3, 2]]))  # 2 classes in 3 clusters
        0.9
    """
    majority = contingency.max(axis=0)  # what each cluster adds as surplus
    benefit = contingency * (majority.sum() + 1) - majority  # agreeing images first, then what is left to the surplus
    classes, clusters = linear_sum_assignment(benefit, maximize=True)
    surplus = np.delete(contingency, clusters, axis=1)
    agreeing = contingency[classes, clusters].sum() + surplus.max(axis=0, initial=0).sum()
    return float(agreeing / contingency.sum())
