"""Rejection sampling: the most confident of more candidates, each still a function of its own seed."""

import csv
import json
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.generate_settings import GenerateSettings
from pipeline.evaluation.rejection import by_confidence, summarised

from .conftest import TINY_EDM, TINY_TEMI, Cedm


def test_summary_of_the_confidence() -> None:
    """Twenty candidates; the upper half is always right, the lower one never."""
    right = torch.arange(20) >= 10
    found = summarised(torch.linspace(0.05, 1, 20), right, right)
    assert (found["agreement"], found["agreement_kept"], found["keep"]) == (0.5, 1.0, 0.5)
    assert [agreement for _, agreement in found["deciles"]] == [0.0] * 5 + [1.0] * 5
    assert found["deciles"][0][0] == pytest.approx(0.075)
    assert found["lowest_kept_confidence"] == pytest.approx(0.55)


def test_the_most_confident_keep_the_proportions_of_the_clusters() -> None:
    """Cluster 7 is easy to tell, cluster 2 is not; small clusters have their turn."""
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.3, 0.1, 0.3, 0.2])
    asked = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2])
    assert by_confidence(confidence, asked).tolist() == [0, 4, 1, 6, 2, 7, 3, 5]
    assert by_confidence(confidence, torch.full((8,), -1)).tolist() == [0, 1, 2, 3, 4, 6, 7, 5]
    asked = torch.cat([torch.arange(400), 400 + torch.arange(600) // 20])  # half of the clusters' mass in ones
    kept = by_confidence(torch.rand(1000, generator=torch.Generator().manual_seed(0)), asked)[:100]
    assert 36 <= int((kept < 400).sum()) <= 44  # a tenth of them, too


@pytest.mark.parametrize(("num", "keep", "expected"), [(10, 1.0, 10), (10, 0.5, 20), (10, 0.3, 33), (1, 0.4, 2)])
def test_candidates(num: int, keep: float, expected: int) -> None:
    assert GenerateSettings(num=num, keep=keep, head="head").num_candidates == expected


def test_the_most_confident_are_kept_as_they_were_generated(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed").code == 0
    assert cedm("cluster", *TINY_TEMI, "run_dir=clusters").code == 0
    assert cedm("train", *TINY_EDM, *TINY_TEMI, "run_dir=model").code == 0
    few = ["ckpt=model", "steps=2", "first_seed=3"]
    result = cedm("generate", *few, "head=clusters/head.safetensors", "num=10", "keep=0.5", "run_dir=sure")
    assert result.code == 0, result.err
    rows = list(csv.DictReader((workplace / "sure/confidence.csv").open()))
    assert [int(row["seed"]) for row in rows] == list(range(3, 23))
    chosen = [row for row in rows if row["kept"] == "1"]
    assert len(chosen) == 10
    for cluster in {row["asked"] for row in rows}:
        own = sorted((float(row["confidence"]), row["kept"]) for row in rows if row["asked"] == cluster)
        kept_flags = [flag for _, flag in own]
        assert kept_flags == sorted(kept_flags)
        assert abs(kept_flags.count("1") - len(own) / 2) <= 1
    assert cedm("generate", *few, "num=20", "run_dir=all").code == 0
    kept = sorted((workplace / "sure/images").glob("*/*.png"))
    assert [int(path.stem[3:]) for path in kept] == sorted(int(row["seed"]) for row in chosen)
    everything = workplace / "all/images"
    assert all(path.read_bytes() == (everything / path.parent.name / path.name).read_bytes() for path in kept)
    labels = dict(json.loads((workplace / "sure/images/dataset.json").read_text())["labels"])
    asked = {int(row["seed"]): int(row["asked"]) for row in rows}
    assert all(labels[f"{path.parent.name}/{path.name}"] == asked[int(path.stem[3:])] for path in kept)

    wrong = cedm("generate", *few, "head=clusters/pseudo_labels.safetensors", "run_dir=wrong")
    assert (wrong.code, "clustering-head" in wrong.err) == (2, True), wrong.err
