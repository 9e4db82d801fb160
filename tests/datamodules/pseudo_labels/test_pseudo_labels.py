"""Pseudo-labels go by image id, count rightly, and come from other people's files or not at all."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.assignment_files import ids_in_csv, read_cluster_ids
from datamodules.pseudo_labels.pseudo_labels import (
    PseudoLabels,
    read_assignments,
)
from storage.errors import UserError

from ..opening import opened


@pytest.fixture
def labels() -> PseudoLabels:
    return PseudoLabels(
        cluster_ids=torch.tensor([7, 2, 2, 9, 7, 2]),
        num_clusters=10,
        confidence=torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
        ids=[f"bild/ä{number}.png" for number in range(6)],
        meta={"seed": 1},
    )


@pytest.fixture
def digits() -> ImageSource:
    return opened("digits", max_images=4)


def test_counts_and_compact_labels(labels: PseudoLabels):
    assert labels.counts.tolist() == [0, 0, 3, 0, 0, 0, 0, 2, 0, 1]
    assert labels.used_clusters.tolist() == [2, 7, 9]
    assert (labels.num_used, labels.utilization_ratio) == (3, 0.3)
    assert labels.compact().tolist() == [1, 0, 0, 2, 1, 0]
    torch.testing.assert_close(labels.frequencies, torch.tensor([3, 2, 1]) / 6)
    assert torch.equal(labels.used_clusters[labels.compact()], labels.cluster_ids)


def test_labels_are_looked_up_by_id(labels: PseudoLabels):
    chosen = labels.select(["bild/ä4.png", "bild/ä1.png"])
    assert chosen.cluster_ids.tolist() == [7, 2]
    assert chosen.num_clusters == 10
    torch.testing.assert_close(chosen.confidence, torch.tensor([0.5, 0.8]))
    with pytest.raises(UserError, match=r"1 of 2 images have no pseudo-label, the first is 'x\.png'"):
        labels.select(["bild/ä4.png", "x.png"])


def test_a_file_gives_back_what_was_saved(labels: PseudoLabels, tmp_path: Path):
    labels.save(tmp_path / "labels.safetensors")
    loaded = PseudoLabels.load(tmp_path / "labels.safetensors")
    assert torch.equal(loaded.cluster_ids, labels.cluster_ids)
    assert torch.equal(loaded.confidence, labels.confidence)
    assert (loaded.num_clusters, loaded.ids, loaded.meta) == (labels.num_clusters, labels.ids, labels.meta)


@pytest.mark.parametrize(
    ("cluster_ids", "ids", "message"),
    [
        ([0, 5], ["a", "b"], "from 0 to 5; expected 0 to 2"),
        ([-1, 0], ["a", "b"], "from -1 to 0"),
        ([0, 1], ["a", "a"], "occurs twice"),
        ([0, 1], ["a", "b\nc"], "line break"),
        ([0, 1], ["a"], r"\[2, 2, 1\]"),
        ([], [], r"\[0, 0, 0\]"),
    ],
)
def test_inconsistent_labels_cannot_be_made(cluster_ids: list[int], ids: list[str], message: str):
    values = torch.tensor(cluster_ids, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        PseudoLabels(values, 3, torch.ones(len(values)), ids)


def test_every_kind_of_file_is_read(digits: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = torch.tensor([3, 0, 1, 3])
    torch.save(values, tmp_path / "tensor.pt")
    torch.save({"a": values, "b": [0, 0, 0, 0]}, tmp_path / "dict.pt")
    np.save(tmp_path / "array.npy", values.numpy().astype(np.uint16))
    np.save(tmp_path / "floats.npy", values.numpy().astype(np.float64))
    save_file({"temi.clusters9": values, "labels.true": values.flip(0)}, tmp_path / "one.safetensors")
    (tmp_path / "column.csv").write_text("3\n0\n1\n3\n")
    (tmp_path / "heading.csv").write_text("cluster\n3\n0\n1\n3\n")
    rows = [f"{image_id},{value},0" for image_id, value in zip(digits.ids, values.tolist(), strict=True)]
    (tmp_path / "ids.csv").write_text("\n".join(["id,cluster,other", "train/99999,5,0", *rows[::-1]]))
    for specification in (
        "tensor.pt",
        "dict.pt::a",
        "array.npy",
        "floats.npy",
        "column.csv",
        "heading.csv",
        "ids.csv",
        "ids.csv::cluster",
        "one.safetensors",
        "one.safetensors::temi.clusters9",
    ):
        caplog.clear()
        labels = read_assignments(str(tmp_path / specification), digits)
        assert labels.cluster_ids.tolist() == [3, 0, 1, 3], specification
        assert labels.ids == digits.ids
        named = specification.startswith("one")
        assert labels.num_clusters == (9 if named else 4)
        assert ("highest id + 1 = 4" in caplog.text) is not named
    assert read_assignments(str(tmp_path / "one.safetensors::labels.true"), digits).cluster_ids.tolist() == [3, 1, 0, 3]
    assert read_assignments(str(tmp_path / "ids.csv::other"), digits).num_clusters == 1
    assert read_assignments(str(tmp_path / "tensor.pt"), digits, num_clusters=20).num_clusters == 20


NOISY = {
    "ids.npy": np.array([1, -1, 0, 1]),  # as HDBSCAN writes them
    "names.npy": np.array(["dog", "", "cat", "dog"]),
    "clusters2.csv": "ID;Cluster\n@2;0\n@0;1\n@3;1\n@1;-1\n",
    "names.csv": "id\tcluster\ntrain/@2\tcat\ntrain/@0\tdog\ntrain/@3\tdog\ntrain/@1\tNaN\n",
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_a_cluster_of_its_own_or_left_out(name: str, digits: ImageSource, tmp_path: Path):
    content = NOISY[name]
    if isinstance(content, str):
        for row, image_id in enumerate(digits.ids):
            content = content.replace(f"@{row}", image_id.removeprefix("train/"))
        (tmp_path / name).write_text(content)
    else:
        np.save(tmp_path / name, content)
    own = read_assignments(str(tmp_path / name), digits, noise="own")
    assert (own.cluster_ids.tolist(), own.num_clusters, own.ids) == ([1, 2, 0, 1], 3, digits.ids)
    part = read_assignments(str(tmp_path / name), digits, noise="drop")
    assert (part.cluster_ids.tolist(), part.num_clusters) == ([1, 0, 1], 2)
    assert part.ids == [digits.ids[row] for row in (0, 2, 3)]
    kept = digits.only(part.ids)
    assert (kept.ids, len(kept), kept.fingerprint != digits.fingerprint) == (part.ids, 3, True)
    assert np.array_equal(np.asarray(kept.image(1)), np.asarray(digits.image(2)))
    names = ["cat", "dog", "noise"] if name.startswith("names") else None
    assert own.meta.get("cluster_names") == names


def test_names_of_clusters_need_no_decision_without_noise(digits: ImageSource, tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array(["b", "a", "b", "c"]))
    labels = read_assignments(str(tmp_path / "a.npy"), digits, noise="drop")
    assert (labels.cluster_ids.tolist(), labels.num_clusters) == ([1, 0, 1, 2], 3)
    assert labels.meta["cluster_names"] == ["a", "b", "c"]


def test_our_own_pseudo_labels_are_matched_by_id(digits: ImageSource, tmp_path: Path):
    path, ids = tmp_path / "ours.safetensors", [*digits.ids[::-1], "train/99999"]
    PseudoLabels(torch.tensor([5, 3, 2, 1, 0]), 8, torch.ones(5) / 2, ids).save(path)
    labels = read_assignments(str(path), digits)
    assert (labels.cluster_ids.tolist(), labels.num_clusters) == ([1, 2, 3, 5], 8)
    assert labels.confidence.tolist() == [0.5] * 4
    assert read_assignments(str(path), digits, num_clusters=20).num_clusters == 20
    with pytest.raises(UserError, match=r"holds cluster id 5, but there are 5 clusters"):
        read_assignments(str(path), digits, num_clusters=5)
    with pytest.raises(UserError, match="without ::cluster_ids"):
        read_assignments(f"{path}::cluster_ids", digits)


def test_an_umlaut_is_the_same_however_it_is_written(tmp_path: Path):
    (tmp_path / "a.csv").write_text("id,cluster\nbu\u0308ro.png,1\nhaus.png,0\n", encoding="utf-8")
    assert read_cluster_ids(tmp_path / "a.csv", "", ["haus.png", "b\u00fcro.png"])[0].tolist() == [0, 1]
    assert ids_in_csv(tmp_path / "a.csv") == ["bu\u0308ro.png", "haus.png"]


def test_assignments_of_the_whole_data_set_serve_a_subset(digits: ImageSource, tmp_path: Path):
    np.save(tmp_path / "all.npy", np.arange(1797))
    labels = read_assignments(str(tmp_path / "all.npy"), digits)
    assert torch.equal(labels.cluster_ids, digits.positions)
    assert labels.num_clusters == 1797  # of the file, not of the rows that were picked


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.arange(5), "5 cluster ids for 4 images of mine, 1797 in the whole"),
        ("a.npy", np.array([0, 1, -2, 2]), "holds -2"),
        ("a.npy", np.array([0, 1, -1, 2]), r"1 of 4 images are in no cluster.*noise=own.*noise=drop"),
        ("a.npy", np.array([0, 1, np.nan, 2]), r"1 of 4 images are in no cluster.*noise=own.*noise=drop"),
        ("a.npy", np.array([-1, -1, -1, -1]), "all 4 images are in no cluster"),
        ("a.npy", np.array(["a", "", "c", "d"]), r"1 of 4 images are in no cluster.*noise=own.*noise=drop"),
        ("a.npy", np.array([0, 1, np.inf, 2]), "holds inf"),
        ("a.npy", np.array([0, 1, 1.5, 2]), "not whole"),
        ("a.npy", np.zeros((4, 2), dtype=int), r"shape \[4, 2\]"),
        ("a.npy", np.array(["a", "b", "c", "d"], dtype=object), "cannot be read as"),
        ("a.csv", "1\n2\nx\n3\n", "'x' is no cluster id"),
        ("a.csv", "id,cluster\ntrain/00000,1\n", "3 of 4 images have no label"),
        ("a.csv", "id,cluster\na,1\n\nb,2\na,2\n", "'a' stands in two lines"),
        ("a.csv", "cluster\n1\n1_0\n2\n3\n", "'1_0' is no cluster id"),
        ("a.csv", "id,a,b\ntrain/00000,1,2\n", "holds 2 assignments"),
        ("a.csv", "id,cluster\ntrain/00000\n", "line 2 has not 2 columns"),
        ("a.csv", "", "empty"),
        ("a.safetensors", "broken", "cannot be read as"),
        ("a.txt", "1 2 3 4", r"ends in \.pt, \.npy.* is expected"),
        ("a.csv", "file,cluster\nb.png,1\na.png,0\nc.png,1\nd.png,1\n", "is 'file' the column of the images' ids"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    name: str, content: np.ndarray | str, message: str, digits: ImageSource, tmp_path: Path
):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_assignments(str(tmp_path / name), digits)
    assert name in str(caught.value)


def test_keys_and_numbers_of_clusters_that_do_not_fit_are_refused(digits: ImageSource, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    values = torch.tensor([0, 1, 2, 3])
    save_file({"beta1.clusters4": values, "beta1.clusters3": values.clone(), "labels.true": values.flip(0)}, path)
    with pytest.raises(
        UserError, match=r"are beta1\.clusters3, beta1\.clusters4\. Choose one with .*a\.safetensors::KEY"
    ):
        read_assignments(str(path), digits)
    with pytest.raises(UserError, match=r"holds no assignment 'beta2'; there are .*labels\.true\. Choose one"):
        read_assignments(f"{path}::beta2", digits)
    with pytest.raises(UserError, match="holds cluster id 3, but there are 3 clusters"):
        read_assignments(f"{path}::beta1.clusters3", digits)
    with pytest.raises(UserError, match="there are 2 clusters"):
        read_assignments(f"{path}::beta1.clusters4", digits, num_clusters=2)
    with pytest.raises(UserError, match="no such file"):
        read_assignments(f"{tmp_path}/absent.pt::key", digits)
    torch.save({"code": np.random.default_rng(0)}, tmp_path / "harmful.pt")
    with pytest.raises(UserError, match=r"it holds numpy\S+, which is no tensor"):
        read_assignments(f"{tmp_path}/harmful.pt::code", digits)
    (tmp_path / "text.pt").write_text("no tensor")
    with pytest.raises(UserError, match="no tensors of PyTorch") as refused:
        read_assignments(f"{tmp_path}/text.pt", digits)
    assert "weights_only" not in str(refused.value)


def test_published_assignments_fit_the_published_utilization(real_data: Path):
    source = opened("zip", real_data / "cifar10-train.zip", max_images=500)
    path = real_data / "cifar10-published-assignments.safetensors"
    labels = read_assignments(f"{path}::labels.cifar10", source)
    assert source.labels is not None
    assert torch.equal(labels.cluster_ids, source.labels)  # subset: the rows were picked by position
    whole = opened("zip", real_data / "cifar10-train.zip")
    with (real_data / "cifar10-published-results.csv").open() as file:
        published = {(row[""].split("/")[0], float(row["beta"])): float(row["uniq"]) for row in csv.DictReader(file)}
    for num_clusters, beta in ((100, 0.6), (1000, 0.6), (10000, 0.6), (100, 1), (500, 1)):
        used = read_assignments(f"{path}::temi-dino_vitb16.beta{beta}.clusters{num_clusters}", whole)
        assert used.num_clusters == num_clusters
        assert used.num_used == published[f"clusters_{num_clusters}", beta]
