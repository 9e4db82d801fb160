"""Scores of any assignment, and labels for new images from a trained head."""

import csv
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.running.cluster_scores import cluster_scores

from .conftest import TINY_TEMI, Cedm, summary


def digits_labels() -> np.ndarray:
    return load_digits().target


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors", ".csv"])
def test_every_kind_of_file_is_scored_against_the_data_set(cedm: Cedm, workplace: Path, suffix: str) -> None:
    ids = np.random.default_rng(0).integers(0, 7, 1797)
    ids[digits_labels() < 3] = 2
    np.save("ids.npy", ids)
    torch.save(torch.from_numpy(ids), "ids.pt")
    save_file({"ids": torch.from_numpy(ids)}, "ids.safetensors")
    Path("ids.csv").write_text("\n".join(["id,cluster", *(f"{image_id(row)},{ids[row]}" for row in range(1797))]))
    result = cedm("score", f"assignments=ids{suffix}", "num_clusters=8", "run_dir=run")
    assert result.code == 0, result.err
    found = summary("run")
    assert (found["num_clusters"], found["num_used"], found["utilization_ratio"]) == (8, 7, 7 / 8)
    assert found["nmi"] == pytest.approx(100 * normalized_mutual_info_score(digits_labels(), ids))
    assert found["ari"] == pytest.approx(100 * adjusted_rand_score(digits_labels(), ids))


def test_all_keys_of_a_file_are_scored_against_its_labels(cedm: Cedm, workplace: Path) -> None:
    labels = torch.arange(60) % 3
    perfect, constant = labels + 3, torch.zeros(60, dtype=torch.int64)
    tensors = {"labels.toy": labels, "a.clusters20": perfect, "a.clusters6": perfect, "b.clusters100": constant}
    save_file({name: value.clone() for name, value in tensors.items()}, workplace / "several.safetensors")
    result = cedm("score", "assignments=several.safetensors", "run_dir=run")
    assert result.code == 0, result.err
    rows = list(csv.DictReader((workplace / "run/scores.csv").open()))
    assert [row["assignments"] for row in rows] == ["a.clusters6", "a.clusters20", "b.clusters100"]
    assert [row["num_used"] for row in rows] == ["3", "3", "1"]
    assert [float(row["nmi"]) for row in rows] == [100, 100, 0]
    assert cedm("score", "assignments=several.safetensors::b.clusters100", "run_dir=one").code == 0
    assert summary("one")["num_clusters"] == 100


@pytest.mark.slow
def test_the_published_table(cedm: Cedm, workplace: Path, real_data: Path) -> None:
    """All 16 settings, every column, to 1e-3."""
    path = real_data / "cifar10-published-assignments.safetensors"
    assert cedm("score", f"assignments={path}", "run_dir=run").code == 0
    ours = {row["assignments"]: row for row in csv.DictReader((workplace / "run/scores.csv").open())}
    assert len(ours) == 16
    names = {"accuracy": "ACC", "nmi": "NMI", "ami": "anmi", "ari": "ARI", "num_used": "uniq", "kl_from_uniform": "KL"}
    published = {}
    for row in csv.DictReader((real_data / "cifar10-published-results.csv").open()):
        clusters, beta = row[""].strip("/").split("/")
        published[f"temi-dino_vitb16.{beta.replace('-', '')}.{clusters.replace('_', '')}"] = row
    for key, row in ours.items():
        for name, theirs in names.items():
            assert float(row[name]) == pytest.approx(float(published[key][theirs]), abs=1e-3), (key, name)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["assignments=gone.npy"], "gone.npy"),
        (["assignments=ids.npy", "num_clusters=3"], "num_clusters=10"),
        (["assignments=ids.npy", "labels=short.npy"], "5 labels for 1797"),
        (["assignments=ids.npy", "labels=gone.npy"], "gone.npy"),
        (["assignments=text.pt"], "text.pt"),
        (["assignments=ours.safetensors", "num_clusters=5"], "num_clusters=10"),
        (["assignments=ours.safetensors::cluster_ids"], "without ::cluster_ids"),
        (["assignments=shuffled.csv", "labels=ids.npy"], "sort the lines by id"),
        (["assignments=first.npy", "labels=shuffled.csv"], "sort the lines by id"),
        (["assignments=shuffled.csv", "labels=others.csv"], "1797 of 1797 images have no label"),
        (["assignments=first.npy", "labels=floats.npy"], "not whole"),
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, overrides: list[str], expected: str) -> None:
    np.save("ids.npy", digits_labels())
    np.save("short.npy", np.zeros(5, dtype=int))
    Path("text.pt").write_text("no tensor")
    np.save("first.npy", digits_labels()[:1000])
    save_ours(list(range(1797)))
    write_by_id("shuffled.csv", np.random.default_rng(0).permutation(1797))
    Path("others.csv").write_text("id,label\ntest/00001,3")
    np.save("floats.npy", np.linspace(0, 1, 1000))
    result = cedm("score", *overrides)
    assert (result.code, expected in result.err) == (2, True), result.err


def image_id(row: int) -> str:
    return f"train/{row:05d}"


def write_by_id(name: str, rows: Iterable[int]) -> None:
    """The classes of these digits by their ids, in this order."""
    digits = digits_labels()
    Path(name).write_text("\n".join(["id,label", *(f"{image_id(row)},{digits[row]}" for row in rows)]))


def save_ours(rows: list[int], num_clusters: int = 40) -> None:
    """The classes of these digits as pseudo-labels of this project."""
    ids = torch.from_numpy(digits_labels())[rows].long()
    PseudoLabels(ids, num_clusters, torch.ones(len(rows)), [image_id(row) for row in rows]).save("ours.safetensors")


@pytest.mark.parametrize("name", ["ids.npy", "ids.csv", "ours.safetensors"])
def test_labels_of_a_file_are_matched_by_id(cedm: Cedm, workplace: Path, name: str) -> None:
    order = np.random.default_rng(0).permutation(1797)
    write_by_id("labels.csv", order)
    np.save("ids.npy", digits_labels())  # as long as the data set, so in its order
    write_by_id("ids.csv", order[:800])
    save_ours(order[::-1].tolist(), num_clusters=10)
    result = cedm("score", f"assignments={name}", "labels=labels.csv", "run_dir=run")
    assert result.code == 0, result.err
    assert summary("run")["nmi"] == pytest.approx(100)


def test_noise_is_scored_as_a_cluster_or_left_out(cedm: Cedm, workplace: Path) -> None:
    """By the images' own labels and by a file's, with the pictures of the images that are left."""
    digits = digits_labels()
    ids = np.where(np.arange(1797) % 3 == 0, -1, digits)
    np.save("ids.npy", ids)
    np.save("labels.npy", digits)
    refused = cedm("score", "assignments=ids.npy")
    assert (refused.code, "599 of 1,797 images are in no cluster" in refused.err) == (2, True)
    for number, words in enumerate(([], ["labels=labels.npy"])):
        kept = cedm("score", "assignments=ids.npy", "noise=drop", *words, f"run_dir=drop{number}")
        own = cedm("score", "assignments=ids.npy", "noise=own", *words, f"run_dir=own{number}")
        assert (kept.code, own.code) == (0, 0), kept.err + own.err
        found = summary(f"drop{number}")
        assert (found["num_clusters"], found["num_used"], found["nmi"]) == (10, 10, pytest.approx(100))
        found = summary(f"own{number}")
        expected = 100 * normalized_mutual_info_score(digits, np.where(ids < 0, 10, ids))
        assert (found["num_clusters"], found["num_used"], found["nmi"]) == (11, 11, pytest.approx(expected))
        rows = list(csv.DictReader((workplace / f"drop{number}/clusters.csv").open()))
        assert sum(int(row["images"]) for row in rows) == 1198
        assert {float(row["purity"]) for row in rows} == {1.0}  # each image is shown with its own label
    key = "x.beta0.6.clusters12"
    save_file({key: torch.from_numpy(ids)}, "keyed.safetensors")
    for noise, ratio in (("drop", 10 / 12), ("own", 11 / 13)):
        assert cedm("bound", "assignments=keyed.safetensors", f"noise={noise}", f"run_dir={noise}").code == 0
        assert summary(noise)["measurements"][0]["ratio"] == pytest.approx(ratio)


def test_agreement_is_over_the_images_that_have_a_label(cedm: Cedm, workplace: Path) -> None:
    """Whatever way the labels come, and whatever they are called."""
    digits = digits_labels()
    ids = np.random.default_rng(0).integers(0, 7, 1797)
    np.save("ids.npy", ids)
    some = np.where(np.arange(1797) % 3 == 0, digits, -1)
    np.save("some.npy", some)
    np.save("floats.npy", np.where(some < 0, np.nan, some))
    names = [f"{image_id(row)},{'' if some[row] < 0 else f'digit {digits[row]}'}" for row in range(1797)]
    Path("names.csv").write_text("\n".join(["id,label", *names]))
    write_by_id("part.csv", range(0, 1797, 3))
    save_file({"x.clusters7": torch.from_numpy(ids), "labels.x": torch.from_numpy(some)}, "both.safetensors")
    given = [[f"labels={name}"] for name in ("some.npy", "floats.npy", "names.csv", "part.csv")]
    given += [[f"dataset.labels={name}"] for name in ("some.npy", "floats.npy", "names.csv", "part.csv")]
    for number, words in enumerate([*given, ["assignments=both.safetensors"]]):
        result = cedm("score", "assignments=ids.npy", "num_clusters=7", *words, f"run_dir={number}")
        assert result.code == 0, result.err
        found = summary(str(number))
        assert (found["num_labelled"], found["num_used"]) == (599, 7)
        assert found["nmi"] == pytest.approx(100 * normalized_mutual_info_score(digits[::3], ids[::3]))
        assert "agreement is over the images that have a label" in result.out


def test_classes_that_are_too_many_for_a_table_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    clusters, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 2**20, -1])
    found = cluster_scores(clusters, 64, labels)
    assert (found["num_used"], "nmi" in found, "too many to compare" in caplog.text) == (2, False, True)
    assert cluster_scores(clusters, 2, torch.tensor([5, 7, -1]))["nmi"] == pytest.approx(100)
    assert "nmi" not in cluster_scores(clusters, 2, torch.tensor([-1, -1, -1]))


def test_only_the_data_sets_images_are_scored(cedm: Cedm, workplace: Path) -> None:
    """Of a file about more; and which they are is part of the run's identity."""
    save_ours(list(range(1797)))
    result = cedm("score", "assignments=ours.safetensors", "dataset.max_images=100")
    assert "knows 1,797 images; scored are the 100 of dataset=digits" in result.out
    assert cedm("score", "assignments=ours.safetensors").code == 0
    runs = [summary(folder) for folder in sorted(Path("runs/ours/score").iterdir())]
    assert len(runs) == 2
    assert [run["nmi"] for run in runs] == pytest.approx([100, 100])
    assert len({run["inputs"]["dataset"] for run in runs}) == 2
    for labels in (digits_labels() % 2, digits_labels()):
        np.save("labels.npy", labels)
        assert cedm("score", "assignments=ours.safetensors", "labels=labels.npy").code == 0
    assert len(list(Path("runs/ours/score").iterdir())) == 4


def test_it_says_why_labels_are_not_used(cedm: Cedm, workplace: Path) -> None:
    np.save("others.npy", np.arange(50))
    result = cedm("score", "assignments=others.npy", "run_dir=run")
    assert "no labels of dataset=digits: others.npy: 50 cluster ids for 1797 images" in result.out
    assert "nmi" not in summary("run")


def test_c_holds_for_scores_and_pictures(cedm: Cedm, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_ours(list(range(1797)))
    assert cedm("score", "assignments=ours.safetensors", "num_clusters=100", "run_dir=ours").code == 0
    assert summary("ours")["utilization_ratio"] == 0.1
    assert not caplog.text
    np.save("ids.npy", digits_labels())
    assert cedm("score", "assignments=ids.npy", "run_dir=run").code == 0
    assert caplog.text.count("highest id + 1 = 10") == 1


def test_a_head_labels_new_images_as_it_labelled_its_own(cedm: Cedm, workplace: Path) -> None:
    """And what it writes, as an artifact and as CSV, is an assignment that training and scoring take."""
    assert cedm("embed").code == 0
    assert cedm("cluster", *TINY_TEMI, "run_dir=clustered").code == 0
    result = cedm("assign", "head=clustered/head.safetensors", "seed=3", "run_dir=same")
    assert result.code == 0, result.err
    following = shlex.split(result.out.splitlines()[-1])
    assert following[2:] == ["train", "seed=3", "assignments=same/pseudo_labels.safetensors"]
    before = PseudoLabels.load("clustered/pseudo_labels.safetensors")
    after = PseudoLabels.load("same/pseudo_labels.safetensors")
    assert torch.equal(before.cluster_ids, after.cluster_ids)
    torch.testing.assert_close(before.confidence, after.confidence)

    assert cedm("embed", "dataset.max_images=100").code == 0
    assert cedm("assign", "head=clustered", "dataset.max_images=100", "run_dir=part").code == 0  # the run's folder
    part = PseudoLabels.load("part/pseudo_labels.safetensors")
    assert torch.equal(part.cluster_ids, before.select(part.ids).cluster_ids)

    for file in ("same/pseudo_labels.csv", "same/pseudo_labels.safetensors"):
        assert cedm("score", f"assignments={file}", "num_clusters=5", f"run_dir=score{file[-3:]}").code == 0
    assert summary("scorecsv")["nmi"] == summary("scoreors")["nmi"]

    other = cedm("assign", "head=clustered/head.safetensors", "dataset.resolution=16")
    assert (other.code, "another backbone" in other.err) == (2, True), other.err
