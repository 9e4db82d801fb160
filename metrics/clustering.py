"""Which clusters are in use and how evenly, and how cluster ids agree with class labels."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor


def utilization(counts: Tensor) -> dict[str, float]:
    """Use of C clusters.

    Args:
        counts: [C], images per cluster, at least one in all.

    Returns:
        num_used: U, clusters with images.
        utilization_ratio: U / C, the ratio r_C of arXiv 2403.00570.
        entropy: of the images' distribution over clusters, in nats; ln C when all are used alike.
        kl_from_uniform: Σ over clusters with images of (1/U) ln((1/U) / f_c), f_c their share of the images; nats, ≥ 0.
    """
    used = counts[counts > 0].double()
    shares = used / used.sum()
    return {
        "num_used": len(used),
        "utilization_ratio": len(used) / len(counts),
        "entropy": float(torch.special.entr(shares).sum()),
        "kl_from_uniform": max(0.0, -math.log(len(used)) - float(shares.log().mean())),
    }


def num_probable(probabilities: Iterable[Tensor]) -> int:
    """Clusters whose mean probability exceeds the average, 1/C; probabilities come in batches [B, C]."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for batch in probabilities:
        total = total + batch.sum(dim=0, dtype=torch.float64)
        count += len(batch)
    return int((total / count > 1 / len(total)).sum())


def agreement(cluster_ids: Tensor, labels: Tensor, num_clusters: int) -> dict[str, float]:
    """How a clustering agrees with labels.

    Args:
        cluster_ids: [N], integers in 0…C−1.
        labels: [N], integers in 0…K−1.
        num_clusters: C.

    Returns:
        In percent: `matched_accuracy`, normalised and adjusted mutual information (`nmi`, `ami`; arithmetic mean of the
        entropies), and the adjusted Rand index (`ari`).
    """
    ids, classes = cluster_ids.cpu().numpy(), labels.cpu().numpy()
    return {
        "accuracy": 100 * matched_accuracy(contingency(cluster_ids, labels, num_clusters).cpu().numpy()),
        "nmi": 100 * float(normalized_mutual_info_score(classes, ids)),
        "ami": 100 * float(adjusted_mutual_info_score(classes, ids)),
        "ari": 100 * float(adjusted_rand_score(classes, ids)),
    }


def contingency(cluster_ids: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Images of each class in each cluster, int64 [K, C]; K is the largest label + 1."""
    num_classes = int(labels.max()) + 1
    cells = labels.long() * num_clusters + cluster_ids.long()
    return cells.bincount(minlength=num_classes * num_clusters).view(num_classes, num_clusters)


def cluster_purity(cluster_ids: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """The class that most images of each cluster have, and how many of them do.

    Args:
        cluster_ids: [N], integers in 0…C−1.
        labels: [N], integers in 0…K−1.

    Returns:
        Purities, the share of that class, float64 [C], NaN for clusters without images; and the classes, int64 [C].
    """
    table = contingency(cluster_ids, labels, num_clusters)
    most, majority = table.max(dim=0)
    return most.double() / table.sum(dim=0), majority


def matched_accuracy(table: np.ndarray) -> float:
    """Share of images whose cluster stands for their class.

    Clusters are matched one to one to classes so that most images agree (Hungarian method); then each surplus cluster
    goes to the class that most of its images have. Among equally good matches, the one that leaves the most to the
    surplus counts (say, a class that nobody found takes an empty cluster rather than another class's second one).

    Args:
        table: [K, C], images of each class in each cluster.
    """
    majority = table.max(axis=0)  # what each cluster adds as surplus
    benefit = table * (majority.sum() + 1) - majority  # agreeing images first, then what is left to the surplus
    classes, clusters = linear_sum_assignment(benefit, maximize=True)
    surplus = np.delete(table, clusters, axis=1)
    agreeing = table[classes, clusters].sum() + surplus.max(axis=0, initial=0).sum()
    return float(agreeing / table.sum())
