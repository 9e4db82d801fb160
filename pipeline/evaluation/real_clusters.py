"""The clusters of the data set's images, as the model behind the generated ones was told them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource, open_source
from pipeline.evaluation.features import GeneratedSet
from pipeline.evaluation.generated import GeneratedByModel
from pipeline.evaluation.per_cluster import FEWEST, counted
from pipeline.running.condition import Condition, pseudo_labels_fingerprint
from pipeline.running.finished_run import training_behind
from pipeline.settings.schemas import EvaluateCommandSettings


@dataclass(frozen=True)
class RealClusters:
    """The clusters of the data set's images."""

    of_images: Tensor  # int64 [M]; UNLABELLED for an image that is in none
    names: Mapping[int, str]  # of those that have one
    fingerprint: str  # of the pseudo-labels


def real_clusters(settings: EvaluateCommandSettings, sets: Sequence[GeneratedSet], source: ImageSource) -> RealClusters:
    """The data set's images by the pseudo-labels of the training that made the sets, or else by these settings.

    Raises:
        UserError: a set does not say whose cluster each image is, the pseudo-labels are not those of its model, or no
            cluster has enough images on both sides.
    """
    found = [clusters_for(settings, generated, source) for generated in sets]
    if len({one.fingerprint for one in found}) > 1:
        settings.refuse("per_cluster", "the sets are of models with different clusters. Measure each alone")
    for generated in sets:
        theirs = found[0].of_images
        counts = counted(torch.tensor(generated.cluster_ids), theirs)
        if not any(min(count) >= FEWEST for count in counts.values()):
            most = max(min(count) for count in counts.values()) if counts else 0
            said = f"no cluster has {FEWEST} images on both sides, {most} at most. Generate more"
            settings.refuse("per_cluster", f"{said}, or leave it out")
    return found[0]


def clusters_for(settings: EvaluateCommandSettings, generated: GeneratedSet, source: ImageSource) -> RealClusters:
    """The same for one set."""
    path = Path(generated.description["path"])
    if generated.cluster_ids is None:
        of_model = isinstance(generated, GeneratedByModel)
        why = f"{path} is a model without clusters" if of_model else f"{path} does not say which cluster an image is of"
        expected = "a model trained on clusters, or images with the dataset.json or labels.npy of `cedm generate`"
        settings.refuse("per_cluster", f"{why}. Give {expected}, or leave per_cluster out")
    training = training_behind(path) or settings
    if training.dataset.name != settings.dataset.name:
        whose = f"{path} was made by a model of {training.dataset.name!r}, of whose clusters these images are not"
        settings.refuse("per_cluster", f"{whose}. Set dataset={training.dataset.name}, or leave per_cluster out")
    condition = Condition.of(training)
    condition = replace(condition, cluster_names=settings.cluster_names or condition.cluster_names)
    images = source if training.dataset == settings.dataset else open_source(training.dataset, training.cache_dir)
    labels = condition.pseudo_labels(images)
    if labels is None:
        settings.refuse("per_cluster", f"conditioning=none has no clusters. Set those that {path} was trained on")
    fingerprint = pseudo_labels_fingerprint(labels)
    known = generated.denoiser.meta.get("pseudo_labels") if isinstance(generated, GeneratedByModel) else None
    if known not in (None, fingerprint):
        whose = f"{condition.name(labels)} are not the clusters that {path} was trained on"
        settings.refuse("per_cluster", f"{whose}. Set clustering=, assignments=, dataset= and seed= as in its training")
    rows = labels.rows_in(source.ids)
    of_images = torch.full((len(source),), UNLABELLED)
    of_images[rows] = labels.select([source.ids[row] for row in rows.tolist()]).cluster_ids
    return RealClusters(of_images, condition.names(labels), fingerprint)
