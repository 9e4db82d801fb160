"""Zero-shot CLIP, on a tiny random model in the real files' format, against transformers' own logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.clip_text import embed_class_names, read_class_names
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.kmeans import zero_shot
from storage.errors import UserError

from .conftest import Cedm

NAMES = ["cat", "old dog", "ship"]


def save_tiny_clip(folder: Path) -> CLIPModel:
    """Model, image processor and tokenizer (one token per letter) as `save_pretrained` writes them."""
    letters = [*"abcdefghijklmnopqrstuvwxyz."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=40)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    tower = {
        "projection_dim": 12,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 40},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # as initialised, all texts are nearly one
    model.save_pretrained(folder)
    size = {"shortest_edge": 16}
    CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def backbone(folder: Path) -> dict[str, Any]:
    return {"name": "tiny", "model": "nobody/nothing", "revision": "main", "path": str(folder), "output": "projected"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_tiny_clip(folder)


@torch.no_grad()
def test_it_chooses_as_transformers_own_logits_do(tiny: tuple[Path, CLIPModel]) -> None:
    folder, model = tiny
    pixels = torch.randn(20, 3, 16, 16)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer([f"a drawing of a {name}." for name in NAMES], padding=True, return_tensors="pt")
    assert len({tuple(row) for row in tokens["input_ids"].tolist()}) == 3
    expected = model(**tokens, pixel_values=pixels).logits_per_image.softmax(dim=1)  # [20, 3]

    texts = embed_class_names(BackboneSettings(**backbone(folder)), NAMES, "a drawing of a {}.")
    images = 7 * model.get_image_features(pixels).pooler_output  # their length must not matter
    cluster_ids, confidence = zero_shot(images, texts.embeddings, texts.logit_scale)
    assert torch.equal(cluster_ids, expected.argmax(dim=1))
    torch.testing.assert_close(confidence, expected.max(dim=1).values)
    assert len(cluster_ids.unique()) > 1


def test_features_of_another_space_are_refused() -> None:
    with pytest.raises(ValueError, match="not one space"):
        zero_shot(torch.randn(4, 16), torch.randn(3, 12), 100.0)


def test_files_that_are_no_clip_model(tiny: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clip_vitl14"):
        embed_class_names(BackboneSettings(**backbone(tmp_path)), NAMES, "{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="cannot be loaded as a CLIP model"):
        embed_class_names(BackboneSettings(**backbone(tmp_path)), NAMES, "{}")


def test_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\n old dog \n")
    assert read_class_names(str(tmp_path / "names.txt"), None) == ["cat", "old dog"]
    assert read_class_names([1, "b"], ["x", "y"]) == ["1", "b"]
    assert read_class_names(None, ["x", "y"]) == ["x", "y"]
    for given in (["cat"], ["cat", "cat"], str(tmp_path / "gone.txt"), None):
        with pytest.raises(UserError, match=r"class_names"):
            read_class_names(given, None)


def test_the_command(cedm: Cedm, workplace: Path, tiny: tuple[Path, CLIPModel]) -> None:
    settings = ["clustering=clip", "backbone=clip_vitl14", f"backbone.path={tiny[0]}", "dataset.max_images=40"]
    names = "clustering.class_names=[a round one,a line]"
    assert cedm("embed", *settings).code == 0
    result = cedm("cluster", *settings, names, "map_images=30", "run_dir=run")
    assert result.code == 0, result.err
    labels = PseudoLabels.load("run/pseudo_labels.safetensors")
    assert (labels.num_clusters, labels.meta["cluster_names"]) == (2, ["a round one", "a line"])
    assert 0.5 <= labels.confidence.min() <= labels.confidence.max() <= 1
    assert all(Path("run", name).is_file() for name in ("gallery.png", "clusters.png", "map.png"))
    assert "Nothing to do" in cedm("cluster", *settings, names).out
    other = cedm("cluster", *settings, names, "clustering.prompt=a photo", "run_dir=other")
    assert (other.code, "clustering.prompt" in other.err) == (2, True)


def test_a_backbone_without_text_is_refused(cedm: Cedm, workplace: Path) -> None:
    result = cedm("cluster", "clustering=clip")
    assert (result.code, "backbone=clip_vitl14" in result.err) == (2, True), result.err


def test_a_study_sets_it_beside_other_groups(cedm: Cedm, workplace: Path, tiny: tuple[Path, CLIPModel]) -> None:
    """With its own backbone, whatever the others have; left out where its weights are not to be had."""
    study = ["study", "study=conditioning", "study.seeds=[0]", "study.clusters=[5]", "study.print=true"]
    study.append("backbone=pixels")
    clip = f'study.runs.clip=["clustering=clip","backbone=clip_vitl14","backbone.path={tiny[0]}"]'
    result = cedm(*study, clip)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    own = [line for line in lines if "clustering=clip" in line]
    assert [line.split()[1] for line in own] == ["embed", "cluster", "train", "evaluate"]
    assert all("clip_vitl14" in line and "backbone=pixels" not in line for line in own)
    assert all("backbone=pixels" in line for line in lines if line not in own)
    without = cedm(*study, clip.replace(str(tiny[0]), str(workplace / "nothing"))).out
    assert "# clip: left out, " in without
    assert "clustering=kmeans" in without
