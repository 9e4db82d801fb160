"""Frozen feature extractors. Embeddings come from one, and every Fréchet distance is taken on one.

The kinds: `pixels` (the image itself), `transformers` (any vision model of the Hugging Face library), `timm` (any model
of that library), `checkpoint` (an author's own file of a vision transformer) and `inception` (the network of FID). A
backbone's `identity` is made of the bytes of its files and of what it returns, so the same weights are the same
backbone whether they come from the hub or from a folder.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.backbones import timm_backbone
from datamodules.backbones.backbone_base import Backbone, Preparation, grey_as_rgb
from datamodules.backbones.backbone_files import checkpoint_file, inception_weights, model_files
from datamodules.backbones.transformers_backbone import OUTPUTS, TransformersBackbone
from storage.digests import file_digest
from storage.errors import UserError

KINDS = ("pixels", "transformers", "timm", "checkpoint", "inception")
INCEPTION_FEATURES = "2048"  # torch-fidelity's name of the pooled features that FID is defined on
FRECHET_NAMES = {"inception": "fid", "dinov2_vitl14": "fdd"}


def frechet_name(backbone_name: str) -> str:
    """What the Fréchet distance on this backbone is called: `fid` on Inception, `fdd` on DINOv2 ViT-L, else `fd_…`."""
    return FRECHET_NAMES.get(backbone_name, f"fd_{backbone_name}")


class PixelBackbone(Backbone):
    """The image itself: pixel values scaled to −1…1, flattened."""

    def __init__(self, name: str, resolution: int, channels: int) -> None:
        super().__init__(name, channels * resolution**2, _pixels_identity(resolution, channels), resolution, channels)

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


class InceptionBackbone(Backbone):
    """The Inception-v3 of FID with its 2048 pooled features, as torch-fidelity builds it."""

    takes_bf16 = False  # FID is defined on its float32 features

    def __init__(self, name: str, weights: Path, identity: dict[str, Any]) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__(name, dim=2048, identity=identity)
        _check_loads_safely(weights)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", [INCEPTION_FEATURES], feature_extractor_weights_path=str(weights)
            )
        except RuntimeError as error:
            raise UserError(f"{weights}: not the weights of torch-fidelity's Inception-v3 ({error})") from error
        self._freeze()

    @property
    def preparation(self) -> Preparation:
        return grey_as_rgb  # the network resizes for itself

    def _features(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)[0]

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Class logits [B, 1008] of features [B, 2048], without the bias: those that the Inception score is taken of.

        torch-fidelity calls them `logits_unbiased`; with the features at hand, no second pass is needed for them.
        """
        weight = self.network.fc.weight  # [1008, 2048]
        return features.to(weight.device) @ weight.T


# Building from settings -----------------------------------------------------------------------------------------------


def build_backbone(
    settings: Mapping[str, Any], resolution: int, channels: int, cache_dir: str | Path | None = None
) -> Backbone:
    """Builds a backbone from its settings (`configs/backbone/*.yaml`), frozen and in evaluation mode, on the CPU.

    `resolution` and `channels` are those of the training images; only `pixels` depends on them. Weights that are not on
    this machine are downloaded. Raises `UserError` where that fails, naming the model and what to type instead.
    """
    identity = backbone_identity(settings, resolution, channels, cache_dir)
    name, kind = settings["name"], settings["kind"]
    if kind == "pixels":
        return PixelBackbone(name, resolution, channels)
    if kind == "inception":
        return InceptionBackbone(name, inception_weights(settings, cache_dir), identity)
    if kind == "checkpoint":
        return timm_backbone.from_checkpoint(settings, checkpoint_file(settings), identity)
    folder = _hub_files(settings)[0].parent
    if kind == "timm":
        return timm_backbone.from_folder(name, folder, identity)
    return TransformersBackbone(name, folder, settings["output"], identity)


def backbone_identity(
    settings: Mapping[str, Any], resolution: int, channels: int, cache_dir: str | Path | None = None
) -> dict[str, Any]:
    """What a backbone's features depend on, without building it: digests of its files, and which output is taken.

    With a `cache_dir`, digests are remembered there.
    """
    kind = settings["kind"]
    if kind not in KINDS:
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
        raise UserError(f"backbone.kind={kind}: no such kind. Did you mean {nearest}? Known: {', '.join(KINDS)}")
    if kind == "pixels":
        return _pixels_identity(resolution, channels)
    if kind == "inception":
        weights = inception_weights(settings, cache_dir)
        return {"kind": kind, "features": INCEPTION_FEATURES, "weights": file_digest(weights, cache_dir)}
    if kind == "checkpoint":
        reading = {key: settings[key] for key in ("model", "arguments", "prefix", "processing")}
        return {"kind": kind, **reading, "weights": file_digest(checkpoint_file(settings), cache_dir)}
    if kind == "transformers" and settings["output"] not in OUTPUTS:
        raise UserError(f"backbone.output={settings['output']}: expected one of {', '.join(OUTPUTS)}")
    digests = {path.name: file_digest(path, cache_dir) for path in _hub_files(settings)}
    return {"kind": kind, "output": settings["output"], "files": digests}


def _hub_files(settings: Mapping[str, Any]) -> list[Path]:
    """The files of a model of the transformers or the timm library, all of one folder."""
    if settings["kind"] == "transformers":
        names = ("config.json", "preprocessor_config.json")
        return model_files(settings, settings["model"], names, optional=("processor_config.json",))
    repository = timm_backbone.hub_id(settings["model"]) if settings["path"] is None else ""
    return model_files(settings, repository, ("config.json",))


def _pixels_identity(resolution: int, channels: int) -> dict[str, Any]:
    return {"kind": "pixels", "resolution": resolution, "channels": channels}


def _check_loads_safely(weights: Path) -> None:
    """torch-fidelity unpickles without restraint, so make sure first that the file holds nothing but tensors."""
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content can raise anything here
        raise UserError(f"{weights}: refused, it cannot be loaded as plain tensors ({error})") from error
