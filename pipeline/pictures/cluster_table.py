"""The clusters of a data set as a table: sizes, confidences and purities."""

from collections.abc import Sequence
from typing import Any

import torch

from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from metrics.clustering import cluster_purity


def table_of(labels: PseudoLabels, source: ImageSource) -> dict[str, Sequence[Any]]:
    """Columns with a value for each cluster: its images, their mean confidence where there is one.

    With labels also the share of its most frequent class, NaN without labelled images, and that class's name; where
    some images have no label, how many have one.
    """
    columns: dict[str, Sequence[Any]] = {"cluster": range(labels.num_clusters), "images": labels.counts.tolist()}
    if labels.has_confidence:
        sums = torch.zeros(labels.num_clusters, dtype=torch.float64)
        means = sums.index_add_(0, labels.cluster_ids, labels.confidence.double()) / labels.counts
        columns["mean_confidence"] = means.tolist()
    if source.labels is not None:
        labelled = source.labels != UNLABELLED
        cluster_ids, true = labels.cluster_ids[labelled], source.labels[labelled]
        purity, majority = cluster_purity(cluster_ids, true, labels.num_clusters)  # [C] each
        names = [source.class_names[label] if source.class_names else str(label) for label in majority.tolist()]
        classes = [f"class {name}" if name.isdigit() else name for name in names]  # a mere number says too little
        columns |= {"purity": purity.tolist(), "largest_class": classes}
        if not labelled.all():
            columns["labelled"] = cluster_ids.bincount(minlength=labels.num_clusters).tolist()
            columns["largest_class"] = [
                name if count else "" for name, count in zip(classes, columns["labelled"], strict=True)
            ]
    return columns
