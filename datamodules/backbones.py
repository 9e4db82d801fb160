"""Frozen feature extractors. Embeddings come from one, and every Fréchet distance is taken on one.

Three kinds: `pixels` (the image itself), `transformers` (any vision model of the Hugging Face library) and `inception`
(the network of FID). A backbone's `identity` is made of the bytes of its files and of what it returns, so the same
weights are the same backbone whether they come from the hub or from a folder.
"""

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.artifacts import UserError, file_digest
from datamodules.backbone_files import inception_weights, transformers_files

KINDS = ("pixels", "transformers", "inception")
OUTPUTS = ("cls_token", "mean_patch_tokens", "pooler")
INCEPTION_FEATURES = "2048"  # torch-fidelity's name of the pooled features that FID is defined on
FRECHET_NAMES = {"inception": "fid", "dinov2_vitl14": "fdd"}


def frechet_name(backbone_name: str) -> str:
    """What the Fréchet distance on this backbone is called: `fid` on Inception, `fdd` on DINOv2 ViT-L, else `fd_…`."""
    return FRECHET_NAMES.get(backbone_name, f"fd_{backbone_name}")


class Backbone(nn.Module, ABC):
    """A frozen network that turns images into feature vectors.

    Attributes:
        name: its name in file names and tables.
        dim: length of a feature vector.
        identity: what its features depend on, as JSON-able data.
        resolution: the size of the images it wants, or None where it takes any size.
        channels: 1 or 3, what the images of a data set are decoded to for it.
    """

    def __init__(
        self, name: str, dim: int, identity: dict[str, Any], resolution: int | None = None, channels: int = 3
    ) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.identity = identity
        self.resolution = resolution
        self.channels = channels
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # knows the device, weights or none

    @property
    def device(self) -> torch.device:
        """Where the backbone lies, and the images are taken."""
        return self.get_buffer("_anchor").device

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Features of uint8 images [B, C, H, W], grey or RGB: float32 [B, dim], on the backbone's device."""
        return self._features(self._preprocess(images.to(self.device)))

    @torch.no_grad()
    def extract_list(self, images: Sequence[Tensor]) -> Tensor:
        """Features of uint8 images [C, H, W] of any sizes: float32 [B, dim], one forward pass for all."""
        return self._features(torch.cat([self._preprocess(image[None].to(self.device)) for image in images]))

    def train(self, mode: bool = True) -> "Backbone":
        """Stays in evaluation mode: a backbone is frozen, whatever module it is put into."""
        return super().train(False)

    @abstractmethod
    def _preprocess(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to what `_features` takes."""

    @abstractmethod
    def _features(self, inputs: Tensor) -> Tensor:
        """Prepared images to float32 [B, dim]."""

    def _freeze(self) -> None:
        self.requires_grad_(False).eval()


class PixelBackbone(Backbone):
    """The image itself: pixel values scaled to −1…1, flattened."""

    def __init__(self, name: str, resolution: int, channels: int) -> None:
        super().__init__(name, channels * resolution**2, _pixels_identity(resolution, channels), resolution, channels)

    def _preprocess(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (self.channels, self.resolution, self.resolution):
            raise ValueError(f"images are {list(images.shape[1:])}; the pixels backbone was built for {self.identity}")
        return images.flatten(1).float() / 127.5 - 1  # [B, C·R·R]

    def _features(self, inputs: Tensor) -> Tensor:
        return inputs


class TransformersBackbone(Backbone):
    """A vision model of the Hugging Face library, from its folder; input size and normalisation from its processor."""

    def __init__(self, name: str, folder: Path, output: str, identity: dict[str, Any]) -> None:
        model, processor = _load_transformers_model(folder, output)
        super().__init__(name, dim=0, identity=identity)
        self.output = output
        self.model = model
        self.processor = processor
        self._freeze()
        self.dim = self.extract(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]

    def _preprocess(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        prepared = self.processor(
            images=images, input_data_format="channels_first", return_tensors="pt", device=self.device
        )
        return prepared["pixel_values"].to(self.device)  # [B, 3, S, S]

    def _features(self, inputs: Tensor) -> Tensor:
        outputs = self.model(pixel_values=inputs)
        if self.output == "pooler":
            if getattr(outputs, "pooler_output", None) is None:
                raise UserError(
                    f"{self.name}: this model has no pooler. Set backbone.output to cls_token or mean_patch_tokens"
                )
            return outputs.pooler_output.flatten(1).float()  # [B, dim]
        tokens = outputs.last_hidden_state  # [B, prefix + patches, dim]; after the last norm
        prefix = self._count_prefix_tokens(tokens, inputs)
        return (tokens[:, 0] if self.output == "cls_token" else tokens[:, prefix:].mean(dim=1)).float()

    def _count_prefix_tokens(self, tokens: Tensor, inputs: Tensor) -> int:
        """Tokens that come before the patches: the class token, and registers where the model has some."""
        patch_size = getattr(self.model.config, "patch_size", None)
        patches = inputs.shape[2] // patch_size * (inputs.shape[3] // patch_size) if isinstance(patch_size, int) else 0
        prefix = tokens.shape[1] - patches
        least = 1 if self.output == "cls_token" else 0
        if tokens.ndim != 3 or patches == 0 or prefix < least:
            raise UserError(
                f"{self.name}: backbone.output={self.output} needs a vision transformer with such tokens; "
                f"{type(self.model).__name__} returns {list(tokens.shape)}. Set backbone.output=pooler"
            )
        return prefix


class InceptionBackbone(Backbone):
    """The Inception-v3 of FID with its 2048 pooled features, as torch-fidelity builds it."""

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

    def extract_list(self, images: Sequence[Tensor]) -> Tensor:
        """See `Backbone.extract_list`. The network resizes for itself, so images of different sizes go one by one."""
        if len({image.shape for image in images}) == 1:
            return self.extract(torch.stack(list(images)))
        return torch.cat([self.extract(image[None]) for image in images])

    def _preprocess(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def _features(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)[0]


# Building from settings -----------------------------------------------------------------------------------------------


def build_backbone(
    settings: Mapping[str, Any], resolution: int, channels: int, cache_dir: str | Path | None = None
) -> Backbone:
    """Builds a backbone from its settings (`configs/backbone/*.yaml`), frozen and in evaluation mode, on the CPU.

    `resolution` and `channels` are those of the training images; only `pixels` depends on them. Weights that are not on
    this machine are downloaded. Raises `UserError` where that fails, naming the model and what to type instead.
    """
    identity = backbone_identity(settings, resolution, channels, cache_dir)
    if settings["kind"] == "pixels":
        return PixelBackbone(settings["name"], resolution, channels)
    if settings["kind"] == "inception":
        return InceptionBackbone(settings["name"], inception_weights(settings, cache_dir), identity)
    return TransformersBackbone(settings["name"], transformers_files(settings)[0].parent, settings["output"], identity)


def backbone_identity(
    settings: Mapping[str, Any], resolution: int, channels: int, cache_dir: str | Path | None = None
) -> dict[str, Any]:
    """What a backbone's features depend on, without building it: digests of its files, and which output is taken.

    With a `cache_dir`, digests are remembered there.
    """
    kind = settings["kind"]
    if kind == "pixels":
        return _pixels_identity(resolution, channels)
    if kind == "inception":
        weights = inception_weights(settings, cache_dir)
        return {"kind": kind, "features": INCEPTION_FEATURES, "weights": file_digest(weights, cache_dir)}
    if kind != "transformers":
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
        raise UserError(f"backbone.kind={kind}: no such kind. Did you mean {nearest}? Known: {', '.join(KINDS)}")
    output = settings["output"]
    if output not in OUTPUTS:
        raise UserError(f"backbone.output={output}: expected one of {', '.join(OUTPUTS)}")
    digests = {path.name: file_digest(path, cache_dir) for path in transformers_files(settings)}
    return {"kind": kind, "output": output, "files": digests}


def _pixels_identity(resolution: int, channels: int) -> dict[str, Any]:
    return {"kind": "pixels", "resolution": resolution, "channels": channels}


def _load_transformers_model(folder: Path, output: str) -> tuple[nn.Module, Any]:
    """Model and image processor from a folder; every weight on the way to `output` must come from the files."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        model_class: Any = MODEL_MAPPING[type(config)]
        pooling = {}
        if output != "pooler" and "add_pooling_layer" in inspect.signature(model_class).parameters:
            pooling = {"add_pooling_layer": False}  # a pooler that the files lack would be made of random numbers
        model, loading = AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **pooling,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the transformers library cannot load this as an image model ({error})") from error
    if model.main_input_name != "pixel_values":
        raise UserError(f"{folder}: {type(model).__name__} takes {model.main_input_name}, not images alone")
    missing = sorted(key for key in loading["missing_keys"] if output == "pooler" or not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"{folder}: the files lack weights that backbone.output={output} needs, which would be random numbers: "
            f"{', '.join(missing)}. Choose another output ({', '.join(OUTPUTS)}) or complete weights"
        )
    return model, processor


def _check_loads_safely(weights: Path) -> None:
    """torch-fidelity unpickles without restraint, so make sure first that the file holds nothing but tensors."""
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content can raise anything here
        raise UserError(f"{weights}: refused, it cannot be loaded as plain tensors ({error})") from error
