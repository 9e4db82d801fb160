"""A network whose weights a Python package brings: they come with pip, where nothing else can be downloaded."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from datamodules.backbones.backbone_base import Size
from datamodules.backbones.backbone_files import check_name_against_digest
from datamodules.backbones.backbone_settings import INSTALL, BackboneSettings
from datamodules.backbones.timm_backbone import TIMM, TimmBackbone
from datamodules.packages import file_of_package, needed
from datamodules.plain_files import load_pt
from storage.digests import file_digest
from storage.errors import UserError, WrongPathError


class PackagedBackbone(TimmBackbone):
    """timm's architecture `model` with the weights in `package_file`: timm's tensors in its order, under other names.

    `image_size` is the side of what the network sees. `supervised`, whose labels it was trained with, is part of the
    identity, so that whatever is made with it says so.
    """

    @classmethod
    def files(cls, settings: BackboneSettings) -> list[Path]:
        if settings.path is not None:
            return [Path(settings.path)]
        package, _, name = str(settings.package_file).partition("/")
        return [file_of_package(package, name, f"backbone={settings.name}", INSTALL)]

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        (weights,) = cls.files(settings)
        if not weights.is_file():
            raise WrongPathError(f"{weights}: no such file.", "FILE")
        digest = file_digest(weights, cache_dir)
        check_name_against_digest(weights, digest)
        reading = {key: getattr(settings, key) for key in ("model", "processing", "image_size", "supervised")}
        return {"kind": settings.kind, **reading, "weights": digest}

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        """Raises `UserError` where the file holds other tensors than the architecture, or more than plain tensors."""
        timm, (weights,) = needed("timm", TIMM), cls.files(settings)
        model = timm.create_model(settings.model, pretrained=False)
        stored, own = load_pt(weights), model.state_dict()
        if not isinstance(stored, dict) or described(stored) != described(own):
            raise UserError(f"{weights}: not the {len(own)} tensors of {settings.model}, in its order.")
        model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        model.reset_classifier(0)
        size = {"input_size": [3, settings.image_size, settings.image_size]}
        processing = timm.data.resolve_data_config({**(settings.processing or {}), **size})
        return cls(settings.name, model, processing, identity)


def described(tensors: dict[str, Any]) -> list[tuple[str, Any]]:
    """The last part of each tensor's name, such as running_mean, and its shape."""
    return [
        (name.rpartition(".")[2], value.shape if isinstance(value, Tensor) else None) for name, value in tensors.items()
    ]
