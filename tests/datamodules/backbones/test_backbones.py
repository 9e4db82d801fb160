"""Backbones give what the libraries give, alone and in a batch; name what is missing; and are known by their bytes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BitImageProcessor,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from datamodules.backbones.backbone_base import prepare
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity, build_backbone
from datamodules.backbones.packaged_backbone import PackagedBackbone
from pipeline.settings.compose import compose
from storage.errors import UserError

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def transformers_settings(folder: Path, output: str = "cls_token") -> BackboneSettings:
    return BackboneSettings(name="tiny", kind="transformers", path=str(folder), revision="main", output=output)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT as DINO's are published: without a pooler."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY, intermediate_size=32), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("image_size", [128, 224])
def test_efficientnet_lite0_is_the_network_that_its_weights_were_published_for(image_size: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    settings = compose("embed", ["backbone=efficientnet_lite0", f"backbone.image_size={image_size}"]).backbone
    backbone = build_backbone(settings, resolution=8, channels=3)
    published = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(PackagedBackbone.files(settings)[0])
    ).eval()
    image = random_images(1, 3, image_size, image_size)
    with torch.no_grad():
        expected = published.extract_features(image / 127.5 - 1).mean(dim=(2, 3))  # mean and deviation 0.5
    assert backbone.dim == 1280
    torch.testing.assert_close(backbone.extract(image), expected, rtol=1e-4, atol=1e-5)
    assert backbone.identity["supervised"] == "ImageNet-1k"


def test_weights_of_a_package_that_are_not_there_or_others(tmp_path: Path) -> None:
    own = compose("embed", ["backbone=efficientnet_lite0"]).backbone
    damaged, other = tmp_path / "efficientnet-lite0-57934424.pth", tmp_path / "other.pth"
    damaged.write_bytes(PackagedBackbone.files(own)[0].read_bytes()[:-1])
    weights = torch.load(PackagedBackbone.files(own)[0], weights_only=True)
    torch.save(dict(reversed(weights.items())), other)
    for changed, words in (
        ({"package_file": "no_such_package/x.pth"}, r"cluster-conditioned-diffusion\[backbone\]"),
        ({"path": str(tmp_path / "none.pth")}, r"none\.pth: no such file\. Set backbone\.path=FILE"),
        ({"path": str(damaged)}, "its SHA-256 begins with .*; expected 57934424"),
        ({"path": str(other)}, "not the 296 tensors of tf_efficientnet_lite0"),
    ):
        with pytest.raises(UserError, match=words):
            build_backbone(replace(own, **changed), resolution=8, channels=3)
    with pytest.raises(UserError, match=r"backbone\.image_size=64: null is expected"):
        BackboneSettings(image_size=64)


def test_patch_tokens_leave_out_the_class_token_and_the_registers(tmp_path: Path):
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=4)).eval()
    model.save_pretrained(tmp_path)
    BitImageProcessor(do_resize=False, do_center_crop=False).save_pretrained(tmp_path)
    backbone = build_backbone(transformers_settings(tmp_path, "mean_patch_tokens"), resolution=32, channels=3)
    images = random_images(2, 3, 32, 32)
    pixels = BitImageProcessor.from_pretrained(tmp_path)(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state  # 1 class token, 4 registers, 16 patches
    torch.testing.assert_close(backbone.extract(images), tokens[:, -16:].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_weights_that_would_be_random_numbers_are_refused(vit_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"backbone\.output=cls: one of"):
        build_backbone(transformers_settings(vit_folder, "cls"), resolution=8, channels=3)
    with pytest.raises(UserError, match=r"pooler\.dense\.bias, pooler\.dense\.weight"):
        build_backbone(transformers_settings(vit_folder, "pooler"), resolution=8, channels=3)
    shutil.copytree(vit_folder, tmp_path / "more_layers")
    config = tmp_path / "more_layers/config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError, match=r"lack weights that backbone\.output=cls_token needs.*layer"):
        build_backbone(transformers_settings(tmp_path / "more_layers"), resolution=8, channels=3)


def test_a_network_without_tokens_has_a_pooler_only(tmp_path: Path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Set backbone\.output=pooler"):
        build_backbone(transformers_settings(tmp_path), resolution=8, channels=3)
    assert build_backbone(transformers_settings(tmp_path, "pooler"), resolution=8, channels=3).dim == 12


def test_a_backbone_stays_frozen_inside_a_training_module(vit_folder: Path):
    backbone = build_backbone(transformers_settings(vit_folder), resolution=8, channels=3)
    nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.extract(random_images(1, 3, 8, 8)).requires_grad


def test_the_identity_is_that_of_the_bytes(vit_folder: Path, tmp_path: Path):
    original = backbone_identity(transformers_settings(vit_folder), resolution=8, channels=3)
    copy = Path(shutil.copytree(vit_folder, tmp_path / "copy"))
    assert backbone_identity(transformers_settings(copy), resolution=64, channels=1) == original
    assert build_backbone(transformers_settings(copy), resolution=8, channels=3).identity == original
    assert backbone_identity(transformers_settings(copy, "mean_patch_tokens"), 8, 3) != original

    # transformers prefers this file where it is there.
    (copy / "processor_config.json").write_text('{"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}')
    assert backbone_identity(transformers_settings(copy), resolution=8, channels=3) != original
    (copy / "processor_config.json").unlink()

    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert backbone_identity(transformers_settings(copy), resolution=8, channels=3) != original


def test_weights_in_several_files_all_count(vit_folder: Path, tmp_path: Path):
    shutil.copytree(vit_folder, tmp_path, dirs_exist_ok=True)
    model = ViTModel.from_pretrained(vit_folder, add_pooling_layer=False)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    identity = backbone_identity(transformers_settings(tmp_path), resolution=8, channels=3)
    assert len(identity["files"]) == 3 + len(list(tmp_path.glob("model-*.safetensors"))) > 4
    images = random_images(2, 3, 32, 32)
    torch.testing.assert_close(
        build_backbone(transformers_settings(tmp_path), 8, 3).extract(images),
        build_backbone(transformers_settings(vit_folder), 8, 3).extract(images),
    )


def test_pixels_are_the_image_itself():
    backbone = build_backbone(BackboneSettings(), resolution=2, channels=1)
    features = backbone.extract(torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8))
    torch.testing.assert_close(features, torch.tensor([[-1.0, 1.0, -0.6, -0.2]]))
    assert backbone.dim == 4
    with pytest.raises(ValueError, match="was built for"):
        backbone.extract(random_images(1, 3, 2, 2))


# Inception ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random weights in the format that torch-fidelity publishes its own in."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # build the network without its weights, to save random ones
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), weights)
    yield weights
    weights.unlink()  # 90 MB


def inception_settings(path: Path | None) -> BackboneSettings:
    return BackboneSettings(name="inception", kind="inception", path=None if path is None else str(path))


@pytest.mark.slow
def test_inception_is_torch_fidelitys(inception_weights: Path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    backbone = build_backbone(inception_settings(inception_weights), resolution=32, channels=3)
    reference = FeatureExtractorInceptionV3("r", ["2048"], feature_extractor_weights_path=str(inception_weights))
    images = random_images(3, 3, 32, 32)
    expected = reference(images)[0]
    assert backbone.dim == 2048
    torch.testing.assert_close(backbone.extract(images), expected)
    mixed = backbone.features_of(prepare(backbone.preparation, [images[0], random_images(3, 40, 20), images[1]]))
    torch.testing.assert_close(mixed[[0, 2]], expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.extract(images[:, :1]), backbone.extract(images[:, :1].expand(-1, 3, -1, -1)))


def test_inception_weights_are_checked_before_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    published.write_bytes(b"not what the name says")
    with pytest.raises(UserError, match="expected 6726825d"):
        build_backbone(inception_settings(tmp_path), resolution=32, channels=3)
    harmful = tmp_path / "harmful.pth"
    torch.save({"weights": np.random.default_rng(0)}, harmful)  # any object at all: loading it would run code
    with pytest.raises(UserError, match="refused"):
        build_backbone(inception_settings(harmful), resolution=32, channels=3)
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of torch-fidelity's Inception"):
        build_backbone(inception_settings(tmp_path / "other.pth"), resolution=32, channels=3)
    with pytest.raises(UserError, match="no such file"):
        build_backbone(inception_settings(tmp_path / "absent.pth"), resolution=32, channels=3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", "file:///nonexistent/inception-6726825d.pth"
    )
    with pytest.raises(UserError, match=r"cannot be downloaded[\s\S]*evaluation\.weights\.inception=FILE"):
        build_backbone(inception_settings(None), 32, 3, setting="evaluation.weights.inception")
