"""Vision models of the Hugging Face library as backbones."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.backbones.backbone_base import Backbone, Preparation, Size, grey_as_rgb, refuse_huge_inputs
from datamodules.backbones.backbone_files import model_files, refuse_deep
from datamodules.backbones.backbone_settings import BackboneSettings
from storage.errors import UserError

OUTPUTS = ("cls_token", "mean_patch_tokens", "pooler", "projected")


class TransformersBackbone(Backbone):
    """A vision model of the Hugging Face library, from its folder; input size and normalisation from its processor.

    `output` is what is taken of it: `cls_token` or `mean_patch_tokens` after the last norm, `pooler`, or `projected`,
    CLIP's image embedding in the space that it shares with text (not normalised). `interpolation` is the filter that
    images are resized with; None: the processor's own.
    """

    def __init__(
        self, name: str, folder: Path, output: str, identity: dict[str, Any], interpolation: str | None = None
    ) -> None:
        super().__init__(name, identity)
        self.output = output
        self.model: Any
        self.model, self.processor = _load(folder, output)
        if interpolation is not None:
            self.processor.resample = Image.Resampling[interpolation.upper()]

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        identity = super().identify(settings, size, cache_dir)
        return identity | ({"interpolation": settings.interpolation} if settings.interpolation else {})

    @classmethod
    def files(cls, settings: BackboneSettings) -> list[Path]:
        if settings.output not in OUTPUTS:
            settings.refuse("output", f"one of {', '.join(OUTPUTS)} is expected")
        names = ("config.json", "preprocessor_config.json")
        return model_files(settings, str(settings.model), names, optional=("processor_config.json",))

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        folder = cls.files(settings)[0].parent
        refuse_deep(folder)
        backbone = cls(settings.name, folder, str(settings.output), identity, settings.interpolation)
        told = backbone.processor.to_dict()
        sides = [side for key in ("size", "crop_size") for side in (told.get(key) or {}).values() if side]
        refuse_huge_inputs(folder, sides, told.get("crop_pct"))
        return backbone

    @property
    def preparation(self) -> Preparation:
        return partial(processed, processor=self.processor)

    def _features(self, inputs: Tensor) -> Tensor:
        patch_size, arguments = getattr(self.model.config, "patch_size", None), {}
        patches = inputs.shape[2] // patch_size * (inputs.shape[3] // patch_size) if isinstance(patch_size, int) else 0
        if self.model.config.model_type == "vit_mae":  # sorts the patches by this "noise", even where it hides none
            arguments["noise"] = torch.arange(patches, device=inputs.device).expand(len(inputs), -1)
        outputs = self.model(pixel_values=inputs, **arguments)
        if self.output == "projected":
            return outputs.image_embeds.float()  # [B, dim]
        if self.output == "pooler":
            if getattr(outputs, "pooler_output", None) is None:
                raise UserError(f"{self.name}: no pooler. Set backbone.output to cls_token or mean_patch_tokens")
            return outputs.pooler_output.flatten(1).float()  # [B, dim]
        tokens = outputs.last_hidden_state  # [B, prefix + patches, dim]; after the last norm
        prefix = tokens.shape[1] - patches  # the class token, and registers where the model has some
        if tokens.ndim != 3 or patches == 0 or prefix < (self.output == "cls_token"):
            raise UserError(
                f"{self.name}: backbone.output={self.output} needs a vision transformer with such tokens; "
                f"{type(self.model).__name__} returns {list(tokens.shape)}. Set backbone.output=pooler"
            )
        return (tokens[:, 0] if self.output == "cls_token" else tokens[:, prefix:].mean(dim=1)).float()


def processed(images: Tensor, processor: Any) -> Tensor:
    """uint8 images by the model's own image processor: float32 [B, 3, S, S]."""
    prepared = processor(images=grey_as_rgb(images), input_data_format="channels_first", return_tensors="pt")
    return prepared["pixel_values"]


def _load(folder: Path, output: str) -> tuple[nn.Module, Any]:
    """Model and image processor from a folder; every weight on the way to `output` must come from the files."""
    from transformers import AutoConfig, AutoImageProcessor

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config._attn_implementation = None  # a file can name a kernel on the hub there, which would be run
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        model_class, arguments = _model_class(folder, config, output)
        arguments |= {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
        model, loading = model_class.from_pretrained(folder, output_loading_info=True, **arguments)
    except UserError:
        raise
    except Exception as error:  # a config.json of any content can raise anything in there
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: the transformers library cannot load this as an image model ({problem})") from error
    if model.main_input_name != "pixel_values":
        raise UserError(
            f"{folder}: {type(model).__name__} takes {model.main_input_name}, not images alone. "
            "For CLIP set backbone.output=projected"
        )
    missing = sorted(key for key in loading["missing_keys"] if output == "pooler" or not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"{folder}: the files lack weights that backbone.output={output} needs, which would be random numbers: "
            f"{', '.join(missing)}. Choose another output ({', '.join(OUTPUTS)}) or complete weights"
        )
    return model, processor


def _model_class(folder: Path, config: Any, output: str) -> tuple[Any, dict[str, Any]]:
    """The class that gives this output, and what to build it with."""
    from transformers import MODEL_MAPPING, AutoModel, CLIPVisionModelWithProjection

    if output == "projected":
        if config.model_type not in ("clip", "clip_vision_model"):
            raise UserError(
                f"{folder}: backbone.output=projected is CLIP's, and this is {config.model_type}. "
                f"Set backbone.output to one of {', '.join(OUTPUTS[:-1])}"
            )
        return CLIPVisionModelWithProjection, {}
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0  # pretraining hides three quarters of the patches
    arguments = {"config": config}
    mapped: Any = MODEL_MAPPING[type(config)]
    if output != "pooler" and "add_pooling_layer" in inspect.signature(mapped).parameters:
        arguments["add_pooling_layer"] = False  # a pooler that the files lack would be made of random numbers
    return AutoModel, arguments
