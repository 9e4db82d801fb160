"""`embeddings=FILE`: everything that follows from embeddings, with the images and without them."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from .conftest import TINY_TEMI, Cedm, summary

SMALL_TEMI = [*TINY_TEMI, "clustering.batch_size=64", "clustering.num_neighbours=5", "clustering.hidden_dim=16"]
KMEANS = ["clustering=kmeans", "clustering.num_clusters=10"]


def pixels() -> np.ndarray:
    """What backbone=pixels makes of the digits."""
    return (np.rint(load_digits().data * (255 / 16)).astype(np.float32) / np.float32(127.5)) - 1


def names() -> np.ndarray:
    return np.array([f"train/{row:05d}" for row in range(1797)])


def rows_of(folder: str) -> list[dict[str, str]]:
    with Path(folder, "pseudo_labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_embeddings_alone_are_clustered_scored_and_assigned(cedm: Cedm, workplace: Path) -> None:
    """In one command each, with no image anywhere; by a file's own ids and labels."""
    np.savez("a.npz", x=pixels()[:300], ids=names()[:300], labels=load_digits().target[:300])
    done = cedm("cluster", "embeddings=a.npz", *SMALL_TEMI, "run_dir=run")
    assert done.code == 0, done.err
    found = summary("run")
    assert (found["num_clusters"], "nmi" in found) == (5, True)
    made = {path.name for path in Path("run").iterdir()}
    assert {"clusters.png", "clusters.csv", "map.png", "utilization.png", "head.safetensors"} <= made
    assert "gallery.png" not in made
    (again,) = re.findall(r"Next: \S+ (bound .*)", done.out)
    assert (shlex.split(again)[1], "backbone" in again) == ("embeddings=a.npz", False)
    before = rows_of("run")
    assert [row["id"] for row in before] == names()[:300].tolist()
    assert "Nothing to do" in cedm("cluster", "embeddings=a.npz", *SMALL_TEMI).out
    assert "Nothing to do" in cedm("embed", "embeddings=a.npz", *SMALL_TEMI).out

    scored = cedm("score", "embeddings=a.npz", "assignments=run/pseudo_labels.csv", "map_images=50", "run_dir=score")
    assert (scored.code, summary("score")["nmi"]) == (0, pytest.approx(found["nmi"])), scored.err
    assert {path.name for path in Path("score").glob("*.png")} == {"clusters.png", "map.png"}

    np.save("new.npy", pixels()[:40])  # by the same network, so the clusters are the same
    assigned = cedm("assign", "embeddings=new.npy", "head=run", "run_dir=assigned")
    assert assigned.code == 0, assigned.err
    assert [row["cluster"] for row in rows_of("assigned")] == [row["cluster"] for row in before[:40]]
    np.save("narrow.npy", pixels()[:40, :32])
    refused = cedm("assign", "embeddings=narrow.npy", "head=run")
    assert (refused.code, "on embeddings of 64 numbers" in refused.err) == (2, True)
    other = cedm("assign", "dataset.max_images=40", "head=run", "clustering=kmeans")
    assert (other.code, "embeddings of another backbone" in other.err) == (2, True)


def test_embeddings_of_a_data_set_take_the_place_of_its_backbones(cedm: Cedm, workplace: Path) -> None:
    """Shuffled rows with ids give the clusters that the images' own embeddings give, and their galleries."""
    order = np.random.default_rng(0).permutation(1797)
    np.savez("a.npz", x=pixels()[order], ids=names()[order])
    done = cedm("embed", "embeddings=a.npz", "dataset=digits", *KMEANS, "run_dir=embed")
    assert done.code == 0, done.err
    assert re.search(r"contact sheet.*taken from  a\.npz: by id", done.out, re.S)
    assert cedm("cluster", "embeddings=a.npz", "dataset=digits", *KMEANS, "map_images=0", "run_dir=theirs").code == 0
    assert Path("theirs/gallery.png").exists()
    assert cedm("embed", *KMEANS).code == cedm("cluster", *KMEANS, "map_images=0", "run_dir=own").code == 0
    assert Path("theirs/pseudo_labels.csv").read_bytes() == Path("own/pseudo_labels.csv").read_bytes()


def test_runs_of_other_files_are_other_runs(cedm: Cedm, workplace: Path) -> None:
    """The same name does not make them the same embeddings."""
    for seed in range(2):
        np.save("a.npy", np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32))
        done = cedm("cluster", "embeddings=a.npy", "clustering=kmeans", "clustering.num_clusters=3", "map_images=0")
        assert (done.code, "Nothing to do" in done.out) == (0, False), done.err
    assert len(list(Path("runs/embeddings/cluster-kmeans-3").iterdir())) == 2
    assert len(list(Path("cache/embeddings").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train embeddings=a.npy", "dataset=embeddings: embeddings alone, and images are needed here"),
        ("export-dataset embeddings=a.npy assignments=ids.npy", "images are needed here"),
        ("cluster embeddings=a.npy dataset=digits", "60 embeddings for 1,797 images of digits"),
        ("cluster embeddings=a.npy backbone=pixels", "it takes the place of backbone=pixels"),
        ("cluster dataset=embeddings", "embeddings=None: a file is expected"),
        ("cluster backbone=embeddings", "embeddings=None: a file is expected"),
        ("cluster embeddings=gone.npy", "gone.npy: no such file"),
        ("embed embeddings=gone.npy dataset=digits", "gone.npy: no such file"),
        ("cluster embeddings=same.npy clustering=kmeans clustering.num_clusters=3", "all 60 rows are the same"),
        ("cluster embeddings=a.npy", "clustering.num_clusters=100: 'embeddings' has 60 images"),
        ("cluster embeddings=a.npy clustering=labels", "has no labels"),
        ("cluster embeddings=a.npy clustering=clip", "shares no space with text"),
        ("embed embeddings=a.npy clustering.num_neighbours=60", "has 60 images, so each has 59 neighbours"),
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, command: str, expected: str) -> None:
    np.save("a.npy", np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    np.save("same.npy", np.ones((60, 4), np.float32))
    np.save("ids.npy", np.arange(60) % 3)
    done = cedm(*command.split())
    assert (done.code, expected in done.err) == (2, True), done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_bound_of_embeddings_alone(cedm: Cedm, workplace: Path) -> None:
    np.save("a.npy", pixels()[:300])
    settings = [word for word in SMALL_TEMI if not word.startswith("clustering.num_clusters")]
    done = cedm("bound", "embeddings=a.npy", *settings, "bound.grid=[2,4]", "run_dir=run")
    assert done.code == 0, done.err
    assert len(summary("run")["measurements"]) == 3
