"""What a stage reads, built from the configuration; where it is missing, the error names the command that makes it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity
from datamodules.backbones.clip_text import read_class_names
from datamodules.embeddings.embeddings import Embeddings, has_embeddings, load_embeddings
from datamodules.embeddings.neighbours import load_neighbours
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import ImageSource, open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, pseudo_labels_path, read_assignments
from storage.errors import UserError
from storage.fingerprints import fingerprint


def plain(node: DictConfig | ListConfig) -> dict[str, Any]:
    """A config node as plain containers."""
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def source_of(cfg: DictConfig) -> ImageSource:
    """The images of `dataset=`."""
    settings = plain(cfg.dataset) | {"path": cfg.dataset.path}  # where it is ???, this says so
    return open_source(DatasetSettings(**settings), cfg.cache_dir)


def identity_of(cfg: DictConfig) -> dict[str, Any]:
    """What tells the backbone of `backbone=` from any other: name, weights' digests, processing."""
    settings = BackboneSettings(**plain(cfg.backbone))
    return backbone_identity(settings, cfg.dataset.resolution, cfg.dataset.channels, cfg.cache_dir)


def embeddings_of(cfg: DictConfig, source: ImageSource) -> Embeddings:
    """The cached embeddings of `source`."""
    return load_embeddings(source, identity_of(cfg), cfg.cache_dir)


def embeddings_if_there(cfg: DictConfig, source: ImageSource) -> Embeddings | None:
    """The cached embeddings of `source` for a picture that can do without; None where they are not there."""
    if not has_embeddings(cfg.cache_dir, source):  # then don't ask for the backbone's weights, a download maybe
        return None
    try:
        return embeddings_of(cfg, source)
    except UserError:
        return None


def neighbours_of(cfg: DictConfig, embeddings: Embeddings) -> Tensor:
    """The cached nearest neighbours, int64 [N, k], that TEMI draws its pairs from."""
    k, search = cfg.clustering.num_neighbours, cfg.clustering.neighbour_search
    return load_neighbours(embeddings, k, cfg.cache_dir, search).indices


def check_clustering(cfg: DictConfig, source: ImageSource, before_embedding: bool = False) -> None:
    """Refuse numbers that no clustering can serve; before embedding, only those that no data set could.

    Raises:
        UserError: fewer than two clusters, more clusters than images, or labels asked for and absent.
    """
    clustering = cfg.clustering
    if clustering.method == "labels":
        if source.labels is None:
            raise UserError(
                f"clustering=labels: the data set {source.name!r} has no labels. "
                "Say where they are with dataset.labels=folders or dataset.labels=FILE.csv, or type clustering=temi."
            )
        return
    if clustering.method == "clip":
        check_clip(cfg, source)
        return
    num_clusters = clustering.num_clusters
    if not isinstance(num_clusters, int) or num_clusters < 2:
        raise UserError(
            f"clustering.num_clusters={num_clusters}: at least 2 clusters are needed. "
            "Type clustering.num_clusters=100, or conditioning=none to train without clusters."
        )
    if num_clusters > len(source) and not before_embedding:
        raise UserError(
            f"clustering.num_clusters={num_clusters}, but {source.name!r} has {len(source)} images. "
            f"Type clustering.num_clusters={max(2, len(source) // 20)} or less."
        )


def check_clip(cfg: DictConfig, source: ImageSource) -> None:
    """Refuse a backbone that shares no space with text, class names that are none, and a prompt without a place."""
    if cfg.backbone.get("output") != "projected":
        raise UserError(
            f"clustering=clip: backbone={cfg.backbone.name} shares no space with text. "
            "Type backbone=clip_vitl14 clustering=clip, for embed and cluster alike."
        )
    class_names_of(cfg, source)
    if cfg.clustering.prompt.count("{}") != 1 or cfg.clustering.prompt.count("{") != 1:
        raise UserError(
            f"clustering.prompt={cfg.clustering.prompt}: one {{}} is expected in the place of the class name, "
            "such as 'clustering.prompt=\"a photo of a {}.\"'."
        )


def class_names_of(cfg: DictConfig, source: ImageSource) -> list[str]:
    """The class names that CLIP chooses from."""
    return read_class_names(plain(cfg.clustering)["class_names"], source.class_names)


def not_needed(cfg: DictConfig, stage: str) -> str | None:
    """Why `embed` or `cluster` has nothing to do for this training; None where it is needed."""
    if cfg.conditioning == "none":
        return "conditioning=none"
    if cfg.assignments is not None:
        return f"assignments={cfg.assignments}"
    if stage == "embed" and cfg.clustering.method in ("labels", "random"):
        return f"clustering={cfg.clustering.method}"
    return None


def pseudo_label_description(cfg: DictConfig, source: ImageSource) -> dict[str, Any]:
    """All that decides the pseudo-labels: the images, the backbone where one is used, the method, the seed."""
    method, clustering = cfg.clustering.method, plain(cfg.clustering)
    if method == "temi":
        precision = cfg.trainer.precision  # of the training: bf16 and float32 end in different clusters
        return {"backbone": identity_of(cfg), "clustering": clustering, "seed": cfg.seed, "precision": precision}
    description: dict[str, Any] = {"method": method}
    if method == "clip":
        names = class_names_of(cfg, source)
        return description | {"backbone": identity_of(cfg), "class_names": names, "prompt": clustering["prompt"]}
    if method != "labels":  # what a data set's YAML sets for TEMI is nothing to the other methods
        description |= {"num_clusters": clustering["num_clusters"], "seed": cfg.seed}
    if method == "kmeans":
        description["backbone"] = identity_of(cfg)
    return description


def pseudo_labels_file(cfg: DictConfig, source: ImageSource) -> Path:
    """Where the pseudo-labels of this configuration lie, or will lie."""
    return pseudo_labels_path(cfg.cache_dir, source, pseudo_label_description(cfg, source))


def pseudo_labels_of(cfg: DictConfig, source: ImageSource) -> PseudoLabels | None:
    """The groups to train on: `assignments=`, else the cached pseudo-labels; None for `conditioning=none`."""
    if cfg.conditioning == "none":
        return None
    if cfg.conditioning != "clusters":
        raise UserError(f"conditioning={cfg.conditioning}: type conditioning=clusters or conditioning=none.")
    if cfg.assignments is not None:
        labels = read_assignments(str(cfg.assignments), source)
        if labels.num_used < 2:
            raise UserError(
                f"assignments={cfg.assignments}: all {len(source)} images are in one cluster. "
                "Type conditioning=none to train without clusters."
            )
        return labels
    check_clustering(cfg, source)
    return PseudoLabels.load(pseudo_labels_file(cfg, source))


def pseudo_labels_fingerprint(labels: PseudoLabels | None) -> str | None:
    """Changes with any image's cluster."""
    return None if labels is None else fingerprint([labels.num_clusters, labels.ids, labels.cluster_ids.tolist()])


def denoiser_file(path: Path, setting: str = "ckpt") -> Path:
    """The denoiser that a `setting` names: the file itself, or the run folder that holds it.

    Raises:
        UserError: there is none.
    """
    of_what = "a training run, such as runs/digits/train-temi-40/TIME; `make train` makes one"
    return file_of_run(setting, path, "denoiser.safetensors", of_what)


def typed_head_file(path: Path) -> Path:
    """The clustering head that `head=` names: the file itself, or the run folder that holds it.

    Raises:
        UserError: there is none.
    """
    of_what = "a TEMI clustering, such as runs/digits/cluster-temi-40/TIME; `cedm cluster clustering=temi` makes one"
    return file_of_run("head", path, "head.safetensors", of_what)


def file_of_run(setting: str, path: Path, name: str, of_what: str) -> Path:
    """A file, or the one of this name in a folder; a `UserError` that names the setting where there is none."""
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{setting}={path}: there is no {file}. Give a {name} or the folder of {of_what}.")
    return file
