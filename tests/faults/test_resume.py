"""Resuming from each snapshot that a run saved: same bytes, same order of images, same evaluations."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import EDM, Forks, Trials, results_of

pytestmark = pytest.mark.faults


def test_from_every_snapshot(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """Four runs (0 and 2 workers, 1 and 2 accumulated passes), five snapshots each; the last is the end itself."""
    straight = {}
    cases = [(workers, share, number) for number in range(5) for workers in (0, 2) for share in (32, 16)]
    row = trials("resume from every snapshot, workers 0 and 2, accumulation 1 and 2: same bytes, order", len(cases))
    for rng, (workers, share, number) in zip(row, cases, strict=False):
        command = [
            "train",
            *EDM,
            f"training.num_workers={workers}",
            f"training.max_batch_per_device={share}",
            "evaluation.keep_snapshots=99",
            "run_dir=run",
        ]
        if (workers, share) not in straight:
            folder = tmp_path / f"{workers}-{share}"
            forks.start(*command, folder=folder, sabotage="record").succeed()
            straight[workers, share] = (folder, results_of(folder / "run"), notes(folder))
        complete, results, images = straight[workers, share]
        snapshots = sorted(path.name for path in (complete / "run/snapshots").glob("step-*.ckpt"))
        assert len(snapshots) == 5
        folder = tmp_path / f"{rng.random()}"
        shutil.copytree(complete, folder)
        for name in ("run/summary.json", "notes.txt", *(f"run/snapshots/{later}" for later in snapshots[number + 1 :])):
            (folder / name).unlink()
        forks.start(*command, folder=folder, sabotage="record").succeed()
        assert results_of(folder / "run") == results
        seen = notes(folder)
        assert seen == images[len(images) - len(seen) :]
        step = int(snapshots[number].split(".")[0].split("-")[1])
        assert sum(line.startswith("positions") for line in seen) == (16 - step) * 32 // share


def notes(folder: Path) -> list[str]:
    """Images of each pass and the evaluations, in their order; the measurement of the cost comes before them."""
    path = folder / "notes.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_another_number_of_devices(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """Allowed, and said; the same images, so the same model up to rounding."""
    for rng in trials("another number of devices after a stop: allowed and said", 2):
        folder = tmp_path / f"{rng.random()}"
        shutil.copytree(finished("train", 2).folder, folder)
        (folder / "run/summary.json").unlink()
        max((folder / "run/snapshots").glob("step-*.ckpt")).unlink()
        job = forks.start("train", *EDM, "run_dir=run", folder=folder)
        job.succeed()
        assert "2 processes trained up to here, 1 go on" in job.words()
