"""How a clustering uses its clusters and, with labels, how it agrees with them: what summaries and tables say."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization

AGREEMENT = ("accuracy", "nmi", "ami", "ari")  # in percent
COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", "num_labelled", *AGREEMENT)
MOST_CELLS = 2**25  # of the table of classes and clusters: 268 MB

log = logging.getLogger(__name__)


def cluster_scores(cluster_ids: Tensor, num_clusters: int, labels: Tensor | None) -> dict[str, float]:
    """Use of the clusters and, with labels, agreement with them: `COLUMNS` → value.

    Args:
        labels: int64 [N]; images with UNLABELLED are left out of the agreement, and then the others are counted.
    """
    utilization = ClusterUtilization(num_clusters, sync_on_compute=False)  # rank 0 alone comes here
    utilization.update(cluster_ids)
    use = utilization.compute()
    scores = {
        "num_clusters": num_clusters,
        "num_used": int(use["num_used"]),
        "utilization_ratio": float(use["utilization_ratio"]),
        "kl_from_uniform": float(use["kl_from_uniform"]),
    }
    if labels is None or not (labelled := labels != UNLABELLED).any():
        return scores
    cluster_ids, labels = cluster_ids[labelled], labels[labelled]
    num_classes = int(labels.max()) + 1
    if num_classes * num_clusters > MOST_CELLS:
        log.warning("%d classes and %d clusters are too many to compare: no agreement", num_classes, num_clusters)
        return scores
    if len(labels) < len(labelled):
        scores["num_labelled"] = len(labels)
    agreement = ClusteringScores(num_classes, num_clusters, sync_on_compute=False)
    agreement.update(cluster_ids, labels)
    return scores | {name: float(value) for name, value in agreement.compute().items() if name in AGREEMENT}


def cluster_summary(labels: PseudoLabels, source: ImageSource, path: Path) -> dict[str, Any]:
    """What `summary.json` says of pseudo-labels that lie in `path`."""
    return {**cluster_scores(labels.cluster_ids, labels.num_clusters, source.labels), "pseudo_labels": str(path)}
