"""Clusterings: TEMI's heads, trained in a run folder, and the clusters that need no training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.schedule import EveryEpochs
from callbacks.snapshots import Snapshots
from callbacks.throughput import ImageProgressBar
from callbacks.utilization import UtilizationRatio
from datamodules.backbones.clip_text import embed_class_names
from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.embeddings.embeddings import Embeddings
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for
from datamodules.stream import split_batch
from lightning_modules.clustering.clustering_settings import (
    CLIPSettings,
    KMeansSettings,
    LabelsSettings,
    RandomSettings,
    TEMISettings,
)
from lightning_modules.clustering.kmeans import kmeans, random_groups, zero_shot
from lightning_modules.temi_module import TEMIModule
from pipeline.pictures.chart import draw_png
from pipeline.pictures.cluster_pictures import thumbnails, write_pictures
from pipeline.pictures.curves import history_chart
from pipeline.running.cluster_scores import cluster_summary
from pipeline.running.condition import Condition
from pipeline.running.fit import fit, hyperparameters
from pipeline.running.run_folder import write_summary
from pipeline.running.trainer_settings import TrainerSettings
from storage.errors import UserError

SAME = 1e-5  # embeddings of equal images differ by less, as a share of the largest value: rounding
UTILIZATION_LOOKS = 20  # how often the whole data set is assigned during the training
METHODS = {"temi": "TEMI", "kmeans": "k-means", "labels": "given labels", "random": "random clusters", "clip": "CLIP"}


@dataclass(frozen=True)
class Clustering:
    """One clustering of one data set.

    Attributes:
        condition: the settings that decide it.
        source: the images.
        folder: of the run.
        map_images, page_images: images on the map of the embeddings and on `clusters.html`; 0: none such.
        loggers, more_callbacks: names of those of TEMI's training that the user has asked for.
    """

    condition: Condition
    source: ImageSource
    folder: Path
    map_images: int
    page_images: int
    loggers: Sequence[str] = ("tensorboard",)
    more_callbacks: Sequence[str] = ()

    def temi_data(self, world_size: int) -> EmbeddingDataModule:
        """The pairs that TEMI is trained on.

        Raises:
            UserError: there are no embeddings yet, or the batch does not fit the data set or the devices.
        """
        settings = self.condition.clustering
        assert isinstance(settings, TEMISettings)
        split_batch(settings.batch_size, world_size)
        embeddings = self._embeddings()
        return EmbeddingDataModule(
            embeddings,
            self.condition.neighbours(embeddings),
            batch_size=settings.batch_size,
            num_neighbours=settings.num_neighbours,
            seed=self.condition.seed,
            standardise=settings.standardise,
        )

    def train_temi(self, data: EmbeddingDataModule, trainer: TrainerSettings, overwrite: bool = False) -> PseudoLabels:
        """Train the heads, assign every image by the best teacher head, and write that head here and into the cache."""
        settings, embeddings = self.condition.clustering, data.embeddings
        assert isinstance(settings, TEMISettings)
        torch.manual_seed(self.condition.seed)
        module = TEMIModule(settings, data.dim, data.steps_per_epoch)
        every_epochs = max(1, settings.max_epochs // UTILIZATION_LOOKS)
        images = self.thumbnails.gather if self.source.has_images else None
        utilization = UtilizationRatio(data.evaluation_batches, images, every_epochs)
        fit(
            replace(trainer, gradient_clip_val=None, sync_batchnorm=False),  # they are the diffusion model's
            self.folder,
            module,
            data,
            [
                utilization,
                Snapshots(self.folder / "snapshots", EveryEpochs(every_epochs)),
                ImageProgressBar(settings.batch_size, module.max_steps * settings.batch_size, "TEMI", unit="pair"),
            ],
            max_steps=module.max_steps,
            images_per_step=settings.batch_size,
            precision=settings.precision,
            shown=hyperparameters(self.condition.dataset, self.condition.backbone, settings, seed=self.condition.seed)
            | {"Learning rate": settings.lr},
            outcomes=("temi/utilization_ratio", "train/loss"),
            log_every_steps=max(1, min(50, data.steps_per_epoch)),
            overwrite=overwrite,
            loggers=self.loggers,
            more_callbacks=self.more_callbacks,
        )
        inputs, scaling = embeddings.head_inputs(settings.standardise), embeddings.scaling(settings.standardise)
        cluster_ids, confidence = (found.cpu() for found in module.predict(inputs))
        head = module.clustering_head(*scaling, embeddings.meta["backbone"])
        if module.global_rank == 0:
            made_from = {"dataset": self.source.name, **self.condition.head_made_from(self.source)}
            for file in (self.folder / "head.safetensors", self.condition.head_path(self.source)):
                head.save_pretrained(file, **made_from)
            y_name = "utilization ratio (clusters used / C)"
            chart = history_chart("utilization", utilization.history, self.title, "epochs", y_name)
            draw_png(chart, self.folder / "utilization.png")
        return self._pseudo_labels(cluster_ids, settings.num_clusters, confidence)

    def without_training(self) -> PseudoLabels:
        """k-means, the given labels, random clusters, or CLIP's zero-shot classes."""
        settings, source = self.condition.clustering, self.source
        everyone = torch.ones(len(source))
        if isinstance(settings, LabelsSettings):
            assert source.labels is not None
            names = source.class_names
            num_clusters = len(names) if names else int(source.labels.max()) + 1
            return self._pseudo_labels(source.labels, num_clusters, everyone, names)
        if isinstance(settings, CLIPSettings):
            names = self.condition.class_names(source)
            images = self._embeddings().values
            texts = embed_class_names(self.condition.backbone, names, settings.prompt)
            cluster_ids, confidence = zero_shot(images, texts.embeddings, texts.logit_scale)
            return self._pseudo_labels(cluster_ids, len(names), confidence, names)
        assert isinstance(settings, KMeansSettings)
        if settings.num_clusters > len(source):
            settings.refuse("num_clusters", f"there are {len(source)} images, so a number up to that is expected")
        if isinstance(settings, RandomSettings):
            cluster_ids = random_groups(len(source), settings.num_clusters, self.condition.seed)
            return self._pseudo_labels(cluster_ids, settings.num_clusters, everyone)
        values = self._embeddings().values
        cluster_ids, confidence = kmeans(values, settings.num_clusters, self.condition.seed)
        return self._pseudo_labels(cluster_ids, settings.num_clusters, confidence)

    def write(self, labels: PseudoLabels) -> list[Path]:
        """Pseudo-labels, pictures, whose paths it returns, and the summary into the folder; then into the cache.

        What lies in the cache is taken for done, so nothing may be missing then.
        """
        source, condition = self.source, self.condition
        labels.save(self.folder / "pseudo_labels.safetensors")
        labels.save_csv(self.folder / "pseudo_labels.csv")
        shown = condition.mapped(source, self.map_images)
        names = condition.names(labels)
        looks = names, self.page_images, self.loggers
        pictures = write_pictures(self.folder, labels, self.thumbnails, shown, self.title, *looks)
        path = condition.pseudo_labels_path(source)
        write_summary(self.folder, "cluster", cluster_summary(labels, source, path), condition.inputs(source))
        labels.save(path)
        return pictures

    @property
    def thumbnails(self) -> Any:
        """The images as pictures show them."""
        return thumbnails(self.source, self.condition.dataset.resolution, self.condition.dataset.channels)

    @property
    def title(self) -> str:
        """What stands above the pictures: `digits, TEMI with β = 0.6, C = 40`."""
        settings = self.condition.clustering
        title = f"{self.source.name}, {METHODS[settings.method]}"
        if isinstance(settings, TEMISettings):
            beta = f" with β = {settings.beta}" if settings.objective == "temi" else ""  # the others have none
            title = f"{self.source.name}, {settings.objective.upper()}{beta}"
        named = isinstance(settings, LabelsSettings | CLIPSettings)  # as many clusters as there are names
        return title if named else f"{title}, C = {settings.num_clusters:,}"

    def _embeddings(self) -> Embeddings:
        """The embeddings of the images.

        Raises:
            UserError: they are all the same, but for rounding.
        """
        embeddings = self.condition.embeddings(self.source)
        values = embeddings.values
        if len(values) > 1 and bool((values - values[0]).abs().amax() <= SAME * values.abs().amax()):
            if self.condition.of_file:
                raise UserError(f"embeddings={self.condition.backbone.path}: all {len(values):,} rows are the same.")
            raise UserError(
                f"{self.source.name}: all {len(self.source):,} images have the same embedding by "
                f"backbone={self.condition.backbone.name}, so they are one cluster. Look at the contact sheet of "
                "`embed`; set another data set or backbone, or conditioning=none to train without clusters."
            )
        return embeddings

    def _pseudo_labels(
        self, cluster_ids: Tensor, num_clusters: int, confidence: Tensor, names: list[str] | None = None
    ) -> PseudoLabels:
        """The artifact's content, with the description of what made it."""
        source, condition = self.source, self.condition
        method = condition.clustering.method
        meta = {"made_from": condition.description(source), "method": method, **made_for(source)}
        meta["source"] = source.fingerprint
        if names:
            meta["cluster_names"] = names
        return PseudoLabels(cluster_ids.long(), num_clusters, confidence.float(), list(source.ids), meta)
