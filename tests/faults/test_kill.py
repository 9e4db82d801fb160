"""kill -9, damaged snapshots, a full disk, exceptions: the same command again ends in the uninterrupted run's bytes."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.snapshots import newest_snapshot
from datamodules.sources import open_source
from datamodules.stream import SampleStream

from .conftest import EDM, GONE_WITHIN_S, PHASES, Finished, Forks, Trials, digest, kill_and_resume, prepare, results_of

pytestmark = pytest.mark.faults
EDM_COMMAND = ["train", *EDM, "run_dir=run"]


def unfinished_copy(finished: Finished, folder: Path) -> Path:
    """The folder of a finished run as it was before its last words: with its snapshots, without a summary."""
    shutil.copytree(finished.folder, folder)
    (folder / "run/summary.json").unlink()
    return folder / "run"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("phase", ["train", "cluster"])
def test_killed_at_a_random_moment(
    forks: Forks, finished: Any, trials: Trials, tmp_path: Path, phase: str, ranks: int
) -> None:
    expected = finished(phase, ranks)
    for rng in trials(f"kill -9 in {phase}, processes: {ranks}; the same command again: same bytes", 5):
        kill_and_resume(forks, expected, phase, ranks, tmp_path / f"{rng.random()}", rng)


def test_killed_while_a_snapshot_is_written(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    other_file_system = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}
    for rng in trials("kill -9 inside a snapshot's write, TMPDIR elsewhere: a whole one remains", 10):
        folder, seed = tmp_path / f"{rng.random()}", {"SABOTAGE_SEED": str(rng.random())}
        job = forks.start(
            *EDM_COMMAND, folder=folder, sabotage="kill_in_snapshot", environment=other_file_system | seed
        )
        assert job.wait() == -signal.SIGKILL
        assert list(folder.rglob("*.tmp"))
        assert newest_snapshot(folder / "run/snapshots") is not None
        assert not list(folder.rglob("*.damaged"))
        forks.start(*EDM_COMMAND, folder=folder).succeed()
        assert results_of(folder / "run") == finished("train", 1).results
        assert not list(folder.rglob("*.tmp"))


def test_damaged_newest_snapshot(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("newest snapshot truncated or bit-flipped: named, the one before is used", 10):
        run = unfinished_copy(finished("train", 1), tmp_path / f"{rng.random()}")
        last = max((run / "snapshots").glob("step-*.ckpt"))
        content = bytearray(last.read_bytes())
        if rng.random() < 0.5:
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        last.write_bytes(content)
        job = forks.start(*EDM_COMMAND, folder=run.parent)
        job.succeed()
        assert f"{Path(*last.parts[-3:])} is damaged" in job.words()
        assert last.with_name(f"{last.name}.damaged").read_bytes() == content
        assert results_of(run) == finished("train", 1).results


def test_the_disk_fills_up_in_a_snapshot(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("disk full in a snapshot's or model's write: old files whole, a clear error", 6):
        run = unfinished_copy(finished("train", 1), tmp_path / f"{rng.random()}")
        max((run / "snapshots").glob("step-*.ckpt")).unlink()
        before = {path: digest(path) for path in (*run.glob("snapshots/*.ckpt"), run / "denoiser.safetensors")}
        smallest = min(path.stat().st_size for path in before)
        job = forks.start(*EDM_COMMAND, folder=run.parent, file_size=rng.randrange(smallest // 3, smallest))
        assert job.wait() == 2, job.words()
        assert "the disk or your quota is full" in job.words()
        assert "Traceback" not in job.words()
        assert {path: digest(path) for path in before} == before
        assert not list(run.rglob("*.tmp"))
        forks.start(*EDM_COMMAND, folder=run.parent).succeed()
        assert results_of(run) == finished("train", 1).results


def test_exception_in_an_evaluation(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """The snapshot after it holds raw and averaged weights in their own places: it goes on to the same bytes."""
    for rng in trials("exception in evaluation: EMA and raw weights never change places", 3):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start(*EDM_COMMAND, folder=folder, sabotage="raise_in_evaluation")
        assert job.wait() == 1
        assert "planted by the test" in job.words()
        forks.start(*EDM_COMMAND, folder=folder).succeed()
        assert results_of(folder / "run") == finished("train", 1).results


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_one_rank_raises(forks: Forks, trials: Trials, tmp_path: Path, moment: str) -> None:
    for rng in trials(f"one of two ranks raises in {moment}: all gone within 60 s, no exit code 0", 4):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start(
            *EDM_COMMAND,
            folder=folder,
            ranks=2,
            sabotage=f"raise_in_{moment}",
            sabotaged_ranks=[rng.randrange(2)],
        )
        job.wait(GONE_WITHIN_S)
        assert 0 not in job.codes.values()


DIGITS = open_source(kind="digits", name="digits", path=None, max_images=300)
SEEN = [DIGITS.ids[row] for row in SampleStream(300, seed=0).indices(torch.arange(192, 224)).tolist()]  # by one step
NAN = {
    ("train", "nan_in_image"): f"that of the images {SEEN[205 - 192]}. Type",
    ("train", "nan_in_weight"): f"that of the images {', '.join(SEEN[:8])}, …",
    ("train", "nan_in_loss"): f"that of the images {SEEN[205 - 192]}. Type",
    ("cluster", "nan_in_embedding"): r"the embeddings of these images",
    ("cluster", "nan_in_student"): r"its images: [",
}


def test_nan(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    planted = list(NAN.items())
    row = trials("NaN in an image, embedding, weight or loss: stopped before the update, batch named", len(planted))
    for rng, ((phase, fault), words) in zip(row, planted, strict=False):
        folder = tmp_path / f"{rng.random()}"
        prepare(forks, phase, folder)
        job = forks.start(phase, *PHASES[phase], "run_dir=run", folder=folder, sabotage=fault)
        assert job.wait() != 0
        assert "the weights were not updated" in job.words()
        assert words in job.words()
        snapshot = newest_snapshot(folder / "run/snapshots")
        if snapshot is not None:
            state = torch.load(snapshot, weights_only=True)["state_dict"]
            assert all(value.isfinite().all() for name, value in state.items() if name != "last_epoch_losses")
        forks.start(phase, *PHASES[phase], "run_dir=run", folder=folder).succeed()
        assert results_of(folder / "run") == finished(phase, 1).results
