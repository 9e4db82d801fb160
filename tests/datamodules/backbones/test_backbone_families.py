"""Every YAML of configs/backbone through the real loader: tiny random weights, saved as the real ones are published."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, prepare
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity, build_backbone
from datamodules.embeddings.embeddings import load_embeddings, make_embeddings
from storage.errors import UserError

from ..opening import opened

CONFIGS = Path(__file__).parents[3] / "configs/backbone"
OPTIONS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY_VIT = {**TINY, "image_size": 32, "patch_size": 8}
SQUARE = {"size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}

Files = Callable[[Path], dict[str, Any]]  # writes a family's files into a folder; the settings that lead to them
Oracle = Callable[[Path, Tensor], Tensor]  # the library's own features of a folder's model, of prepared pixels
HF = transformers


def saved(model: Callable[[], Any], processor: Any) -> Files:
    def write(folder: Path) -> dict[str, Any]:
        model().save_pretrained(folder)
        processor.save_pretrained(folder)
        return {"path": str(folder)}

    return write


def class_token(model_class: Any, **arguments: Any) -> Oracle:
    def features(folder: Path, pixels: Tensor) -> Tensor:
        return model_class.from_pretrained(folder, **arguments)(pixels).last_hidden_state[:, 0]

    return features


def dinov2() -> Any:
    sizes = {key: value for key, value in TINY_VIT.items() if key != "intermediate_size"}
    return HF.Dinov2Model(HF.Dinov2Config(**sizes, mlp_ratio=2))


def mae() -> Any:
    """As published: with the decoder of pretraining, and a mask ratio of three quarters."""
    decoder = {f"decoder_{key}": value for key, value in TINY.items()}
    return HF.ViTMAEForPreTraining(HF.ViTMAEConfig(**TINY_VIT, **decoder, mask_ratio=0.75))


def clip() -> Any:
    """As published: both halves of CLIP in one file."""
    text = {**TINY, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": 12}
    vision = {**TINY_VIT, "projection_dim": 12}
    return HF.CLIPModel(HF.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))


def clip_oracle(folder: Path, pixels: Tensor) -> Tensor:
    model = HF.CLIPModel.from_pretrained(folder)
    return model.visual_projection(model.vision_model(pixels).pooler_output)


def timm_files(folder: Path) -> dict[str, Any]:
    model = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=7, **TINY_TIMM)
    timm.models.save_for_hf(model, str(folder), model_args=TINY_TIMM, safe_serialization=True)
    return {"path": str(folder)}


def timm_oracle(folder: Path, pixels: Tensor) -> Tensor:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model.forward_features(pixels)[:, 0]


def checkpoint(folder: Path, prefix: str, others: dict[str, Tensor], wrapped: dict[str, Any]) -> dict[str, Any]:
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY_TIMM)
    weights = {prefix + key: value for key, value in model.state_dict().items()} | others
    torch.save({"state_dict": weights, **wrapped}, folder / "checkpoint.pth")
    torch.save(model.state_dict(), folder / "backbone.pth")  # for the oracle
    return {"path": str(folder / "checkpoint.pth"), "arguments": TINY_TIMM}


def mocov3_files(folder: Path) -> dict[str, Any]:
    """As published: two encoders, each with a projection head, wrapped for several processes; and the optimizer."""
    head = {"module.base_encoder.head.0.weight": torch.ones(4, 16), "module.predictor.0.weight": torch.ones(4, 4)}
    momentum = {"module.momentum_encoder.patch_embed.proj.weight": torch.zeros(16, 3, 8, 8)}
    return checkpoint(folder, "module.base_encoder.", head | momentum, {"epoch": 300, "arch": "vit_base"})


def ibot_files(folder: Path) -> dict[str, Any]:
    return checkpoint(folder, "", {"masked_embed": torch.zeros(1, 16)}, {})


def checkpoint_oracle(folder: Path, pixels: Tensor) -> Tensor:
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY_TIMM).eval()
    model.load_state_dict(torch.load(folder / "backbone.pth", weights_only=True))
    return model.forward_features(pixels)[:, 0]


def packaged_files(folder: Path) -> dict[str, Any]:
    """As published: timm's tensors under names of its own, in the same order."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    torch.save({f"_{name}": value for name, value in model.state_dict().items()}, folder / "weights.pth")
    torch.save(model.state_dict(), folder / "model.pth")  # for the oracle
    return {"path": str(folder / "weights.pth"), "image_size": 32}


def packaged_oracle(folder: Path, pixels: Tensor) -> Tensor:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=False)
    return model(pixels)


CLIP = saved(clip, HF.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}))
FAMILIES: dict[str, tuple[Files, Oracle]] = {
    "dino": (
        saved(
            lambda: HF.ViTModel(HF.ViTConfig(**TINY_VIT), add_pooling_layer=False),
            HF.ViTImageProcessor(**SQUARE, resample=2),  # as on the hub; the YAML asks for bicubic interpolation
        ),
        class_token(HF.ViTModel, add_pooling_layer=False),
    ),
    "dinov2": (saved(dinov2, HF.BitImageProcessor(**CROPPED, resample=3)), class_token(HF.Dinov2Model)),
    "dinov3": (
        saved(
            lambda: HF.DINOv3ViTModel(HF.DINOv3ViTConfig(**TINY_VIT, num_register_tokens=4)),
            HF.DINOv3ViTImageProcessor(**SQUARE),
        ),
        lambda folder, pixels: HF.DINOv3ViTModel.from_pretrained(folder)(pixels).pooler_output,  # the class token
    ),
    "msn": (
        saved(lambda: HF.ViTMSNModel(HF.ViTMSNConfig(**TINY_VIT)), HF.ViTImageProcessor(**SQUARE)),
        class_token(HF.ViTMSNModel),
    ),
    # With its patches shuffled at random: the class token does not depend on their order.
    "mae": (saved(mae, HF.ViTImageProcessor(**SQUARE)), class_token(HF.ViTMAEModel, mask_ratio=0.0)),
    "clip": (CLIP, clip_oracle),
    "openclip": (CLIP, clip_oracle),
    "timm": (timm_files, timm_oracle),
    "mocov3": (mocov3_files, checkpoint_oracle),
    "ibot": (ibot_files, checkpoint_oracle),
    "efficientnet": (packaged_files, packaged_oracle),
}
FIRST = {option.split("_")[0]: option for option in reversed(OPTIONS)}  # of each family
ELSEWHERE = {"pixels", "embeddings", "inception"}  # no weights, and large ones: test_backbones.py


def settings_of(option: str, **overrides: Any) -> BackboneSettings:
    """The YAML's settings, some overridden; the tiny vision transformers take images of 32 pixels."""
    settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{option}.yaml"))
    assert isinstance(settings, dict)
    if "processing" in settings:
        settings["processing"]["input_size"] = [3, 32, 32]
    return BackboneSettings(**{**{str(key): value for key, value in settings.items()}, **overrides})


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The folder of a family's files, and the settings that lead to it; made once."""
    known: dict[str, tuple[Path, dict[str, Any]]] = {}

    def make(family: str) -> tuple[Path, dict[str, Any]]:
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            known[family] = folder, FAMILIES[family][0](folder)
        return known[family]

    return make


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_loads_and_gives_what_its_library_gives(
    option: str, made: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    assert settings_of(option).name == option
    if option not in ELSEWHERE:
        folder, overrides = made(option.split("_")[0])
        settings = settings_of(option, **overrides)
        assert None not in (settings.licence, settings.source, settings.output)
        backbone = build_backbone(settings, resolution=8, channels=3)
        oracle = FAMILIES[option.split("_")[0]][1]
        images = random_images(4, 3, 50, 40)
        with torch.no_grad():
            expected = oracle(folder, backbone.preparation(images))
        torch.testing.assert_close(backbone.extract(images), expected, rtol=1e-4, atol=1e-5)
        assert backbone.dim == expected.shape[1]
        assert len(pickle.dumps(backbone.preparation)) < 20_000  # processes that load images get no network
        if option == FIRST[option.split("_")[0]]:
            check_company(backbone, images)
            check_gradients(backbone, images)
            check_cache(settings, backbone, tmp_path)


def check_company(backbone: Backbone, images: Tensor) -> None:
    """The same features alone, in a batch, among images of other sizes, and twice in a row."""
    together = backbone.extract(images)
    assert torch.equal(together, backbone.extract(images))
    alone = torch.cat([backbone.extract(image[None]) for image in images])
    mixed = backbone.features_of(
        prepare(backbone.preparation, [images[0], random_images(3, 64, 20), images[1], random_images(1, 8, 8)])
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[[0, 2]], together[:2], rtol=1e-4, atol=1e-5)


def check_gradients(backbone: Backbone, images: Tensor) -> None:
    """Images with fractions have the same features, but for the rounding of resized ones, and a gradient."""
    values = images.float().requires_grad_()
    features = backbone.differentiable(values)
    expected = backbone.extract(images)
    torch.testing.assert_close(features.detach(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    (gradient,) = torch.autograd.grad(features.square().sum(), values)
    assert (gradient[..., 20:30, 15:25] != 0).float().mean() > 0.9  # what no processor crops away
    assert gradient.isfinite().all()


def check_cache(settings: BackboneSettings, backbone: Backbone, cache_dir: Path) -> None:
    source = opened("digits", max_images=5)
    embeddings = make_embeddings(source, backbone, cache_dir, batch_size=5)
    identity = backbone_identity(settings, resolution=8, channels=3, cache_dir=cache_dir)
    loaded = load_embeddings(source, identity, cache_dir)
    images = torch.stack([torch.as_tensor(source.image(index)).permute(2, 0, 1) for index in range(5)])
    assert torch.equal(embeddings.values, loaded.values)
    torch.testing.assert_close(loaded.values, backbone.extract(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - ELSEWHERE))
def test_pictures_are_prepared_as_by_the_librarys_own_processor(
    option: str, made: Callable[[str], tuple[Path, dict[str, Any]]]
) -> None:
    """Compared with Pillow's antialiased resizing, small images enlarged and large ones reduced; bytes round by one."""
    folder, overrides = made(option.split("_")[0])
    settings = settings_of(option, **overrides)
    backbone = build_backbone(settings, resolution=8, channels=3)
    for shape in ((1, 3, 20, 20), (1, 3, 90, 70)):
        images = random_images(*shape)
        picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
        if settings.kind == "transformers":
            processor = pillow_processor(folder)
            if settings.interpolation:
                processor.resample = Image.Resampling[settings.interpolation.upper()]
            expected = processor(picture, return_tensors="pt")["pixel_values"]
        else:
            expected = timm.data.create_transform(**backbone.processing)(picture)[None]  # type: ignore[arg-type]
        pixels = backbone.preparation(images)
        assert pixels.shape == expected.shape
        assert (pixels - expected).abs().max() < 2 / 255 / 0.22


def pillow_processor(folder: Path) -> Any:
    """The processor's Pillow twin where there is one; DINOv3 has none, so its own steps by Pillow's filter."""
    processor = HF.AutoImageProcessor.from_pretrained(folder)
    if "DINOv3" not in type(processor).__name__:
        return HF.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def process(picture: Image.Image, return_tensors: str) -> dict[str, Tensor]:
        resized = picture.resize((32, 32), Image.Resampling.BILINEAR)
        values = timm.data.transforms.MaybeToTensor()(resized)
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (processor.image_mean, processor.image_std))
        return {"pixel_values": ((values - mean) / std)[None]}

    return process


def test_interpolation_is_the_one_that_is_set(made: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    """Bicubic for DINO whatever its processor says, and part of the identity; others have a filter of their own."""
    _, overrides = made("dino")
    images, identities, pixels = random_images(1, 3, 20, 20), set(), []
    for interpolation in (None, "bilinear", "bicubic"):
        settings = settings_of("dino_vitb16", **overrides, interpolation=interpolation)
        backbone = build_backbone(settings, resolution=8, channels=3)
        identities.add(str(backbone.identity))
        pixels.append(backbone.preparation(images))
    assert len(identities) == 3
    assert torch.equal(pixels[0], pixels[1])
    assert (pixels[2] - pixels[1]).abs().max() > 0.1
    assert settings_of("dino_vitb16").interpolation == "bicubic"
    with pytest.raises(UserError, match=r"backbone\.interpolation=bicubic: null is expected.*kind timm"):
        settings_of("timm", interpolation="bicubic")


def test_timm_names_the_nearest_models() -> None:
    settings = settings_of("timm")
    with pytest.raises(UserError, match=r"backbone\.model=NAME"):
        build_backbone(settings, resolution=8, channels=3)
    with pytest.raises(UserError, match=r"Did you mean .*vit_small_patch16_224\.dino"):
        build_backbone(replace(settings, model="vit_small_patch16_224.dinno"), resolution=8, channels=3)


def test_the_table_of_backbones_is_whole() -> None:
    """Each YAML has its row, with the command that chooses it, its model's name and the length of its features."""
    table = (CONFIGS.parents[1] / "docs/backbones.md").read_text()
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `backbone=")}
    assert {f"backbone={option}" for option in OPTIONS} == {command.split()[0] for command in rows}
    for command, row in rows.items():
        settings = settings_of(command.split()[0].removeprefix("backbone="))
        assert settings.model is None or settings.model in row
        assert settings.revision in (None, "main", *row.split("`"))
