"""The typed settings of every command: the config groups, each of which its own room describes, and the keys beside."""

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.embeddings.embedding_settings import EmbeddingSettings
from datamodules.images.dataset_settings import DatasetSettings
from lightning_modules.clustering.bound_settings import BoundSettings
from lightning_modules.clustering.clustering_settings import METHODS, ClusteringSettings
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.training_settings import TrainingSettings
from pipeline.evaluation.average_settings import AverageSettings
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.evaluation_settings import EvaluationSettings
from pipeline.evaluation.generate_settings import GenerateSettings
from pipeline.running.run_files import denoiser_file, head_file
from pipeline.running.trainer_settings import CALLBACKS, LOGGERS, TrainerSettings
from pipeline.settings.presets import PresetSettings
from pipeline.studies.study_settings import StudySettings
from storage.errors import UserError
from storage.files import MARK
from storage.hub import REPOSITORY
from storage.settings import REQUIRED, Settings, names_in, setting


@dataclass(frozen=True)
class SharedSettings(Settings):
    """What every command knows (`configs/base.yaml`)."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    clustering: ClusteringSettings = field(default_factory=ClusteringSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    preset: PresetSettings = field(default_factory=PresetSettings)
    conditioning: str = setting(
        "clusters", "train on the pseudo-labels, or without any condition", choices=("clusters", "none")
    )
    embeddings: str | None = setting(
        None, "FILE[::key] of embeddings [N, D] computed elsewhere, in place of a backbone's", path=True
    )
    assignments: str | None = setting(
        None, "FILE[::key] of cluster ids, in place of the cached pseudo-labels", path=True
    )
    cluster_names: str | None = setting(
        None, "CSV file with the columns cluster and name, for grids, reports and clusters.html", path=True
    )
    noise: str | None = setting(
        None,
        "images in no cluster (−1) of assignments=: own: one more cluster; drop: left out; null: they are refused",
        choices=("own", "drop"),
    )
    init_from: str | None = setting(
        None, "denoiser.safetensors to start from (fine-tuning)", identifies=False, path=True
    )
    logger: Any = setting(
        "tensorboard",
        "where a training's curves and pictures go; or a list",
        choices=(*LOGGERS, "none"),
        identifies=False,
    )
    callbacks: Any = setting(
        [], "more of Lightning's callbacks for a training, by name", choices=tuple(CALLBACKS), identifies=False
    )
    seed: int = setting(0, "of everything that is random", low=0, high=2**63 - 1)
    cache_dir: str = setting(
        "cache", "embeddings, neighbours, pseudo-labels, reference statistics; safe to delete", path=True
    )
    map_images: int = setting(2000, "images on the 2-D map of the embeddings, a random sample; 0: no map", low=0)
    page_images: int = setting(
        50_000, "images on clusters.html, above that a random sample; 0: no page", low=0, high=50_000
    )
    run_dir: str | None = setting(
        None, "null: runs/<dataset>/<what>/<time>, or the unfinished run of these settings", path=True
    )
    overwrite: bool = setting(False, "start afresh; what was there is kept aside")
    confirm: bool = setting(
        False, "train on images of your own on a CPU even where that takes more than a day", identifies=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        of_file = self.backbone.kind == "embeddings"
        if self.embeddings is not None and not of_file:
            self.refuse("embeddings", f"it takes the place of backbone={self.backbone.name}. Leave one of them out")
        if self.embeddings is None and (of_file or self.dataset.kind == "embeddings"):
            self.refuse("embeddings", "a file is expected. Set embeddings=FILE, which chooses the backbone, too")
        if self.noise is not None and self.assignments is None:
            self.refuse("noise", "it is about images in no cluster of assignments=FILE. Leave it out")
        needed = {CALLBACKS[name].needs: name for name in names_in(self.callbacks)}
        if "logger" in needed and not self.loggers:
            self.refuse("callbacks", f"{needed['logger']} writes to a logger, and logger={self.logger}. Set logger=csv")
        if "bar" in needed and not self.trainer.enable_progress_bar:
            self.refuse("callbacks", f"{needed['bar']} is a progress bar. Set trainer.enable_progress_bar=true")

    @property
    def loggers(self) -> tuple[str, ...]:
        """Names of the loggers of a training."""
        return tuple(name for name in names_in(self.logger) if name != "none")

    def check_files(self) -> None:
        """Look for the files that settings name: when the command starts, and not when it is planned.

        Raises:
            UserError: one is not there, or the run would be written among images.
        """
        if self.init_from is not None:
            denoiser_file(self.init_from, "init_from")
        if self.run_dir is not None and (image := image_in(Path(self.run_dir))):
            expected = f"{image} lies there, and the run's pictures would be mixed with yours. Another is expected"
            self.refuse("run_dir", expected)


def image_in(folder: Path) -> Path | None:
    """An image at any depth of a folder, told by its name; None where there is none but those of runs."""
    for path, folders, files in os.walk(folder):
        if {"settings.json", MARK} & {*files} or "snapshots" in folders:  # a run, or a part of the cache
            folders.clear()
            continue
        formats: Any = importlib.import_module("datamodules.images.formats")  # with Pillow, which the door does without
        if found := next((name for name in files if formats.suffix_of(name) in formats.suffixes()), None):
            return Path(path, found)
    return None


@dataclass(frozen=True)
class ScoreSettings(SharedSettings):
    """`configs/score.yaml`."""

    assignments: str = setting(
        REQUIRED, "FILE[::key]; without a key, all clusterings that the file holds are scored", path=True
    )
    labels: str | None = setting(
        None, "FILE[::key]; null: labels.* in the same file, else the labels of the data set", path=True
    )
    num_clusters: int | None = setting(
        None, "C; null: from a key that ends in clusters<C>, else the highest id + 1", low=1, high=10**7
    )


@dataclass(frozen=True)
class AssignSettings(SharedSettings):
    """`configs/assign.yaml`."""

    head: str = setting(REQUIRED, "head.safetensors, or the folder of a clustering run", path=True)

    def check_files(self) -> None:
        super().check_files()
        head_file(self.head)


@dataclass(frozen=True)
class BoundCommandSettings(SharedSettings):
    """`configs/bound.yaml`."""

    bound: BoundSettings = field(default_factory=BoundSettings)


@dataclass(frozen=True)
class GenerateCommandSettings(SharedSettings, GenerateSettings):
    """`configs/generate.yaml`."""

    def check_files(self) -> None:
        super().check_files()
        denoiser_file(self.ckpt)
        if self.head is not None:
            head_file(self.head)


@dataclass(frozen=True)
class EvaluateCommandSettings(SharedSettings, EvaluateSettings):
    """`configs/evaluate.yaml`."""

    def check_files(self) -> None:
        super().check_files()
        if self.head is not None:
            head_file(self.head)


@dataclass(frozen=True)
class AverageCommandSettings(SharedSettings, AverageSettings):
    """`configs/average.yaml`."""

    @property
    def num_images(self) -> int:
        """Images of each distance."""
        return self.num or self.evaluation.num_images

    def check_files(self) -> None:
        super().check_files()
        denoiser_file(self.run, "run")


@dataclass(frozen=True)
class ExportDatasetSettings(SharedSettings):
    """`configs/export_dataset.yaml`."""

    format: str = setting(
        "edm_zip",
        "edm_zip: a ZIP with dataset.json (EDM, EDM2, StyleGAN); folders: one for each cluster (DiT, SiT and most "
        "others); hf: a Hugging Face data set with a column of classes",
        choices=("edm_zip", "folders", "hf"),
    )


@dataclass(frozen=True)
class StudyCommandSettings(SharedSettings):
    """`configs/study.yaml`."""

    study: StudySettings = field(default_factory=StudySettings)
    bound: BoundSettings = field(default_factory=BoundSettings)


@dataclass(frozen=True)
class ReportSettings(SharedSettings):
    """`configs/report.yaml`."""

    run: Any = setting(REQUIRED, "folder of a study or of any other run; a list of runs is compared on one page")
    file: str | None = setting(
        None, "the page; null: report.html in that folder, of several comparison.html in the first", path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs or not all(isinstance(run, str) and run for run in self.runs):
            self.refuse("run", "a folder is expected, or a list of folders such as run=[runs/a,runs/b]")
        if len({path.resolve() for path in self.folders}) < len(self.runs):
            self.refuse("run", "it names a folder twice; different ones are expected")

    @property
    def runs(self) -> list[Any]:
        """What was given, as a list."""
        given = list(self.run) if isinstance(self.run, list) else [self.run]
        return [str(run) if type(run) is int else run for run in given]

    @property
    def folders(self) -> list[Path]:
        """The folders of all runs."""
        return [Path(run).expanduser() for run in self.runs]


@dataclass(frozen=True)
class ClustersSettings(SharedSettings):
    """`configs/clusters.yaml`."""

    run: str = setting(REQUIRED, "folder of a run of cluster, assign, score or train", path=True)
    file: str | None = setting(None, "the page; null: clusters.html in that folder", path=True)


@dataclass(frozen=True)
class PublishSettings(SharedSettings):
    """`configs/publish.yaml`."""

    run: str = setting(REQUIRED, "folder of a run of train", path=True)
    repo: str | None = setting(None, "repository on the hub, user/name; a dry run needs none")
    images_license: str = setting(REQUIRED, "of the images that the model was trained on: cc-by-4.0, mit, other, …")
    scores: str | None = setting(None, "folder of a run of evaluate, whose scores the card gives", path=True)
    private: bool = setting(False, "a repository that only you see, where it has to be made")
    dry_run: bool = setting(False, "write the folder `hub` into the run's, and push nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repo is None and not self.dry_run:
            self.refuse("repo", "USER/NAME is expected; or set dry_run=true")
        if self.repo is not None and not REPOSITORY.fullmatch(self.repo):
            self.refuse("repo", "USER/NAME is expected")


@dataclass(frozen=True)
class ExportSettings(SharedSettings):
    """`configs/export.yaml`."""

    run: str = setting(REQUIRED, "folder of a run of train, or a denoiser.safetensors", path=True)
    format: str = setting(
        "diffusers",
        "diffusers: a pipeline of theirs; onnx: denoiser.onnx; torch_export: denoiser.pt2",
        choices=("diffusers", "onnx", "torch_export"),
    )
    folder: str | None = setting(
        None, "where to, a folder that is not there yet; null: diffusers, onnx, … beside the model", path=True
    )

    @property
    def place(self) -> Path:
        """The folder to write."""
        return Path(self.folder) if self.folder else denoiser_file(self.run, "run").parent / self.format

    def check_files(self) -> None:
        super().check_files()
        denoiser_file(self.run, "run")
        if os.path.lexists(self.place):
            raise UserError(f"folder={self.place}: it is there already. Set folder=FOLDER, a new one.")
        if "=" in self.place.name:
            self.refuse("folder", "a name without = is expected")


@dataclass(frozen=True)
class ImportEDMSettings(SharedSettings):
    """`configs/import_edm.yaml`."""

    pickle: str = setting(REQUIRED, "the .pkl file", path=True)


def schema_of(cls: type[SharedSettings], cfg: DictConfig) -> DictConfig:
    """The structure that a composed configuration has to fit: `clustering` has the settings of its method."""
    schema = OmegaConf.structured(cls)
    _unlock(schema)
    method: Any = OmegaConf.select(cfg, "clustering.method")
    if method in METHODS:
        schema.clustering = METHODS[method]
        _unlock(schema.clustering)
    return schema


def _unlock(node: DictConfig) -> None:
    """Frozen dataclasses give read-only nodes, which nothing could be merged into."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _unlock(child)
