"""Models of the timm library as backbones, and authors' own checkpoints of vision transformers in timm's format."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from datamodules.backbones.backbone_base import Backbone, Preparation, Size, grey_as_rgb, refuse_huge_inputs
from datamodules.backbones.backbone_files import checkpoint_file, model_files, refuse_deep
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.packages import needed
from datamodules.plain_files import load_pt
from storage.digests import file_digest
from storage.errors import UserError

TIMM = "this backbone"  # what needs it


class TimmBackbone(Backbone):
    """A model of timm without its classifier: the pooled features, as the model itself pools them.

    For the vision transformers of DINO, DINOv2, MoCo v3 and iBOT that is the class token after the last norm.
    `processing` is timm's description of its evaluation transform: input_size, crop_pct, interpolation, mean, std.
    """

    def __init__(self, name: str, model: nn.Module, processing: Mapping[str, Any], identity: dict[str, Any]) -> None:
        super().__init__(name, identity)
        self.model = model
        self.processing = dict(processing)

    @classmethod
    def files(cls, settings: BackboneSettings) -> list[Path]:
        return model_files(settings, "" if settings.path else hub_id(settings.model), ("config.json",))

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        timm, folder = needed("timm", TIMM), cls.files(settings)[0].parent
        refuse_deep(folder)
        try:
            # With the number of classes that it was trained for, timm insists on finding every weight in the file.
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
            model.reset_classifier(0)
            processing = timm.data.resolve_model_data_config(model)
        except Exception as error:  # a config.json of any content can raise anything in there
            raise UserError(
                f"{folder}: the timm library cannot load this ({type(error).__name__}: {error})."
            ) from error
        refuse_huge_inputs(folder, processing["input_size"], processing["crop_pct"])
        return cls(settings.name, model, processing, identity)

    @property
    def preparation(self) -> Preparation:
        from timm.data import create_transform

        return partial(transformed, steps=create_transform(**self.processing, is_training=False).transforms)

    def _features(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).flatten(1).float()  # [B, dim]


class CheckpointBackbone(TimmBackbone):
    """timm's architecture `model` with the weights that an author's checkpoint holds under `prefix`."""

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        reading = {key: getattr(settings, key) for key in ("model", "arguments", "prefix", "processing")}
        return {"kind": settings.kind, **reading, "weights": file_digest(checkpoint_file(settings), cache_dir)}

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        """
        Raises:
            UserError: the file holds more than plain tensors and numbers, or other weights than the architecture has.
                Those named in `unused` (pretraining heads) may be there.
        """
        timm, weights, prefix = needed("timm", TIMM), checkpoint_file(settings), settings.prefix or ""
        content, unused = load_pt(weights), tuple(settings.unused or ())
        stored = content.get("state_dict", content) if isinstance(content, dict) else {}
        stored = {key: value for key, value in stored.items() if isinstance(value, Tensor)}
        chosen = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        chosen = {key: value for key, value in chosen.items() if not key.startswith(unused)}
        model = timm.create_model(settings.model, pretrained=False, num_classes=0, **(settings.arguments or {}))
        try:
            model.load_state_dict(chosen)
        except RuntimeError as error:
            prefixes = sorted({key.rsplit("patch_embed", 1)[0] for key in stored if "patch_embed" in key})
            raise UserError(
                f"{weights}: not the weights of {settings.model} under backbone.prefix={prefix!r} "
                f"(prefixes of a vision transformer in there: {', '.join(prefixes) or 'none'}). {error}"
            ) from error
        processing = timm.data.resolve_data_config(dict(settings.processing or {}))
        return cls(settings.name, model, processing, identity)


def transformed(images: Tensor, steps: Sequence[Callable[[Any], Any]]) -> Tensor:
    """timm's own transform for evaluation, on uint8 tensors: resized as bytes, as Pillow does, then scaled to 0…1."""
    from timm.data.transforms import MaybeToTensor
    from torchvision.transforms import Resize
    from torchvision.transforms.v2.functional import resize

    prepared = grey_as_rgb(images)
    for step in steps:
        if isinstance(step, MaybeToTensor):
            prepared = prepared.float() / 255
        elif isinstance(step, Resize):  # which computes in float32; the newer function is byte for byte Pillow's
            prepared = resize(prepared, step.size, interpolation=step.interpolation, antialias=True)
        else:
            prepared = step(prepared)
    return prepared  # float32 [B, 3, S, S]


def hub_id(model: str | None) -> str:
    """Where the weights of timm's model of this name are: a repository on the Hugging Face hub.

    Raises:
        UserError: no name, or timm has no pretrained model of this name.
    """
    timm = needed("timm", TIMM)
    if model is None:
        raise UserError("backbone=timm: which model? Set backbone.model=NAME, such as vit_small_patch16_224.dino.")
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
            f"Did you mean {near}? `timm.list_pretrained()` lists all."
        )
    return repository
