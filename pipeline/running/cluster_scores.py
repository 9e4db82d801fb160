"""How a clustering uses its clusters and, with labels, how it agrees with them: what summaries and tables say."""

from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from metrics.clustering import agreement, utilization

COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")


def cluster_scores(cluster_ids: Tensor, num_clusters: int, labels: Tensor | None) -> dict[str, float]:
    """Use of the clusters and, with labels, agreement with them: `COLUMNS` → value."""
    scores = {"num_clusters": num_clusters, **utilization(cluster_ids.bincount(minlength=num_clusters))}
    if labels is not None:
        scores |= agreement(cluster_ids, labels, num_clusters)
    return {name: scores[name] for name in COLUMNS if name in scores}


def cluster_summary(labels: PseudoLabels, source: ImageSource, path: Path) -> dict[str, Any]:
    """What `summary.json` says of pseudo-labels that lie in `path`."""
    return {**cluster_scores(labels.cluster_ids, labels.num_clusters, source.labels), "pseudo_labels": str(path)}
