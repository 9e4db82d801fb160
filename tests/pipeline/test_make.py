"""`make` passes its variables on as they were typed, and each target runs its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.settings.compose import CONFIGS, compose
from pipeline.settings.make import command_lines
from storage.errors import UserError

PRINT_VARIABLES = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('CEDM_')}))"
PATHS = [
    "/home/me/John's  photos",
    "a;b",
    "$HOME",
    "$(shell touch evil)",
    "`touch evil`",
    '"',
    "a\\b",
    "ä=ö",
    "run_dir=x",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_the_data_set_as_it_was_typed(path: str, tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{PRINT_VARIABLES}"\n')
    python.chmod(0o755)
    make = ["make", "-f", str(CONFIGS.parent / "Makefile"), "train", f"PYTHON={python}", f"DATA={path}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # of `make test`
    done = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    variables = {key.removeprefix("CEDM_"): value for key, value in json.loads(done.stdout).items()}
    assert variables["DATA"] == path
    assert variables["DATASET"] == ""  # nobody typed it
    (_, words), *_ = command_lines("train", variables | {"DATASET": "folder"})
    assert compose("embed", words).dataset.path == path
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_the_run_folder_is_the_last_commands():
    variables = {"ARGS": "run_dir='my run' overwrite=true seed=1", "DEVICES": "2"}
    lines = dict(command_lines("train", variables))
    assert list(lines) == ["embed", "cluster", "train"]
    assert lines["embed"] == lines["cluster"] == ["dataset=digits", "trainer.devices=2", "seed=1"]
    assert lines["train"][2:] == ["run_dir=my run", "overwrite=true", "seed=1"]
    with pytest.raises(UserError, match="ARGS="):
        list(command_lines("train", {"ARGS": "'a"}))


def test_bound_and_assign_embed_first_and_score_takes_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each command of a target must know the words that it is given."""
    monkeypatch.chdir(tmp_path)
    for target in ("score", "assign"):
        with pytest.raises(UserError, match="make cluster"):
            list(command_lines(target, {}))
    for age, name in enumerate(("mine/cluster-temi-40/1", "digits/cluster-temi-40/1", "digits/cluster-kmeans-40/2")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for file in ("head.safetensors", "pseudo_labels.safetensors"):
            if file[0] == "p" or "temi" in name:
                (folder / file).touch()
                os.utime(folder / file, (age, age))
    found = {}
    for target, variables in {
        "bound": {"ARGS": "bound.grid=[5,10] run_dir=x seed=1"},
        "score": {},
        "assign": {"DATA": "/new images", "ARGS": "map_images=0"},
    }.items():
        lines = found[target] = dict(command_lines(target, variables))
        for command, words in lines.items():
            compose(command, words)
    assert found["bound"] == {
        "embed": ["dataset=digits", "seed=1"],
        "bound": ["dataset=digits", "bound.grid=[5,10]", "run_dir=x", "seed=1"],
    }
    newest = "runs/digits/cluster-kmeans-40/2/pseudo_labels.safetensors"
    assert found["score"] == {"score": ["dataset=digits", f"assignments={newest}"]}
    assert list(found["assign"]) == ["embed", "assign"]
    assert found["assign"]["assign"][0] == "head=runs/digits/cluster-temi-40/1/head.safetensors"
    assert not any(word.startswith("head=") for word in found["assign"]["embed"])
    given = {"ASSIGNMENTS": "a b.csv", "DATASET": "cifar10"}
    assert dict(command_lines("score", given)) == {"score": ["dataset=cifar10", 'assignments="a b.csv"']}
    assert list(dict(command_lines("bound", given))) == ["bound"]


def test_embeddings_of_a_file_need_no_data_set():
    for target in ("embed", "cluster"):
        words = dict(command_lines(target, {"EMBEDDINGS": "my e.npy"}))[target]
        assert compose(target, words).dataset.path == "my e.npy"
    both = dict(command_lines("cluster", {"EMBEDDINGS": "e.npy", "DATASET": "digits"}))["cluster"]
    settings = compose("cluster", both)
    assert (settings.dataset.kind, settings.backbone.path) == ("digits", "e.npy")


def test_data_tells_the_kind_of_data_set(tmp_path: Path):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images/a.png")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_info.json").touch()
    kinds = {
        "images": "folder",
        "saved": "hf",
        "a.zip": "zip",
        "a.npy": "npy",
        "a.npz": "npy",
        "a.tar": "hf",
        "gone": "folder",
    } | {"a.H5": "hdf5"}
    for name, kind in kinds.items():
        (_, words), *_ = command_lines("embed", {"DATA": str(tmp_path / name)})
        assert words[0] == f"dataset={kind}"
    (_, words), *_ = command_lines("embed", {"DATA": "ylecun/mnist"})
    assert words[0] == "dataset=hf"


def test_the_newest_model_and_study_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make train"):
        list(command_lines("generate", {}))
    files = ["digits/train-none/1; rm x/denoiser.safetensors", "digits/train-temi-40/2/denoiser.safetensors"]
    files += ["digits/study-granularity/1/summary.json", "mine/study-auto/2/summary.json"]
    for age, name in enumerate(files):
        (tmp_path / "runs" / name).parent.mkdir(parents=True)
        (tmp_path / "runs" / name).touch()
        os.utime(tmp_path / "runs" / name, (age, age))
    assert dict(command_lines("generate", {}))["generate"][0] == "ckpt=runs/digits/train-temi-40/2/denoiser.safetensors"
    assert dict(command_lines("report", {}))["report"] == ["run=runs/mine/study-auto/2"]
    assert dict(command_lines("report", {"DATASET": "digits"}))["report"] == ["run=runs/digits/study-granularity/1"]
