"""A user's folder and what this project writes there: nothing becomes an image, nothing of the user's is lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import TINY_EDM, Cedm

MINE = ["dataset=folder", "dataset.resolution=8", "dataset.channels=1", "backbone=pixels"]
KMEANS = ["clustering=kmeans", "clustering.num_clusters=3", "map_images=0"]


@pytest.fixture
def images(workplace: Path) -> Path:
    """24 images in two class folders, in the current folder."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = workplace / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return workplace


@pytest.mark.parametrize(
    ("path", "places"),
    [
        (".", []),
        (".", ["cache_dir=.", "dataset.labels=folders"]),
        (".", ["cache_dir=a", "dataset.labels=folders"]),
        ("{}", ["run_dir=../{name}/a/run", "cache_dir=b/cache"]),
        ("../link", ["run_dir={}/run", "dataset.labels=folders"]),
    ],
)
def test_work_inside_the_data_set_finds_the_same_images_each_time(
    cedm: Cedm, images: Path, path: str, places: list[str]
) -> None:
    (images.parent / "link").unlink(missing_ok=True)
    (images.parent / "link").symlink_to(images, target_is_directory=True)
    path, *places = (word.format(images, name=images.name) for word in (path, *places))
    settings = [*MINE, f"dataset.path={path}", *KMEANS, *places]
    assert "24 images" in cedm("embed", *settings).out
    clusters = [word.replace("/run", "/run2") for word in settings]
    assert cedm("cluster", *clusters).code == 0
    again = cedm("embed", *settings)
    assert "24 images" in again.out
    assert "Nothing to do" in again.out
    assert "not listed" in again.out
    assert "Nothing to do" in cedm("cluster", *clusters).out
    shutil.rmtree(images.parent / "link", ignore_errors=True)


@pytest.mark.parametrize("place", [".", "a", "deep"])
def test_a_run_is_not_written_among_the_images(cedm: Cedm, images: Path, place: str) -> None:
    (images / "deep").mkdir()
    (images / "b").rename(images / "deep/b")
    before = sorted(images.rglob("*"))
    result = cedm("embed", *MINE, *KMEANS, "dataset.path=.", f"run_dir={images / place}", "cache_dir=../cache")
    assert result.code == 2
    assert "run_dir=" in result.err
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1]", "mine"])
def test_a_summary_of_another_program_stays(cedm: Cedm, workplace: Path, content: str) -> None:
    (workplace / "mine").mkdir()
    (workplace / "mine/summary.json").write_text(content)
    words = ["dataset.max_images=100", *KMEANS]
    for _ in range(2):  # the second finds everything in the cache
        result = cedm("embed", *words, "run_dir=mine")
        assert (result.code, "it holds summary.json" in result.err) == (2, True), result.err
        assert (workplace / "mine/summary.json").read_text() == content
        assert cedm("embed", *words, "run_dir=own").code == 0


def test_a_cache_that_cannot_be_blames_no_image(cedm: Cedm, images: Path) -> None:
    for place in ("a/0.png", "a/0.png/cache"):
        result = cedm("embed", *MINE, *KMEANS, "dataset.path=.", f"cache_dir={place}")
        assert (result.code, f"cache_dir={place}: no folder can be made there" in result.err) == (2, True), result.err


@pytest.mark.parametrize("format", ["png", "zip", "npy"])
def test_generated_images_neither_mix_with_a_users_nor_take_them_away(cedm: Cedm, model: Path, format: str) -> None:
    """`run_dir` is a folder in which `images.zip`, `images.npy` or an image at any depth are the user's."""
    mine = [model.parent / f"mine/{name}" for name in {"png": ["b/c/1.QOI"]}.get(format, ["images.zip", "images.npy"])]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    result = cedm("generate", f"ckpt={model}", "num=2", "sampler.steps=2", "run_dir=mine", f"format={format}")
    assert (result.code, mine[-1].name in result.err) == (2, True), result.err
    assert {path for path in (model.parent / "mine").rglob("*") if path.is_file()} == {*mine}
    (model.parent / "free").mkdir()
    (model.parent / "free/slurm-1.out").write_text("a log")
    words = ["generate", f"ckpt={model}", "num=2", "sampler.steps=2", "run_dir=free", f"format={format}"]
    assert cedm(*words).code == 0
    assert (model.parent / "free/slurm-1.out").exists()
    assert (model.parent / "free/images").exists() == (format == "png")


def test_temporary_folders_of_others_stay(cedm: Cedm, workplace: Path) -> None:
    """Below `cache_dir=.` and in the folder of a run."""
    places = [".mywork.tmp", "deep/.x.0123abcd.tmp", "run/.mywork.tmp", "run/deep/.x.0123abcd.tmp"]
    for place in places:
        (workplace / place).mkdir(parents=True)
        (workplace / place / ".lock").write_text("of another program")
    settings = [*TINY_EDM, "training.duration_kimg=0.1", "conditioning=none", "dataset.max_images=100"]
    assert cedm("train", *settings, "cache_dir=.", "run_dir=run").code == 0
    assert [(workplace / place / ".lock").read_text() for place in places] == ["of another program"] * 4
