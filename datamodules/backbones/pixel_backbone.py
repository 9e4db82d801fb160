"""The image itself as a backbone: needs no weights."""

from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, Preparation, Size
from datamodules.backbones.backbone_settings import BackboneSettings


class PixelBackbone(Backbone):
    """Pixel values scaled to −1…1, flattened."""

    def __init__(self, name: str, resolution: int, channels: int, fit: str = "crop") -> None:
        identity = {"kind": "pixels", "resolution": resolution, "channels": channels}
        if fit != "crop":
            identity["fit"] = fit
        super().__init__(name, identity, resolution, channels)

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        return cls(settings.name, *size).identity

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        return cls(settings.name, identity["resolution"], identity["channels"], identity.get("fit", "crop"))

    @property
    def preparation(self) -> Preparation:
        return partial(scaled, shape=(self.channels, self.resolution, self.resolution))

    def _features(self, inputs: Tensor) -> Tensor:
        return inputs


def scaled(images: Tensor, shape: tuple[int, int | None, int | None]) -> Tensor:
    """Values of −1…1, flattened: float32 [B, C·R·R]."""
    if images.shape[1:] != shape:
        raise ValueError(f"images are {list(images.shape[1:])}; the pixels backbone was built for {shape}")
    return images.flatten(1).float() / 127.5 - 1
