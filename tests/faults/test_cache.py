"""The cache: no wrong read, one computation, a miss for whatever changes the result and a hit for whatever does not."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import storage.digests as digests
from callbacks.snapshots import seal, seal_holds
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity
from datamodules.embeddings.embeddings import embeddings_path
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from storage.artifacts import make_once, read_artifact, write_artifact
from storage.errors import UserError

from .conftest import TEMI, Trials, digest
from .jobs import Forks

pytestmark = pytest.mark.faults
KIND, REMAKE = "embeddings", "cedm embed"


def test_killed_inside_a_cache_write(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    expected = None
    for rng in trials("kill -9 inside a cache write: nothing half-written, no temporary files after", 20):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start(
            "embed",
            *TEMI,
            folder=folder,
            sabotage="kill_in_cache_write",
            environment={"SABOTAGE_SEED": str(rng.random())},
        )
        assert job.wait() == -signal.SIGKILL
        entries = (folder / "cache").rglob("*.safetensors")
        assert all(any(part.endswith(".tmp") for part in path.parts) for path in entries)
        forks.start("embed", *TEMI, folder=folder).succeed()
        assert not list(folder.rglob("*.tmp"))
        made = {path.name: digest(path) for path in (folder / "cache").rglob("*.safetensors")}
        expected = expected or made
        assert made == expected
        assert len(made) == 2


def test_damaged_entries(trials: Trials, tmp_path: Path) -> None:
    """Bit flips and truncations of an entry of 300 embeddings, and of a sealed snapshot."""
    path, snapshot = tmp_path / "a.safetensors", tmp_path / "step-00000001.ckpt"
    write_artifact(path, KIND, {"values": torch.randn(300, 64), "mean": torch.randn(64)}, {"seed": 3})
    torch.save({"state_dict": {"weight": torch.randn(64, 64)}, "global_step": 1}, snapshot)
    seal(snapshot)
    assert seal_holds(snapshot)
    whole = {file: file.read_bytes() for file in (path, snapshot)}
    row = trials("300 bit flips and 100 truncations of a cache entry and a snapshot: noticed", 400, least=100)
    for number, rng in enumerate(row):
        for file, content in whole.items():
            damaged = bytearray(content)
            if number % 4:
                damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            else:
                damaged = damaged[: rng.randrange(len(content))]
            file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.safetensors"):
            read_artifact(path, KIND)
        assert not seal_holds(snapshot)


def test_processes_racing_for_one_entry(trials: Trials, tmp_path: Path) -> None:
    row = "8 processes race for one entry, missing or damaged: one computation, one answer"
    for rng, damaged in trials.each(row, [True, False] * 5, least=2):
        path = tmp_path / f"{rng.random()}.safetensors"
        if damaged:
            path.write_bytes(b"damaged")
        pids = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                values = make_once(path, KIND, partial(compute, path)).tensors["values"]
                os._exit(0 if torch.equal(values, torch.ones(1000)) else 1)
            pids.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
        assert path.with_suffix(".log").read_text() == "computed\n"


def compute(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    with path.with_suffix(".log").open("a") as log:
        log.write("computed\n")
    time.sleep(0.05)
    return {"values": torch.ones(1000)}, {"seed": 1}


def test_the_disk_fills_up_in_a_cache_write(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("disk full in a cache write: a clear error, nothing half-written", 6):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start("embed", *TEMI, folder=folder, file_size=rng.randrange(20_000, 70_000))
        assert job.wait() == 2, job.words()
        assert "the disk or your quota is full" in job.words()
        assert not list((folder / "cache").rglob("*.safetensors"))
        assert not list(folder.rglob("*.tmp"))
        forks.start("embed", *TEMI, folder=folder).succeed()


def test_hits_and_misses(trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached name of the embeddings of 12 labelled images by a transformers network."""
    monkeypatch.setattr(digests, "SETTLED_AFTER_NS", -1)  # digests are remembered at once, which is the harder case
    images, weights, cache = tmp_path / "images", tmp_path / "weights", tmp_path / "cache"
    make_images(images)
    make_network(weights)

    def entry(images: Path, weights: Path) -> Path:
        settings = BackboneSettings(name="vit", kind="transformers", path=str(weights), output="cls_token")
        identity = backbone_identity(settings, 16, 3, cache)
        dataset = DatasetSettings(kind="folder", name="mine", path=str(images))
        return embeddings_path(cache, open_source(dataset, cache), identity)

    row = trials("one pixel, weight byte, label or transform setting: a miss; time or place: a hit", 100, least=100)
    for number, rng in enumerate(row):
        before = entry(images, weights)
        change = ("pixel", "weight", "label", "transform", "time", "place")[number % 6]
        if change == "pixel":
            path = rng.choice(sorted(images.rglob("*.png")))
            pixels = np.array(Image.open(path))
            pixels[rng.randrange(16), rng.randrange(16), rng.randrange(3)] ^= 1
            Image.fromarray(pixels).save(path)
        elif change == "weight":
            flip_last_bytes(weights / "model.safetensors", rng.randrange(1, 2000))
        elif change == "label":
            labels = json.loads((images / "dataset.json").read_text())
            row = rng.choice(labels["labels"])
            row[1] = (row[1] + 1) % 10
            (images / "dataset.json").write_text(json.dumps(labels))
        elif change == "transform":
            settings = json.loads((weights / "preprocessor_config.json").read_text())
            settings["image_mean"][0] += 0.01
            (weights / "preprocessor_config.json").write_text(json.dumps(settings))
        elif change == "time":
            for path in [*images.rglob("*.png"), *weights.iterdir()]:
                os.utime(path, (rng.random() * 1e9, rng.random() * 1e9))
        else:
            moved = tmp_path / f"{rng.random()}"
            shutil.copytree(images, moved / "images")
            shutil.copytree(weights, moved / "weights")
            images, weights = moved / "images", moved / "weights"
        assert (entry(images, weights) == before) == (change in ("time", "place")), change


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(12):
        path = folder / f"{row % 3}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    labels = [[f"{row % 3}/{row}.png", row % 3] for row in range(12)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def make_network(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def flip_last_bytes(path: Path, place_from_end: int) -> None:
    content = bytearray(path.read_bytes())
    content[-place_from_end] ^= 1
    path.write_bytes(content)
