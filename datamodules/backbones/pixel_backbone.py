"""The image itself as a backbone: needs no weights."""

from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, Preparation, Size
from datamodules.backbones.backbone_settings import BackboneSettings


class PixelBackbone(Backbone):
    """Pixel values scaled to −1…1, flattened."""

    def __init__(self, name: str, resolution: int, channels: int) -> None:
        identity = {"kind": "pixels", "resolution": resolution, "channels": channels}
        super().__init__(name, channels * resolution**2, identity, resolution, channels)

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        return cls(settings.name, *size).identity

    @classmethod
    def build(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> "PixelBackbone":
        return cls(settings.name, *size)

    @property
    def preparation(self) -> Preparation:
        return _ScaledPixels(self.channels, self.resolution)

    def _features(self, inputs: Tensor) -> Tensor:
        return inputs


class _ScaledPixels:
    """Values of −1…1, flattened."""

    def __init__(self, channels: int, resolution: int | None) -> None:
        self.shape = (channels, resolution, resolution)

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise ValueError(f"images are {list(images.shape[1:])}; the pixels backbone was built for {self.shape}")
        return images.flatten(1).float() / 127.5 - 1  # [B, C·R·R]
