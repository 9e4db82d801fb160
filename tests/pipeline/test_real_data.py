"""CIFAR-10 in EDM's ZIP format through all stages, as docs/cifar10-on-a-cpu.md tells."""

import json
from pathlib import Path

import pytest

from .conftest import Cedm

EXPERIMENT = ["experiment=cifar10_on_a_cpu", "dataset.max_images=300", "training.duration_kimg=0.3"]
SHORT = ["clustering.max_epochs=2", "network.model_channels=8", "evaluation.num_images=64", "sampler.steps=2"]


@pytest.mark.slow
def test_the_documented_commands(cedm: Cedm, workplace: Path, real_data: Path) -> None:
    data = [*EXPERIMENT, *SHORT, f'dataset.path="{real_data / "cifar10-train.zip"}"']
    for command in ("embed", "cluster", "train"):
        result = cedm(command, *data)
        assert result.code == 0, result.err
    key = "temi-dino_vitb16.beta0.6.clusters100"
    assignments = f"assignments={real_data / 'cifar10-published-assignments.safetensors'}::{key}"
    result = cedm("train", *data, assignments, "run_dir=published")
    assert result.code == 0, result.err
    assert json.loads((workplace / "published/summary.json").read_text())["nimg"] == 320
    assert "100 clusters" not in result.out  # 300 images do not reach all of them; what is empty is dropped
    wrong = cedm("train", "conditioning=clusters", assignments, "run_dir=wrong")
    assert wrong.code == 2
    assert "1797" in wrong.err
