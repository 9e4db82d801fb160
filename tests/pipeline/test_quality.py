"""The digits from nothing to images, as a user types it, and the floor under the quality of what comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORTER = "training.duration_kimg=30"  # a quarter of the default
LOWEST_NMI = 68.0  # percent, of TEMI's 40 clusters against the ten digits; seeds 0, 1, 2: 70.5, 71.9, 73.2
LARGEST_DISTANCE = 0.62  # fd_pixels of 500 images after 30 kimg; three trainings: 0.39, 0.47, 0.48


def make(target: str, arguments: str, folder: Path) -> str:
    """What `make TARGET ARGS="…"` prints."""
    command = ["make", "-f", str(ROOT / "Makefile"), target, "ACCELERATOR=cpu", f"ARGS={arguments}"]
    command.append(f"PYTHON={sys.executable}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_digits_from_nothing_to_images(tmp_path: Path):
    make("train", SHORTER, tmp_path)
    (clustered,) = tmp_path.glob("runs/digits/cluster-temi-40/*/summary.json")
    (trained,) = tmp_path.glob("runs/digits/train-temi-40/*/summary.json")
    assert json.loads(clustered.read_text())["nmi"] > LOWEST_NMI
    assert json.loads(trained.read_text())["fd_pixels"] < LARGEST_DISTANCE

    assert make("train", SHORTER, tmp_path).count("Nothing to do") == 3
    make("generate", "num=16 run_dir=generated", tmp_path)
    assert (tmp_path / "generated/grid.png").stat().st_size > 1000
    assert len(list(tmp_path.glob("generated/images/00000/*.png"))) == 16
