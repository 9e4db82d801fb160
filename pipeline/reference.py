"""The other side of a Fréchet distance: the data set's own feature statistics, computed once."""

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from tqdm import tqdm

from datamodules.artifacts import UserError, fingerprint, make_once
from datamodules.backbones import Backbone, build_backbone, frechet_name
from datamodules.images import ImageStore
from metrics.frechet import KIND, FeatureStatistics, Statistics
from pipeline.command import CONFIGS, typed_command
from pipeline.inputs import plain


def extractor_settings(cfg: DictConfig) -> DictConfig | ListConfig | None:
    """The settings of `evaluation.backbone`; None where it is null.

    Raises:
        UserError: there is no such backbone.
    """
    wanted = cfg.evaluation.backbone
    if wanted is None:
        return None
    path = CONFIGS / "backbone" / f"{wanted}.yaml"
    if not path.exists():
        names = ", ".join(sorted(option.stem for option in path.parent.glob("*.yaml")))
        raise UserError(f"evaluation.backbone={wanted}: there is no such backbone. There are: {names}.")
    return OmegaConf.load(path)


def frechet_extractor(cfg: DictConfig, say: Callable[[str], None]) -> tuple[str, Backbone] | None:
    """The metric's name and its feature extractor: `evaluation.backbone`, or the run's own where that cannot be had.

    None where `evaluation.backbone=null`. `say` tells the user of such a change.
    """
    settings = extractor_settings(cfg)
    if settings is None:
        return None
    try:
        backbone = build(cfg, settings)
    except UserError as error:
        if settings.name == cfg.backbone.name:
            raise
        say(f"Note: {error}\nDistances are taken on the run's own backbone, {cfg.backbone.name}, instead.")
        backbone = build(cfg, cfg.backbone)
    return frechet_name(backbone.name), backbone


def build(cfg: DictConfig, settings: DictConfig | ListConfig) -> Backbone:
    return build_backbone(plain(settings), cfg.dataset.resolution, cfg.dataset.channels, cfg.cache_dir)


def reference_statistics(cfg: DictConfig, store: ImageStore, extractor: Backbone, device: torch.device) -> Statistics:
    """Mean and covariance of the extractor's features over the whole data set, from the cache or computed into it."""
    source = store.source
    description = {
        "source": source.fingerprint,
        "resolution": cfg.dataset.resolution,
        "channels": cfg.dataset.channels,
        "extractor": extractor.identity,
    }
    path = Path(cfg.cache_dir) / "statistics" / f"{source.name}-{extractor.name}-{fingerprint(description)}.safetensors"

    def compute() -> tuple[dict[str, torch.Tensor], dict]:
        statistics = FeatureStatistics(extractor.dim).to(device)
        extractor.to(device)
        parts = torch.arange(len(source)).split(cfg.evaluation.batch_size)
        with tqdm(total=len(source), desc=f"reference ({extractor.name})", unit="img", dynamic_ncols=True) as bar:
            for part in parts:
                statistics.update(extractor.extract(store.gather(part).to(device)))
                bar.update(len(part))
        result = statistics.compute()
        return {"mean": result.mean, "cov": result.cov}, {"made_from": description, "n": result.n}

    make_once(path, KIND, typed_command("train"), compute)
    return Statistics.load(path, typed_command("train"))
