"""The images that `dataset.holdout` keeps apart, with the clusters that the clustering finds them in."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from callbacks.held_out import HeldOutLoss, Sample
from datamodules.backbones.clip_text import embed_class_names
from datamodules.image_datamodule import ImageDataModule
from datamodules.images.image_store import ImageStore
from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource, evenly_spaced
from datamodules.pseudo_labels.pseudo_labels import MOST_CLUSTERS, PseudoLabels, read_assignments
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.clustering_settings import CLIPSettings
from lightning_modules.clustering.kmeans import nearest_cluster, random_groups, zero_shot
from pipeline.running.condition import Condition
from storage.errors import UserError

MOST_IMAGES = 2048  # of each side, that a model is measured on along its training


def held_out_clusters(condition: Condition, source: ImageSource, labels: PseudoLabels) -> Tensor:
    """The cluster of each image that `source` holds out, int64 [H], by what clustered the others into `labels`.

    UNLABELLED is an image without one. Random clusters are drawn for them as for the others.

    Raises:
        UserError: what it takes is not there.
    """
    held_out, method = source.held_out, condition.method
    assert held_out is not None
    if method == "assignments":
        found = read_assignments(str(condition.assignments), held_out, MOST_CLUSTERS, condition.noise and "drop")
        clusters = torch.full((len(held_out),), labels.meta.get("noise", UNLABELLED))
        clusters[found.rows_in(held_out.ids)] = found.cluster_ids
        return clusters
    if method == "labels":
        return torch.full((len(held_out),), UNLABELLED) if held_out.labels is None else held_out.labels
    if method == "random":
        return random_groups(len(held_out), labels.num_clusters, condition.seed)
    values = condition.embeddings(held_out).values
    if method == "temi":
        return ClusteringHead.from_pretrained(condition.head_path(source)).assign(values)[0]
    if method == "kmeans":
        return nearest_cluster(values, condition.embeddings(source).values, labels.cluster_ids)
    assert isinstance(condition.clustering, CLIPSettings)
    texts = embed_class_names(condition.backbone, condition.class_names(source), condition.clustering.prompt)
    return zero_shot(values, texts.embeddings, texts.logit_scale)[0]


def held_out_loss(
    condition: Condition,
    data: ImageDataModule,
    every_kimg: float,
    batch_size: int,
    path: Path,
    say: Callable[[str], None],
) -> HeldOutLoss | None:
    """What measures the loss on images held out; None where there are none, or nobody knows their clusters.

    Images of a cluster that has no training image are left out, as the model knows no label for them.
    """
    source, labels = data.source, data.pseudo_labels
    if source.held_out is None:
        return None
    known, indices = torch.arange(len(source.held_out)), None
    if labels is not None:
        try:
            clusters = held_out_clusters(condition, source, labels)  # [H]
        except UserError as error:
            say(f"Note: no loss on the images held out, as their clusters are not known: {error}")
            return None
        known = torch.isin(clusters, labels.used_clusters).nonzero().flatten()
        indices = torch.searchsorted(labels.used_clusters, clusters[known])
        if len(known) < len(clusters):
            say(f"Note: {len(clusters) - len(known)} images held out are of clusters without a training image.")
    if len(known) < 2:
        say("Note: no loss on images held out: it takes two of known clusters or more.")
        return None
    rows = evenly_spaced(len(known), MOST_IMAGES)
    store = ImageStore(source.held_out, data.resolution, data.channels, data.memory_gb)
    places = source.held_out.places[known[rows]]
    held_out = Sample(store.gather, known[rows], places, None if indices is None else indices[rows])
    assert data.store is not None
    rows = evenly_spaced(len(source), min(len(source.held_out), MOST_IMAGES))  # the same for every clustering
    training = Sample(data.store.gather, rows, source.places[rows], None if labels is None else labels.compact()[rows])
    meta = {
        "images": source.undivided.images_fingerprint,
        "frequencies": [] if labels is None else labels.frequencies.tolist(),
    }
    return HeldOutLoss(held_out, training, every_kimg, batch_size, path, meta)
