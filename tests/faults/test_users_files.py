"""Files of users: none is deleted, and none is taken for what it is not."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from storage.artifacts import read_artifact

from .conftest import EDM, Trials
from .jobs import Forks
from .test_cache import make_images

pytestmark = pytest.mark.faults
FOLDER = ["dataset=folder", "dataset.path=.", "dataset.resolution=16", "dataset.channels=3", "backbone=pixels"]
KMEANS = ["clustering=kmeans", "clustering.num_clusters=3", "map_images=0"]
TEMI = [
    "dataset.max_images=100", "clustering.num_clusters=4", "clustering.num_heads=1", "clustering.num_neighbours=5",
    "clustering.batch_size=50", "clustering.max_epochs=1", "clustering.warmup_epochs=1",
]  # fmt: skip


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_temporary_folders_of_others(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("folders .x.tmp of other programs below cache_dir=. and run_dir: untouched", 20, least=3):
        folder = tmp_path / f"{rng.random()}"
        for place in (".", "deep/er", "embeddings", "run", "run/snapshots.old"):
            name = rng.choice([".mywork.tmp", f".x.{rng.getrandbits(32):08x}.tmp", ".tmp", "a.tmp", ".a.ckpt.tmp"])
            (folder / place / name).mkdir(parents=True)
            for file in rng.sample([".lock", "thesis.txt", "a.safetensors"], 2):
                (folder / place / name / file).write_text("mine")
        before = content_of(folder)
        forks.start("train", *EDM, "cache_dir=.", "run_dir=run", folder=folder).succeed()
        assert content_of(folder).items() >= before.items()


def test_own_output_below_the_data_set(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """The images lie in the current folder, the cache and all runs somewhere below it, or behind a link."""
    for rng in trials("caches and runs below the data set, also behind links: never images of it", 10, least=2):
        folder = tmp_path / f"{rng.random()}"
        make_images(folder)
        places = [rng.choice([".", "cache", "0/cache", "../elsewhere/cache"]), "runs/a", "1/run", f"../{folder.name}/b"]
        (folder / "linked").symlink_to("../elsewhere" if rng.random() < 0.5 else "runs", target_is_directory=True)
        for number in range(3):
            settings = [*FOLDER, *KMEANS, f"cache_dir={places[0]}", f"run_dir={places[1 + number]}"]
            forks.start(("embed", "cluster", "embed")[number], *settings, folder=folder).succeed()
        words = (folder / "out0.txt").read_text()
        assert words.count(": 12 images") == 3
        assert "Nothing to do: they were there already" in words
        shutil.rmtree(folder.parent / "elsewhere", ignore_errors=True)


def test_swapped_entries(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """Each entry takes the place of one of its kind that was made from something else."""
    row = "cache entries swapped for those of other images or settings: named, kept, not used"
    for rng in trials(row, 10):
        folder = tmp_path / f"{rng.random()}"
        for settings in ([], ["dataset.max_images=90", "seed=1"]):
            for command in ("embed", "cluster"):
                forks.start(command, *TEMI, *settings, f"run_dir={command}{len(settings)}", folder=folder).succeed()
        for kind in ("embeddings", "neighbours", "pseudo-labels"):
            alike: dict[str, list[Path]] = {}
            for path in sorted((folder / "cache" / kind).glob("*.safetensors")):
                alike.setdefault(re.sub("[0-9a-f]{16}", "", path.stem), []).append(path)
            for pair in alike.values():
                swap(*pair)
        before = content_of(folder / "cache")
        forks.start("embed", *TEMI, "run_dir=embed-again", folder=folder).succeed()
        job = forks.start("cluster", *TEMI, "run_dir=cluster-again", folder=folder)
        job.succeed()
        assert job.words().count("made from other") >= 3
        after = content_of(folder / "cache")
        assert after.items() >= before.items()
        labels = read_artifact(folder / "cluster-again/pseudo_labels.safetensors", "pseudo-labels").tensors
        assert torch.equal(
            labels["cluster_ids"],
            read_artifact(folder / "cluster0/pseudo_labels.safetensors", "pseudo-labels").tensors["cluster_ids"],
        )
        forks.start("cluster", *TEMI, "run_dir=cluster-again", folder=folder).succeed()
        assert content_of(folder / "cache").keys() == after.keys()


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def test_images_that_change(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """While they are embedded or trained on, in this process or in others that load them."""
    cases = [(command, workers) for command in ("train", "embed") for workers in (2, 0)]
    row = "image rewritten, truncated, replaced or deleted while streamed: named, no traceback"
    for rng, (command, workers) in trials.each(row, cases * 4, least=2):
        folder = tmp_path / f"{rng.random()}"
        make_images(folder / "images")
        settings = {
            "train": [*EDM[2:], "conditioning=none", "training.memory_gb=0", f"training.num_workers={workers}",
                      "training.batch_size=4", "training.duration_kimg=40", "evaluation.backbone=null"],
            "embed": [*KMEANS, f"embedding.num_workers={workers}", "backbone.batch_size=1"],
        }[command]  # fmt: skip
        data = [word.replace("dataset.path=.", "dataset.path=images") for word in FOLDER]
        job = forks.start(
            command, *data, *settings, "run_dir=run", folder=folder, sabotage=f"change_images_in_{command}",
            environment={"SABOTAGE_SEED": str(rng.random())},
        )  # fmt: skip
        assert job.wait() == 2, job.words()
        assert " since the images were listed" in job.words()
        assert "Traceback" not in job.words()
        assert not list((folder / "cache").rglob("embeddings/*.safetensors"))


def test_a_cache_that_cannot_be_written(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """Nothing in it can be written, made, locked or set aside."""
    for rng in trials("another user's read-only cache: what is there is used, else one message", 4):
        folder = tmp_path / f"{rng.random()}"
        make_images(folder / "images")
        data = [word.replace("dataset.path=.", "dataset.path=images") for word in FOLDER]
        commands = ["embed", "cluster"]
        for command in commands:
            forks.start(command, *data, *KMEANS, folder=folder).succeed()
        before = content_of(folder / "cache")
        if rng.random() < 0.5:
            (folder / "cache/file_digests.sqlite").write_bytes(before[folder / "cache/file_digests.sqlite"][:99])
            before = content_of(folder / "cache")
        set_modes(folder / "cache", 0o555, 0o444)
        try:
            for command in commands:
                forks.start(command, *data, *KMEANS, folder=folder, sabotage="without_roots_rights").succeed()
            job = forks.start("cluster", *data, *KMEANS, "seed=7", folder=folder, sabotage="without_roots_rights")
            assert job.wait() == 2, job.words()
        finally:
            set_modes(folder / "cache", 0o755, 0o644)
        assert job.words().count("Nothing to do") == 2
        assert "Traceback" not in job.words()
        assert content_of(folder / "cache") == before


def set_modes(folder: Path, of_folders: int, of_files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(of_folders if path.is_dir() else of_files)
