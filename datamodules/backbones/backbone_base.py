"""What every backbone is: a frozen network that turns images into feature vectors."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from datamodules.backbones.backbone_settings import BackboneSettings
from storage.digests import file_digest
from storage.errors import UserError

# uint8 images [B, C, H, W] to the inputs of a network, on the same device
Preparation = Callable[[Tensor], Tensor]
MOST_SIDE = 1 << 12  # of an image for a network, in pixels
Size = tuple[int, int, str]  # resolution, channels and fit of the training images; only `pixels` depends on them


class Backbone(nn.Module, ABC):
    """A frozen network that turns images into feature vectors.

    Attributes:
        name: its name in file names and tables.
        dim: length of a feature vector; known once `build_backbone` has tried it.
        identity: what its features depend on, as JSON-able data.
        resolution: the size of the images it wants, or None where it takes any size.
        channels: 1 or 3, what the images of a data set are decoded to for it.
        takes_bf16: whether bfloat16 does for it where speed is wanted.
    """

    takes_bf16 = True
    dim: int

    def __init__(self, name: str, identity: dict[str, Any], resolution: int | None = None, channels: int = 3) -> None:
        super().__init__()
        self.name = name
        self.identity = identity
        self.resolution = resolution
        self.channels = channels
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # knows the device, weights or none

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        """The `identity` of a backbone that is not built; digests of files are remembered in `cache_dir`."""
        digests = {path.name: file_digest(path, cache_dir) for path in cls.files(settings)}
        return {"kind": settings.kind, "output": settings.output, "files": digests}

    @classmethod
    def files(cls, settings: BackboneSettings) -> list[Path]:
        """The files that it is built from, all of one folder."""
        raise NotImplementedError

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        """The backbone of these settings and this identity, on the CPU. Raises `UserError`."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the backbone lies, and the images are taken."""
        return self.get_buffer("_anchor").device

    @property
    @abstractmethod
    def preparation(self) -> Preparation:
        """Resizing and normalisation, apart from the network: light enough to be sent to processes that load images."""

    @abstractmethod
    def _features(self, inputs: Tensor) -> Tensor:
        """Prepared images to float32 [B, dim]."""

    def extract(self, images: Tensor) -> Tensor:
        """Features of uint8 images [B, C, H, W], grey or RGB: float32 [B, dim], on the backbone's device."""
        return self.features_of([self.preparation(images.to(self.device))])

    @torch.no_grad()
    def features_of(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features of what `prepare` returned, wherever it lies: float32 [B, dim], on the backbone's device."""
        with full_float32():
            return torch.cat([self._features(part.to(self.device, non_blocking=True)) for part in inputs])

    def differentiable(self, images: Tensor) -> Tensor:
        """Features of float images [B, C, H, W] of values 0…255, through which gradients flow: float32 [B, dim].

        They are those of `extract`, but for the rounding of resized images.

        Raises:
            UserError: the model's own preparation lets no gradient through.
        """
        with torch.enable_grad(), full_float32():
            features = self._features(self.preparation(images))
        if images.requires_grad and not features.requires_grad:
            raise UserError(f"backbone={self.name} lets no gradient through. Set another sampler.guide")
        return features

    def train(self, mode: bool = True) -> "Backbone":
        """Stays in evaluation mode: a backbone is frozen, whatever module it is put into."""
        return super().train(False)


def prepare(preparation: Preparation, images: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of a network from uint8 images [C, H, W] of any sizes, in order.

    One batch where the preparation brings all images to one size; else a batch per run of images of the same size.
    """
    runs = itertools.groupby(images, key=lambda image: image.shape)
    parts = [preparation(torch.stack(list(run))) for _, run in runs]
    return [torch.cat(parts)] if len({part.shape[1:] for part in parts}) == 1 else parts


def refuse_huge_inputs(folder: Path, sides: Iterable[float], crop: float | None) -> None:
    """Raise a `UserError` where files tell of huge images; `crop` is the share of their sides that is kept."""
    side = max(sides, default=0) / (crop or 1)
    if side > MOST_SIDE:
        raise UserError(f"{folder}: tells of images of {side:,.0f} pixels a side; up to {MOST_SIDE:,} are taken.")


def grey_as_rgb(images: Tensor) -> Tensor:
    """[B, 1, H, W] or [B, 3, H, W] to [B, 3, H, W]."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in float32 on GPUs too, not in TF32, PyTorch's default there, which keeps ten bits of a number."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
