"""The other side of a distance: what a feature extractor says of the data set's own images, computed once."""

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity, build_backbone, frechet_name
from datamodules.backbones.transformers_backbone import TransformersBackbone
from datamodules.images.images import ImageStore
from datamodules.images.sources import ImageSource
from metrics.frechet import KIND, FeatureStatistics, Statistics
from pipeline.evaluation.features import Features, extract
from pipeline.settings.command import CONFIGS
from pipeline.settings.inputs import plain
from storage.artifacts import make_once, read_artifact, write_artifact
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.fingerprints import fingerprint

ROWS_KIND = "features"
WHOLE_IMAGE = {"crop": "none"}  # in the identity of an extractor: its embeddings may be those of cropped images


def extractor_settings(cfg: DictConfig, name: str, setting: str = "evaluation.backbone") -> dict[str, Any]:
    """The settings of the backbone `name`, with its weights from `evaluation.weights` where they are given there.

    Raises:
        UserError: there is no such backbone; the message names the `setting` that asked for it.
    """
    path = CONFIGS / "backbone" / f"{name}.yaml"
    if not path.exists():
        names = ", ".join(sorted(option.stem for option in path.parent.glob("*.yaml")))
        raise UserError(f"{setting}={name}: there is no such backbone. There are: {names}.")
    settings = plain(cfg.backbone if name == cfg.backbone.name else OmegaConf.load(path))
    weights = cfg.evaluation.weights.get(name)
    return settings if weights is None else settings | {"path": str(weights)}


def frechet_extractor(cfg: DictConfig, say: Callable[[str], None]) -> tuple[str, Backbone] | None:
    """The metric's name and its feature extractor: `evaluation.backbone`, or the run's own where that cannot be had.

    None where `evaluation.backbone=null`. `say` tells the user of such a change.
    """
    if cfg.evaluation.backbone is None:
        return None
    settings = extractor_settings(cfg, cfg.evaluation.backbone)
    try:
        backbone = build_extractor(cfg, settings)
    except UserError as error:
        if settings["name"] == cfg.backbone.name:
            raise
        say(f"Note: {error}\nDistances are taken on the run's own backbone, {cfg.backbone.name}, instead.")
        backbone = build_extractor(cfg, plain(cfg.backbone))
    return frechet_name(backbone.name), backbone


def build_extractor(cfg: DictConfig, settings: dict[str, Any]) -> Backbone:
    """The backbone of these settings as a distance is taken on it, on the CPU: it sees whole images.

    The processors of some models (DINOv2's is one) cut off an eighth of the image all around after resizing, which is
    meant for photographs with their object in the middle. A distance has to see the borders too, and FDD is defined on
    images that are resized whole (arXiv 2306.04675).

    Raises:
        UserError: its weights cannot be had; the message says where to get them and what to type.
    """
    size, setting = (cfg.dataset.resolution, cfg.dataset.channels), weights_setting(cfg, settings["name"])
    backbone = build_backbone(BackboneSettings(**settings), *size, cfg.cache_dir, setting)
    if isinstance(backbone, TransformersBackbone):
        processor = backbone.processor
        if getattr(processor, "do_center_crop", False):
            processor.do_center_crop, processor.size = False, processor.crop_size
        backbone.identity = {**backbone.identity, **WHOLE_IMAGE}
    return backbone


def extractor_identity(cfg: DictConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """What its features depend on, checksums of the weights among it, without building it; raises as above."""
    size, setting = (cfg.dataset.resolution, cfg.dataset.channels), weights_setting(cfg, settings["name"])
    identity = backbone_identity(BackboneSettings(**settings), *size, cfg.cache_dir, setting)
    return {**identity, **WHOLE_IMAGE} if identity["kind"] == "transformers" else identity


def weights_setting(cfg: DictConfig, name: str) -> str:
    """What is to be set to say where the weights of an extractor are."""
    if name == cfg.backbone.name:
        return "backbone.path"
    return f"{'' if name in cfg.evaluation.weights else '+'}evaluation.weights.{name}"


def description_of(cfg: DictConfig, source: ImageSource, identity: dict[str, Any]) -> dict[str, Any]:
    """All that decides the features of a data set."""
    return {
        "source": source.fingerprint,
        "resolution": cfg.dataset.resolution,
        "channels": cfg.dataset.channels,
        "extractor": identity,
    }


def cached(cfg: DictConfig, folder: str, source: ImageSource, extractor: Backbone) -> Path:
    """Where the statistics (or the features themselves) of a data set are kept."""
    key = fingerprint(description_of(cfg, source, extractor.identity))
    return Path(cfg.cache_dir) / folder / f"{source.name}-{extractor.name}-{key}.safetensors"


def reference_statistics(cfg: DictConfig, store: ImageStore, extractor: Backbone, device: torch.device) -> Statistics:
    """Mean and covariance of the extractor's features over the whole data set, from the cache or computed into it."""
    source = store.source
    path = cached(cfg, "statistics", source, extractor)

    def compute() -> tuple[dict[str, torch.Tensor], dict]:
        statistics = FeatureStatistics(extractor.dim, sync_on_compute=False).to(device)  # the others wait for this one
        extractor.to(device)
        parts = torch.arange(len(source)).split(cfg.evaluation.batch_size)
        with tqdm(total=len(source), desc=f"reference ({extractor.name})", unit="img", dynamic_ncols=True) as bar:
            for part in parts:
                statistics.update(extractor.extract(store.gather(part).to(device)))
                bar.update(len(part))
        result = statistics.compute()
        made_from = description_of(cfg, source, extractor.identity)
        return {"mean": result.mean, "cov": result.cov}, {"made_from": made_from, "n": result.n}

    make_once(path, KIND, compute)
    return Statistics.load(path)


def reference_features(
    cfg: DictConfig, source: ImageSource, extractors: Sequence[Backbone], keep: Collection[str], fabric: Fabric
) -> dict[str, Features]:
    """Features of the whole data set by every extractor, from the cache or worked out by all devices and kept there.

    Args:
        keep: names of the extractors whose features themselves are needed; of the others there are the statistics.
    """
    found = {e.name: read_features(cfg, source, e, e.name in keep) for e in extractors} if fabric.is_global_zero else {}
    missing = fabric.broadcast([name for name, features in found.items() if features is None])
    if missing:
        store = ImageStore(source, cfg.dataset.resolution, cfg.dataset.channels, cfg.training.memory_gb)
        wanted = [e for e in extractors if e.name in missing]
        fresh = extract(store, wanted, keep, cfg.batch_size, fabric, f"{source.name} ({', '.join(missing)})")
        for extractor in wanted if fabric.is_global_zero else ():
            write_features(cfg, source, extractor, fresh[extractor.name])
        found |= fresh
    return {name: features for name, features in found.items() if features is not None}


def read_features(cfg: DictConfig, source: ImageSource, extractor: Backbone, with_rows: bool) -> Features | None:
    """What the cache holds of a data set; None where something is missing or damaged."""
    try:
        statistics = Statistics.load(cached(cfg, "statistics", source, extractor))
        if not with_rows:
            return Features(statistics)
        rows = read_artifact(cached(cfg, "features", source, extractor), ROWS_KIND).tensors["rows"]
        return Features(statistics, rows)
    except MissingArtifactError:
        return None
    except DamagedArtifactError as error:
        print(f"{error} It is worked out again.", file=sys.stderr)
        return None


def write_features(cfg: DictConfig, source: ImageSource, extractor: Backbone, features: Features) -> None:
    """Keep what was worked out; the statistics are those that training reads too."""
    made_from = description_of(cfg, source, extractor.identity)
    statistics = Statistics(
        features.statistics.mean, features.statistics.cov, features.statistics.n, {"made_from": made_from}
    )
    statistics.save(cached(cfg, "statistics", source, extractor))
    if features.rows is not None:
        path = cached(cfg, "features", source, extractor)
        write_artifact(path, ROWS_KIND, {"rows": features.rows}, {"made_from": made_from})
