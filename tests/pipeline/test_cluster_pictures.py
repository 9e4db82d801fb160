"""What a person sees of a clustering, by whatever method and command."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metrics.clustering import cluster_purity

from .conftest import Cedm

PICTURES = ("gallery.png", "clusters.png", "map.png")


def tensorboard_images(folder: Path) -> set[str]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return set(accumulator.Tags()["images"])


@pytest.mark.parametrize("method", ["kmeans", "labels", "random"])
def test_every_method_shows_its_clusters(cedm: Cedm, workplace: Path, method: str) -> None:
    """With a map where there are embeddings."""
    if method == "kmeans":
        assert cedm("embed", "clustering=kmeans").code == 0
    result = cedm("cluster", f"clustering={method}", "clustering.num_clusters=15", "map_images=60", "run_dir=run")
    assert result.code == 0, result.err
    shown = PICTURES if method == "kmeans" else PICTURES[:2]
    assert [name for name in PICTURES if (workplace / "run" / name).is_file()] == list(shown)
    assert all(min(Image.open(workplace / "run" / name).size) > 300 for name in shown)
    assert tensorboard_images(workplace / "run") == {f"clusters/{Path(name).stem}" for name in shown}
    if method == "random":
        assert cedm("cluster", "clustering=random", "run_dir=silent", "overwrite=true", "logger=csv").code == 0
        assert {path.suffix for path in Path("silent").iterdir()} > {".png", ".csv"}
        assert not [*Path("silent").glob("events*")]
    rows = list(csv.DictReader((workplace / "run/clusters.csv").open()))
    assert len(rows) == (10 if method == "labels" else 15)
    assert sum(int(row["images"]) for row in rows) == 1797
    assert ("mean_confidence" in rows[0]) == (method == "kmeans")
    overall = sum(float(row["purity"]) * int(row["images"]) for row in rows) / 1797
    low, high = {"kmeans": (0.6, 0.95), "labels": (1, 1), "random": (0.1, 0.3)}[method]
    assert low <= overall <= high


def test_every_assignment_of_a_file_is_shown(cedm: Cedm, workplace: Path) -> None:
    """With a map from embeddings of a file."""
    digits = load_digits()
    ids = torch.from_numpy(digits.target)
    save_file({"a.clusters10": ids, "b.clusters30": 3 * ids}, workplace / "ids.safetensors")
    np.save("features.npy", digits.data)
    arguments = [
        "dataset=digits",
        "assignments=ids.safetensors",
        "embeddings=features.npy",
        "map_images=60",
        "run_dir=run",
    ]
    result = cedm("score", *arguments)
    assert result.code == 0, result.err
    for part in ("a.clusters10", "b.clusters30"):
        assert all((workplace / "run" / part / name).is_file() for name in PICTURES)
    np.save("others.npy", np.arange(50))
    assert "no pictures" in cedm("score", "assignments=others.npy", "run_dir=others").out
    refused = cedm("score", "assignments=ids.safetensors", "embeddings=others.npy", "run_dir=refused")
    assert (refused.code, "others.npy" in refused.err) == (2, True)


def test_purity_of_partly_labelled_images(cedm: Cedm, workplace: Path) -> None:
    """Of the labelled ones; a cluster without one has none."""
    digits = load_digits().target
    ids = np.arange(1797) % 4
    given = np.where((ids < 3) & (np.arange(1797) < 900), digits + 2_000_000_000, -1)
    np.save("ids.npy", ids)
    np.save("labels.npy", given)
    result = cedm("score", "assignments=ids.npy", "num_clusters=4", "dataset.labels=labels.npy", "run_dir=run")
    assert result.code == 0, result.err
    rows = list(csv.DictReader((workplace / "run/clusters.csv").open()))
    assert [int(row["labelled"]) for row in rows] == [225, 225, 225, 0]
    for row, cluster in zip(rows, range(3), strict=False):
        counts = np.bincount(digits[(ids == cluster) & (np.arange(1797) < 900)])
        assert float(row["purity"]) == pytest.approx(counts.max() / 225, rel=1e-5)
        assert row["largest_class"] == f"class {2_000_000_000 + counts.argmax()}"
    assert (rows[3]["purity"], rows[3]["largest_class"]) == ("", "")
    assert all((workplace / "run" / name).is_file() for name in PICTURES[:2])


def test_purity() -> None:
    purity, majority = cluster_purity(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 1, 0, 2, 2]), num_clusters=3)
    torch.testing.assert_close(purity, torch.tensor([2 / 3, torch.nan, 1]).double(), equal_nan=True)
    assert majority[[0, 2]].tolist() == [1, 2]
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 9, 400), rng.integers(0, 5, 400)
    table = np.zeros((12, 5), dtype=int)
    np.add.at(table, (ids, labels), 1)
    purity, majority = cluster_purity(torch.from_numpy(ids), torch.from_numpy(labels), num_clusters=12)
    assert majority.tolist() == table.argmax(axis=1).tolist()
    np.testing.assert_allclose(purity[:9], table[:9].max(axis=1) / table[:9].sum(axis=1))
    one, _ = cluster_purity(torch.tensor([5]), torch.tensor([10**12]), num_clusters=6)  # no table of all classes
    assert one[5] == 1


@pytest.mark.slow
def test_the_published_clusters_of_cifar10(cedm: Cedm, workplace: Path, real_data: Path) -> None:
    assignments = real_data / "cifar10-published-assignments.safetensors::temi-dino_vitb16.beta0.6.clusters100"
    result = cedm(
        "score",
        f"assignments={assignments}",
        "dataset=zip",
        f"dataset.path={real_data / 'cifar10-train.zip'}",
        f"embeddings={real_data / 'cifar10-resnet56-embeddings.safetensors'}",
        "map_images=200",
        "run_dir=run",
    )
    assert result.code == 0, result.err
    assert all((workplace / "run" / name).is_file() for name in PICTURES)
    rows = list(csv.DictReader((workplace / "run/clusters.csv").open()))
    assert sum(float(row["purity"]) * int(row["images"]) for row in rows) / 50_000 == pytest.approx(0.9448, abs=0.001)
