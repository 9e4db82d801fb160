"""How a clustering uses its clusters and, with labels, how it agrees with them: what summaries and tables say."""

from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization

AGREEMENT = ("accuracy", "nmi", "ami", "ari")  # in percent
COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", *AGREEMENT)


def cluster_scores(cluster_ids: Tensor, num_clusters: int, labels: Tensor | None) -> dict[str, float]:
    """Use of the clusters and, with labels, agreement with them: `COLUMNS` → value."""
    utilization = ClusterUtilization(num_clusters, sync_on_compute=False)  # rank 0 alone comes here
    utilization.update(cluster_ids)
    use = utilization.compute()
    scores = {
        "num_clusters": num_clusters,
        "num_used": int(use["num_used"]),
        "utilization_ratio": float(use["utilization_ratio"]),
        "kl_from_uniform": float(use["kl_from_uniform"]),
    }
    if labels is not None:
        agreement = ClusteringScores(int(labels.max()) + 1, num_clusters, sync_on_compute=False)
        agreement.update(cluster_ids, labels)
        scores |= {name: float(value) for name, value in agreement.compute().items() if name in AGREEMENT}
    return scores


def cluster_summary(labels: PseudoLabels, source: ImageSource, path: Path) -> dict[str, Any]:
    """What `summary.json` says of pseudo-labels that lie in `path`."""
    return {**cluster_scores(labels.cluster_ids, labels.num_clusters, source.labels), "pseudo_labels": str(path)}
