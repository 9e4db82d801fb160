"""Scores of any assignment, and labels for new images from a trained head."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from datamodules.pseudo_labels import PseudoLabels

from .conftest import TINY_TEMI, Cedm


def digits_labels() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().target


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors", ".csv"])
def test_every_kind_of_file_is_scored_against_the_data_set(cedm: Cedm, workplace: Path, suffix: str) -> None:
    ids = np.random.default_rng(0).integers(0, 7, 1797)
    ids[digits_labels() < 3] = 2
    path = workplace / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, ids)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(ids), path)
    elif suffix == ".safetensors":
        save_file({"ids": torch.from_numpy(ids)}, path)
    else:
        path.write_text("id,cluster\n" + "\n".join(f"train/{row:05d},{cluster}" for row, cluster in enumerate(ids)))
    result = cedm("score", f"assignments={path}", "num_clusters=8", "run_dir=run")
    assert result.code == 0, result.err
    summary = json.loads((workplace / "run/summary.json").read_text())
    assert (summary["num_clusters"], summary["num_used"], summary["utilization_ratio"]) == (8, 7, 7 / 8)
    assert summary["nmi"] == pytest.approx(100 * normalized_mutual_info_score(digits_labels(), ids))
    assert summary["ari"] == pytest.approx(100 * adjusted_rand_score(digits_labels(), ids))


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
    one = cedm("score", "assignments=several.safetensors::b.clusters100", "run_dir=one")
    assert one.code == 0
    assert json.loads((workplace / "one/summary.json").read_text())["num_clusters"] == 100


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
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, overrides: list[str], expected: str) -> None:
    np.save("ids.npy", digits_labels())
    np.save("short.npy", np.zeros(5, dtype=int))
    Path("text.pt").write_text("no tensor")
    result = cedm("score", *overrides)
    assert (result.code, expected in result.err) == (2, True), result.err


def test_a_head_labels_new_images_as_it_labelled_its_own(cedm: Cedm, workplace: Path) -> None:
    """And what it writes, as an artifact and as CSV, is an assignment that training and scoring take."""
    assert cedm("embed").code == 0
    assert cedm("cluster", *TINY_TEMI, "run_dir=clustered").code == 0
    result = cedm("assign", "head=clustered/head.safetensors", "run_dir=same")
    assert result.code == 0, result.err
    before = PseudoLabels.load("clustered/pseudo_labels.safetensors", remake="")
    after = PseudoLabels.load("same/pseudo_labels.safetensors", remake="")
    assert torch.equal(before.cluster_ids, after.cluster_ids)
    torch.testing.assert_close(before.confidence, after.confidence)

    assert cedm("embed", "dataset.max_images=100").code == 0
    assert cedm("assign", "head=clustered/head.safetensors", "dataset.max_images=100", "run_dir=part").code == 0
    part = PseudoLabels.load("part/pseudo_labels.safetensors", remake="")
    assert torch.equal(part.cluster_ids, before.select(part.ids).cluster_ids)

    for file in ("same/pseudo_labels.csv", "same/pseudo_labels.safetensors"):
        assert cedm("score", f"assignments={file}", "num_clusters=5", f"run_dir=score{file[-3:]}").code == 0
    a, b = (json.loads(Path(f"score{end}/summary.json").read_text()) for end in ("csv", "ors"))
    assert a["nmi"] == b["nmi"]


def test_a_head_refuses_another_backbone(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed").code == 0
    assert cedm("cluster", *TINY_TEMI, "run_dir=clustered").code == 0
    result = cedm("assign", "head=clustered/head.safetensors", "dataset.resolution=16")
    assert result.code == 2
    assert "another backbone" in result.err
