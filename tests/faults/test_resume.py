"""Resuming from each snapshot that a run saved: same bytes, same order of images, same evaluations."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import EDM, Trials, results_of
from .jobs import Forks

pytestmark = pytest.mark.faults


def test_from_every_snapshot(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """Four runs (0 and 2 workers, 1 and 2 accumulated passes), five snapshots each; the last is the end itself."""
    straight = {}
    cases = [(workers, share, number) for number in range(5) for workers in (2, 0) for share in (16, 32)]
    row = "resume from every snapshot, workers 0 and 2, accumulation 1 and 2: same bytes, order"
    for rng, (workers, share, number) in trials.each(row, cases):
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


def test_the_same_command_twice_at_once(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("the same command twice at once: the second is refused, the first is not disturbed", 2):
        folder, command = tmp_path / f"{rng.random()}", ["train", *EDM, "run_dir=run"]
        first = forks.start(*command, folder=folder, sabotage="slow_steps")
        first.await_path("run/snapshots/step-*.ckpt")
        second = forks.start(*command, folder=folder)
        assert second.wait() == 2, second.words()
        assert "run: another process works on this run" in second.words()
        first.succeed()
        assert results_of(folder / "run") == finished("train", 1).results


def test_another_number_of_devices(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """Allowed, and said; the same images and noise, so the same model up to rounding. Passes per step change too."""
    settings = ["network.dropout=0", "evaluation.keep_snapshots=99"]  # dropout is drawn per rank
    cases = [(2, 1, 7), (1, 2, 13)]  # after an odd number of passes, which were whole steps
    for rng, (before, after, step) in trials.each("another number of devices after a stop: allowed and said", cases):
        straight, folder = finished("train", before, *settings), tmp_path / f"{rng.random()}"
        shutil.copytree(straight.folder, folder)
        (folder / "run/summary.json").unlink()
        for snapshot in (folder / "run/snapshots").glob("step-*.ckpt"):
            if int(snapshot.stem.split("-")[1]) > step:
                snapshot.unlink()
        passes = f"training.max_batch_per_device={32 // after // 2}"
        job = forks.start("train", *EDM, *settings, passes, "run_dir=run", folder=folder, ranks=after)
        job.succeed()
        assert f"{before} processes trained up to here, {after} go on" in job.words()
        expected, found = last_weights(straight.folder), last_weights(folder)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            # Adam takes the rounding errors that are all the gradient of attention's key biases for a direction.
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-4, msg=name)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights, raw and averaged, at the end of a run."""
    snapshot = max((folder / "run/snapshots").glob("step-*.ckpt"))
    state = torch.load(snapshot, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name != "recent_loss"}  # an average over passes
