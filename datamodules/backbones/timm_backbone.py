"""Models of the timm library as backbones, and authors' own checkpoints of vision transformers in timm's format."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.backbones.backbone_base import Backbone, Preparation, grey_as_rgb
from storage.errors import UserError


class TimmBackbone(Backbone):
    """A model of timm without its classifier: the pooled features, as the model itself pools them.

    For the vision transformers of DINO, DINOv2, MoCo v3 and iBOT that is the class token after the last norm.
    `processing` is timm's description of its evaluation transform: input_size, crop_pct, interpolation, mean, std.
    """

    def __init__(self, name: str, model: nn.Module, processing: Mapping[str, Any], identity: dict[str, Any]) -> None:
        super().__init__(name, dim=0, identity=identity)
        self.model = model
        self.processing = dict(processing)
        self._freeze()
        self.dim = self.extract(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]

    @property
    def preparation(self) -> Preparation:
        return _EvaluationTransform(self.processing)

    def _features(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).flatten(1).float()  # [B, dim]


class _EvaluationTransform:
    """timm's own transform for evaluation, on uint8 tensors: resized as bytes, as Pillow does, then scaled to 0…1."""

    def __init__(self, processing: Mapping[str, Any]) -> None:
        from timm.data import create_transform

        self.steps = create_transform(**processing, is_training=False).transforms

    def __call__(self, images: Tensor) -> Tensor:
        from timm.data.transforms import MaybeToTensor
        from torchvision.transforms import Resize
        from torchvision.transforms.v2.functional import resize

        prepared = grey_as_rgb(images)
        for step in self.steps:
            if isinstance(step, MaybeToTensor):
                prepared = prepared.float() / 255
            elif isinstance(step, Resize):  # which computes in float32; the newer function is byte for byte Pillow's
                prepared = resize(prepared, step.size, interpolation=step.interpolation, antialias=True)
            else:
                prepared = step(prepared)
        return prepared  # float32 [B, 3, S, S]


def from_folder(name: str, folder: Path, identity: dict[str, Any]) -> TimmBackbone:
    """A model from a folder in timm's format: `config.json` and `model.safetensors`."""
    timm = import_timm()
    try:
        # With the number of classes that it was trained for, timm insists on finding every weight in the file.
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{folder}: the timm library cannot load this ({error})") from error
    model.reset_classifier(0)
    return TimmBackbone(name, model, timm.data.resolve_model_data_config(model), identity)


def from_checkpoint(settings: Mapping[str, Any], weights: Path, identity: dict[str, Any]) -> TimmBackbone:
    """timm's architecture `model` with the weights that an author's checkpoint holds under `prefix`.

    Raises:
        UserError: the file holds more than plain tensors and numbers, or other weights than the architecture has. Those
            named in `unused` (pretraining heads) may be there.
    """
    timm = import_timm()
    stored = _stored_weights(weights)
    prefix, unused = settings["prefix"], tuple(settings["unused"])
    chosen = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    chosen = {key: value for key, value in chosen.items() if not key.startswith(unused)}
    model = timm.create_model(settings["model"], pretrained=False, num_classes=0, **settings["arguments"])
    try:
        model.load_state_dict(chosen)
    except RuntimeError as error:
        found = ", ".join(sorted({key.rsplit("patch_embed", 1)[0] for key in stored if "patch_embed" in key})) or "none"
        raise UserError(
            f"{weights}: not the weights of {settings['model']} under backbone.prefix={prefix!r} "
            f"(prefixes of a vision transformer in there: {found}). {error}"
        ) from error
    return TimmBackbone(settings["name"], model, timm.data.resolve_data_config(dict(settings["processing"])), identity)


def _stored_weights(weights: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content can raise anything here
        raise UserError(f"{weights}: refused, it cannot be loaded as plain tensors ({error})") from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    return {key: value for key, value in stored.items() if isinstance(value, Tensor)}


def hub_id(model: str | None) -> str:
    """Where the weights of timm's model of this name are: a repository on the Hugging Face hub.

    Raises:
        UserError: no name, or timm has no pretrained model of this name.
    """
    timm = import_timm()
    if model is None:
        raise UserError("backbone=timm: which model? Type backbone.model=NAME, such as vit_small_patch16_224.dino")
    if "/" in model:
        return model
    try:
        repository = timm.get_pretrained_cfg(model, allow_unregistered=False).hf_hub_id
    except RuntimeError:
        repository = None
    if not repository:
        near = ", ".join(difflib.get_close_matches(model, timm.list_pretrained(), n=3, cutoff=0))
        raise UserError(
            f"backbone.model={model}: timm {timm.__version__} has no pretrained model of this name. "
            f"Did you mean {near}? `timm.list_pretrained()` lists all"
        )
    return repository


def import_timm() -> Any:
    """timm, an optional dependency.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("this backbone needs timm, which is not installed. Type: pip install timm") from error
    return timm
