"""Embedding in shards: interrupted runs go on, damage is noticed, bad values are named, memory stays small."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, Preparation
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from datamodules.backbones.pixel_backbone import PixelBackbone
from datamodules.embeddings import shards as embedding_shards
from datamodules.embeddings.embeddings import make_embeddings
from datamodules.embeddings.shards import join_shards, missing_shards, shards_of
from datamodules.images.sources import ImageSource
from storage.errors import UserError

from ..opening import opened

PIXELS = BackboneSettings()


def first_pixels(images: Tensor) -> Tensor:
    return images.float().flatten(1)[:, :4]


class FirstPixels(Backbone):
    """Four values per image; infinity where the first is 255. Counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__("first_pixels", {"kind": "first_pixels"})
        self.seen = 0

    @property
    def preparation(self) -> Preparation:
        return first_pixels

    def _features(self, inputs: Tensor) -> Tensor:
        self.seen += len(inputs)
        return torch.where(inputs[:, :1] == 255, torch.inf, inputs)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_shards, "SHARD_IMAGES", 10)


def coloured_folder(folder: Path, count: int, white: tuple[int, ...] = ()) -> ImageSource:
    for number in range(count):
        value = 255 if number in white else number
        Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return opened("folder", folder)


def test_an_interrupted_run_goes_on_from_its_last_whole_shard(
    small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    source = coloured_folder(tmp_path / "images", 35)
    whole = make_embeddings(source, FirstPixels(), tmp_path / "one", batch_size=4)
    with monkeypatch.context() as patch:
        read, calls = source.image, []

        def interrupted(index: int) -> Any:
            calls.append(index)
            if len(calls) == 26:
                raise KeyboardInterrupt
            return read(index)

        patch.setattr(source, "image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_embeddings(source, FirstPixels(), tmp_path / "two", batch_size=4)
    backbone = FirstPixels()
    resumed = make_embeddings(source, backbone, tmp_path / "two", batch_size=4)
    assert backbone.seen == 15  # 20 images were in whole shards
    assert torch.equal(resumed.values, whole.values)
    one, two = (next((tmp_path / name / "embeddings").glob("*.safetensors")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert not list((tmp_path / "two").rglob("*.shards"))


def test_a_damaged_shard_is_made_again(small_shards: None, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = coloured_folder(tmp_path / "images", 25)
    backbone = FirstPixels()
    embedding_shards.embed_shards(source, backbone, tmp_path, shards_of(25))
    damaged = bytearray((tmp_path / "000000010-000000020.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "000000010-000000020.safetensors").write_bytes(damaged)
    assert missing_shards(tmp_path, 25) == [range(10, 20)]
    assert missing_shards(tmp_path, 35) == [range(10, 20), range(20, 30), range(30, 35)]  # another data set's shards


def test_statistics_of_the_shards_are_those_of_the_whole(small_shards: None, tmp_path: Path) -> None:
    """Where a sum of squares would lose all digits: a large mean and a small spread."""
    values = 1e4 + torch.randn(37, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    for rows in shards_of(37):
        embedding_shards.write_artifact(
            embedding_shards.shard_path(tmp_path, rows), embedding_shards.KIND, {"values": values[list(rows)]}, {}
        )
    joined = join_shards(tmp_path, 37)
    assert torch.equal(joined["values"], values)
    np.testing.assert_allclose(joined["mean"], values.double().mean(dim=0), rtol=1e-7)
    np.testing.assert_allclose(joined["std"], values.double().std(dim=0, correction=0), rtol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_without_finite_features_are_named(small_shards: None, tmp_path: Path, num_workers: int) -> None:
    source = coloured_folder(tmp_path, 30, white=(13, 15, 17, 18))
    with pytest.raises(UserError, match=r"for '013\.png', '015\.png', '017\.png' … \(4 of the 10 images from"):
        make_embeddings(source, FirstPixels(), tmp_path / "cache", num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_without_a_traceback(tmp_path: Path, num_workers: int) -> None:
    source = coloured_folder(tmp_path, 12)
    (tmp_path / "007.png").write_bytes((tmp_path / "007.png").read_bytes()[:40])
    source = opened("folder", tmp_path)
    with pytest.raises(UserError, match=r"^mine: '007\.png'") as caught:
        make_embeddings(source, FirstPixels(), tmp_path / "cache", num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


class SlowPixels(PixelBackbone):
    def _features(self, inputs: Tensor) -> Tensor:
        time.sleep(0.2)
        return inputs


def embed_slowly(folder: Path) -> None:
    embedding_shards.SHARD_IMAGES = 128
    make_embeddings(opened("digits"), SlowPixels("pixels", 8, 1), folder, batch_size=64)


def test_after_kill_9_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = multiprocessing.get_context("fork").Process(target=embed_slowly, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.shards/0*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.shards/0*.safetensors")}
    assert 3 <= len(kept) < 15
    assert not list((tmp_path / "embeddings").glob("*.safetensors"))

    monkeypatch.setattr(embedding_shards, "SHARD_IMAGES", 128)
    source, backbone = opened("digits"), build_backbone(PIXELS, 8, 1)
    (folder,) = tmp_path.rglob("*.shards")
    missing = missing_shards(folder, len(source))
    assert len(missing) == 15 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    resumed = make_embeddings(source, backbone, tmp_path, batch_size=64)
    whole = make_embeddings(source, backbone, tmp_path / "whole", batch_size=64)
    assert torch.equal(resumed.values, whole.values)
    assert torch.equal(resumed.std, whole.std)


MEMORY = """
import sys, threading, time
from pathlib import Path
import numpy as np
from storage.artifacts import write_artifact
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from datamodules.backbones.pixel_backbone import PixelBackbone
from datamodules.embeddings.shards import embed_shards, join_shards, shards_of
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source

peak = 0

def watch():
    global peak
    while True:
        status = Path("/proc/self/status").read_text()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
        time.sleep(0.005)

folder, count = Path(sys.argv[1]), 20_000
source = open_source(DatasetSettings())
source.ids, source.image = ["x"] * count, lambda index: np.zeros((32, 32, 3), np.uint8)
backbone = build_backbone(BackboneSettings(), resolution=32, channels=3)
threading.Thread(target=watch, daemon=True).start()
embed_shards(source, backbone, folder, shards_of(count)[:2], batch_size=256)
two_shards = peak
embed_shards(source, backbone, folder, shards_of(count)[2:], batch_size=256)
joined = join_shards(folder, count)
write_artifact(folder / "all.safetensors", "embeddings", joined, {})
print(peak - two_shards, joined["values"].numel() * 4 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory a process has")
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    project = str(Path(embedding_shards.__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": project,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # freed: given back
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    growth, size = map(float, done.stdout.split())
    assert size > 200  # MB of embeddings
    assert growth < 60


class Weighted(FirstPixels):
    """A network that autocast can run in bfloat16."""

    def __init__(self, takes_bf16: bool) -> None:
        super().__init__()
        self.takes_bf16 = takes_bf16
        self.layer = torch.nn.Linear(4, 4)

    def _features(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).float()


def test_bfloat16_is_for_the_backbones_that_bear_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = coloured_folder(tmp_path / "images", 6)
    torch.manual_seed(0)
    quick, exact = Weighted(takes_bf16=True), Weighted(takes_bf16=False)
    exact.layer.load_state_dict(quick.layer.state_dict())
    whole, half, kept = (
        make_embeddings(source, backbone, tmp_path / name, precision=precision)
        for name, backbone, precision in (
            ("whole", quick, "32-true"),
            ("half", quick, "bf16-mixed"),
            ("kept", exact, "bf16-mixed"),
        )
    )
    assert half.values.dtype == torch.float32
    assert not torch.equal(half.values, whole.values)
    torch.testing.assert_close(half.values, whole.values, rtol=0.02, atol=0.02)
    assert torch.equal(kept.values, whole.values)
    assert half.meta["settings"] == {"precision": "bf16-mixed"}
