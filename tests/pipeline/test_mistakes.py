"""What users get wrong: one clear message, a non-zero exit code, nothing half-made."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import run

from .conftest import Cedm


def image_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((10, 10, 3), index, dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("command", "overrides", "expected"),
    [
        ("train", ["trainer.device=2"], ["trainer.device", "trainer.devices"]),
        ("train", ["lr=2"], ["training.lr", "clustering.lr"]),
        ("embed", ["datset=digits"], ["datset", "dataset"]),
        ("embed", ["dataset=cifar"], ["cifar10", "cifar100"]),
        ("cluster", ["clustering=kmean"], ["kmeans"]),
        ("embed", ["dataset=["], ["key=value"]),
        ("train", ["training.batch_size=many"], ["training.batch_size=many", "whole number"]),
        ("train", ["network.dropout=" + "9" * 400], ["network.dropout: a number too large"]),
        ("train", ["+x={}"], ["no setting 'x'"]),
        ("average", ["run=gone", "length=nan"], ["length=nan", "a number is expected"]),
        ("train", ["training.batch_size=0"], ["training.batch_size=0", "from 1"]),
        ("embed", ["dataset=folder"], ["dataset.path=FOLDER", "DATA=FOLDER"]),
        ("embed", ["dataset=folder", "dataset.path=nowhere"], ["nowhere"]),
        ("embed", ["dataset=zip", "dataset.path=nothing.zip"], ["nothing.zip"]),
        ("embed", ["clustering.num_neighbours=1797"], ["1797", "1796"]),
        ("cluster", ["clustering.num_clusters=2000"], ["2000", "1797 images"]),
        ("cluster", [], ["cedm embed"]),
        ("train", [], ["cedm cluster"]),
        ("train", ["conditioning=cluster"], ["conditioning=cluster", "none"]),
        ("train", ["conditioning=none", "training.batch_size=2000"], ["2000", "1797"]),
        ("train", ["conditioning=none", "network.channel_mult=[1,1,1,1,1]"], ["8", "levels"]),
        ("train", ["conditioning=none", "evaluation.backbone=pixel"], ["pixel", "pixels"]),
        ("train", ["conditioning=none", "trainer.accelerator=gpu"], ["trainer.accelerator=gpu"]),
        ("train", ["conditioning=none", "init_from=gone.safetensors"], ["gone.safetensors"]),
        ("train", ["assignments=gone.npy"], ["gone.npy"]),
        ("embed", ["trainer.accelerator=gpu"], ["trainer.accelerator=gpu"]),
        ("embed", ["dataset.max_images=many"], ["dataset.max_images=many", "whole number"]),
        ("embed", ["cache_dir=/dev/null/x"], ["cache_dir="]),
        ("embed", ["dataset.name='a=b'"], ["dataset.name=a=b"]),
        ("embed", ["dataset.path=/a=b"], ["quotes"]),
        ("embed", ["clustering.num_clusters=1"], ["from 2"]),
        ("train", ["~dataset"], ["~dataset", "key=null"]),
        ("embed", ["~seed"], ["~seed"]),
        ("score", [], ["assignments must be given"]),
        ("assign", ["head=gone"], ["head=gone", "head.safetensors", "cedm cluster"]),
        ("train", ["conditioning=none", "trainer.precision=bf17"], ["bf16-mixed"]),
        ("train", ["trainer.strategy=fsdp_cpu_offload"], ["averages of the weights", "trainer.strategy=ddp."]),
        ("train", ["trainer.strategy=ddp_spawn"], ["hand nothing back"]),
        ("train", ["trainer.max_time=5"], ["trainer.max_time=5", "DD:HH:MM:SS"]),
        ("train", ["trainer.max_time={hours:1,weeks:1}"], ["DD:HH:MM:SS"]),
        ("train", ["trainer.deterministic=maybe"], ["true, false or warn"]),
        ("train", ["trainer.compile=maybe"], ["auto, true, false or cuda_graphs"]),
        ("train", ["conditioning=none", "trainer.compile=cuda_graphs", "trainer.accelerator=cpu"], ["a CUDA GPU"]),
        ("train", ["training.max_batch_per_device=many"], ["auto, null or a whole number"]),
        ("train", ["trainer.gradient_clip_val=1", "trainer.precision=16-mixed"], ["bf16-mixed"]),
        ("train", ["callbacks=[early_stopping]"], ["one of lr_monitor, device_stats, rich_progress"]),
        ("train", ["callbacks=lr_monitor", "logger=none"], ["callbacks=", "logger=none. Set logger=csv"]),
        ("cluster", ["callbacks=[device_stats]", "logger=[]"], ["callbacks=", "Set logger=csv"]),
        (
            "train",
            ["callbacks=rich_progress", "trainer.enable_progress_bar=false"],
            ["is a progress bar."],
        ),
        ("train", ["trainer.max_steps=5"], ["Set training.duration_kimg"]),
        ("train", ["+trainer.accumulate_grad_batches=2"], ["training.max_batch_per_device"]),
        ("train", ["conditioning=none", "run_dir=/dev/null/x"], ["run_dir="]),
        ("train", ["assignments=same.npy"], ["all 1,797 images are in one cluster"]),
        ("train", ["assignments=huge.npy"], ["huge.npy"]),
        ("train", ["assignments=short.npy"], ["10 cluster ids for 1797 images of digits"]),
        ("train", ["conditioning=none", "dataset.resolution=9"], ["9×9", "8 or 10"]),
        ("train", ["conditioning=none", "sampler.guidance_interval=[3]"], ["[0.2,3]"]),
        ("train", ["conditioning=none", "sampler.guidance=2"], ["sampler.guidance=2", "training.label_dropout"]),
        ("generate", [], ["ckpt"]),
        ("generate", ["ckpt=gone"], ["gone"]),
    ],
)
def test_a_mistake_ends_in_one_message(
    cedm: Cedm, workplace: Path, command: str, overrides: list[str], expected: list[str]
) -> None:
    np.save("same.npy", np.full(1797, 3))
    np.save("short.npy", np.arange(10))
    np.save("huge.npy", np.full(1797, 1_800_000_000_000))
    result = cedm(command, *overrides)
    assert result.code == 2, result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    for words in expected:
        assert words in result.err
    assert not (workplace / "runs").exists()
    assert not list(workplace.glob("**/*.tmp*"))


def test_an_empty_folder(cedm: Cedm, workplace: Path) -> None:
    result = cedm("embed", "dataset=folder", f"dataset.path={image_folder(workplace / 'empty', 0)}")
    assert (result.code, "no image" in result.err) == (2, True)


def test_fewer_images_than_neighbours(cedm: Cedm, workplace: Path) -> None:
    path = image_folder(workplace / "few", 5)
    result = cedm("embed", "dataset=folder", f"dataset.path={path}", "clustering.num_neighbours=50")
    assert result.code == 2
    assert "clustering.num_neighbours=50" in result.err


def test_labels_asked_for_and_absent(cedm: Cedm, workplace: Path) -> None:
    path = image_folder(workplace / "few", 5)
    result = cedm("cluster", "dataset=folder", f"dataset.path={path}", "clustering=labels")
    assert result.code == 2
    assert "no labels" in result.err


def test_no_weights_and_no_network(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(workplace / "hub"))
    result = cedm("embed", "backbone=dino_vitb16")
    assert result.code == 2
    assert "facebook/dino-vitb16" in result.err
    assert "backbone.path" in result.err


def test_a_disk_without_room(cedm: Cedm, workplace: Path) -> None:
    """A limit on the size of files fails as a full disk does, inside of safetensors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # the embeddings of the digits take 460 kB
    try:
        result = cedm("embed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.code == 2
    assert "error: the disk is full" in result.err
    assert "cache_dir=" in result.err
    assert not list(Path("cache/embeddings").glob("*.safetensors"))  # whole shards of them are kept
    assert not list(workplace.rglob("*.tmp*"))
    assert not (workplace / "runs").exists()
    assert cedm("embed").code == 0


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "Did you mean `cedm train`" in capsys.readouterr().err
    assert run([]) == 0
    assert "embed" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"cedm \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_for_a_reader_that_leaves(workplace: Path) -> None:
    """`cedm train --help | head` ends without a traceback, whether or not the pipe is still open in time."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "pipeline", "train", "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
