"""What a diffusion model is conditioned on, and all that decides it: images, backbone, clustering, seed.

`embed`, `cluster`, `bound`, `train` and studies ask here for embeddings, neighbours and pseudo-labels, so that all of
them mean the same files.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity
from datamodules.backbones.clip_text import read_class_names
from datamodules.embeddings.computed_elsewhere import import_embeddings
from datamodules.embeddings.embeddings import Embeddings, load_embeddings
from datamodules.embeddings.map import MappedEmbeddings
from datamodules.embeddings.neighbours import make_neighbours
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.cluster_names import names_of, read_cluster_names
from datamodules.pseudo_labels.pseudo_labels import MOST_CLUSTERS, PseudoLabels, pseudo_labels_path, read_assignments
from lightning_modules.clustering.assignment import KIND as HEAD
from lightning_modules.clustering.clustering_settings import (
    TEMI_VERSION,
    CLIPSettings,
    ClusteringSettings,
    KMeansSettings,
    LabelsSettings,
    TEMISettings,
)
from pipeline.settings.schemas import SharedSettings
from storage.artifacts import entry_path
from storage.errors import UserError
from storage.fingerprints import file_stem, fingerprint


@dataclass(frozen=True)
class Condition:
    """The settings that decide a model's condition. Methods that need the images are given their `source`."""

    dataset: DatasetSettings
    backbone: BackboneSettings
    clustering: ClusteringSettings
    conditioning: str
    assignments: str | None
    cluster_names: str | None
    noise: str | None
    seed: int
    cache_dir: str

    @classmethod
    def of(cls, settings: SharedSettings) -> "Condition":
        """The condition that a command's settings describe."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    @cached_property
    def backbone_identity(self) -> dict[str, Any]:
        """What tells the backbone from any other: its kind, its weights' digests, its processing."""
        dataset = self.dataset
        return backbone_identity(self.backbone, dataset.resolution, dataset.channels, self.cache_dir, fit=dataset.fit)

    @property
    def method(self) -> str:
        """none, assignments, or the clustering's method: temi, kmeans, labels, random, clip."""
        if self.conditioning == "none":
            return "none"
        return "assignments" if self.assignments is not None else self.clustering.method

    def needs_no(self, stage: str) -> str | None:
        """The setting for which `embed` or `cluster` has nothing to do; None where the stage is needed."""
        if self.conditioning == "none":
            return "conditioning=none"
        if self.assignments is not None:
            return f"assignments={self.assignments}"
        if stage == "embed" and self.clustering.method in ("labels", "random"):
            return f"clustering={self.clustering.method}"
        return None

    @property
    def of_file(self) -> bool:
        """Whether the embeddings come from `embeddings=FILE`."""
        return self.backbone.kind == "embeddings"

    def inputs(self, source: ImageSource) -> dict[str, str]:
        """What a run that needs embeddings is made from, for its summary and its identity."""
        digest = {"embeddings": fingerprint(self.backbone_identity)} if self.of_file else {}
        return {"dataset": source.fingerprint, **digest}

    def embeddings(self, source: ImageSource) -> Embeddings:
        """The cached embeddings of the images; those of a file are taken into the cache first."""
        if self.of_file:
            return import_embeddings(str(self.backbone.path), source, self.backbone_identity, self.cache_dir)
        return load_embeddings(source, self.backbone_identity, self.cache_dir)

    def mapped(self, source: ImageSource, map_images: int) -> MappedEmbeddings | None:
        """The cached embeddings for pictures, which can do without; None where they are not there."""
        by_any = (Path(self.cache_dir) / "embeddings").glob(f"{file_stem(source.name)}-*.safetensors")
        if not self.of_file and not any(by_any):  # don't ask for the backbone's weights, a download maybe
            return None
        try:
            found = self.embeddings(source)
        except UserError:
            if self.of_file:  # these were asked for
                raise
            return None
        return MappedEmbeddings(found.values, found.fingerprint, source.name, self.cache_dir, map_images)

    def neighbours(self, embeddings: Embeddings) -> Tensor:
        """The nearest neighbours, int64 [N, k], that TEMI draws its pairs from: cached, or found now and kept there."""
        assert isinstance(self.clustering, TEMISettings)
        k, search = self.clustering.num_neighbours, self.clustering.neighbour_search
        return make_neighbours(embeddings, k, self.cache_dir, search=search).indices

    def class_names(self, source: ImageSource) -> list[str]:
        """The class names that CLIP chooses from."""
        assert isinstance(self.clustering, CLIPSettings)
        of_data_set = None if source.classes_are_ids else source.class_names
        return read_class_names(self.clustering.class_names, of_data_set)

    def check(self, source: ImageSource) -> None:
        """Refuse a clustering that these images or this backbone cannot serve.

        Raises:
            UserError: more clusters than images, labels asked for and absent, or a backbone without text for CLIP.
        """
        if self.cluster_names is not None:  # a mistake in there is told before hours of training
            num_clusters = getattr(self.clustering, "num_clusters", None) or MOST_CLUSTERS
            read_cluster_names(Path(self.cluster_names), num_clusters)
        if isinstance(self.clustering, LabelsSettings):
            check_labels(source)
        elif isinstance(self.clustering, CLIPSettings):
            if self.backbone.output != "projected":
                raise UserError(
                    f"clustering=clip: backbone={self.backbone.name} shares no space with text. "
                    "Set backbone=clip_vitl14 clustering=clip, for embed and cluster alike."
                )
            self.class_names(source)
        elif self.clustering.num_clusters is not None and self.clustering.num_clusters > len(source):
            fewer = max(2, len(source) // 20)
            expected = f"{source.name!r} has {len(source)} images. Set clustering.num_clusters={fewer} or less"
            self.clustering.refuse("num_clusters", expected)

    def description(self, source: ImageSource) -> dict[str, Any]:
        """All that decides the pseudo-labels: the backbone where one is used, the method, the seed."""
        clustering = self.clustering
        description: dict[str, Any] = {"method": clustering.method}
        if not isinstance(clustering, LabelsSettings | CLIPSettings):
            description["seed"] = self.seed
        if isinstance(clustering, TEMISettings):
            description |= {"clustering": clustering.identity(), "version": TEMI_VERSION}
        elif isinstance(clustering, CLIPSettings):
            description |= {"class_names": self.class_names(source), "prompt": clustering.prompt}
        elif isinstance(clustering, KMeansSettings):  # random groups, too
            description["num_clusters"] = clustering.num_clusters
        if self.needs_no("embed") is None:
            description["backbone"] = self.backbone_identity
        return description

    def pseudo_labels_path(self, source: ImageSource) -> Path:
        """Where the pseudo-labels lie in the cache, or will lie."""
        return pseudo_labels_path(self.cache_dir, source, self.description(source))

    def head_path(self, source: ImageSource) -> Path:
        """Where the clustering head that made the pseudo-labels lies in the cache; TEMI alone has one."""
        path = self.pseudo_labels_path(source)
        made_from = {"backbone": self.backbone_identity, **self.head_made_from(source)}
        return entry_path(path.with_name(f"{path.stem}-head.safetensors"), HEAD, made_from)

    def head_made_from(self, source: ImageSource) -> dict[str, Any]:
        """What a clustering head says of its making."""
        return {"source": source.images_fingerprint, "made_from": self.description(source)}

    def pseudo_labels(self, source: ImageSource) -> PseudoLabels | None:
        """The clusters to train on: `assignments=`, else the cached pseudo-labels; None for `conditioning=none`.

        With `noise=drop` they are of fewer images, those to train on: `source.only(labels.ids)`.

        Raises:
            UserError: the clusters cannot be had, or all images are in one.
            MissingArtifactError: they have not been made yet.
        """
        if self.conditioning == "none":
            return None
        if self.assignments is None:
            self.check(source)
            labels = PseudoLabels.load(self.pseudo_labels_path(source))
        else:
            labels = read_assignments(self.assignments, source, noise=self.noise)
        if labels.num_used < 2:
            origin = f"clustering={self.method}" if self.assignments is None else f"assignments={self.assignments}"
            raise UserError(
                f"{origin}: all {len(source):,} images are in one cluster, which tells a diffusion model nothing. "
                "Set conditioning=none to train without clusters, or cluster other images."
            )
        return labels

    def names(self, labels: PseudoLabels) -> dict[int, str]:
        """Cluster → what people call it, of those that have a name."""
        return names_of(labels, self.cluster_names)

    def name(self, labels: PseudoLabels | None) -> str:
        """`none`, `temi-40`, `assignments-100` …: for names of run folders and titles."""
        return "none" if labels is None else f"{self.method}-{labels.num_clusters}"


def pseudo_labels_fingerprint(labels: PseudoLabels) -> str:
    """Changes with any image's cluster."""
    return fingerprint([labels.num_clusters, labels.ids, labels.cluster_ids.tolist()])


def check_labels(source: ImageSource) -> None:
    """Refuse `clustering=labels` for a data set without labels, or with images that have none."""
    if source.labels is None:
        why = f" ({source.labels_note})" if source.labels_note else ""
        raise UserError(
            f"clustering=labels: the data set {source.name!r} has no labels{why}. Say where they are with "
            "dataset.labels=folders or dataset.labels=FILE.csv, or set clustering=temi."
        )
    lacking = (source.labels == UNLABELLED).nonzero().flatten().tolist()
    if lacking:
        raise UserError(
            f"clustering=labels: {len(lacking):,} of {len(source):,} images of {source.name!r} have no label, the "
            f"first is {source.ids[lacking[0]]!r}. Give each image one, in a file with dataset.labels=FILE.csv, or "
            "set clustering=temi."
        )
