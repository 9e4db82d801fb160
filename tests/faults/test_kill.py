"""kill -9, damaged snapshots, a full disk, exceptions: the same command again ends in the uninterrupted run's bytes."""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.snapshots import SEAL_LENGTH, newest_snapshot
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from datamodules.stream import SampleStream

from .conftest import (
    EDM,
    GONE_WITHIN_S,
    PHASES,
    Finished,
    Trials,
    content_digest,
    digest,
    kill_and_resume,
    prepare,
    results_of,
)
from .jobs import Forks

pytestmark = pytest.mark.faults
EDM_COMMAND = ["train", *EDM, "run_dir=run"]


def unfinished_copy(finished: Finished, folder: Path) -> Path:
    """The folder of a finished run as it was before its last words: with its snapshots, without a summary."""
    shutil.copytree(finished.folder, folder)
    (folder / "run/summary.json").unlink()
    return folder / "run"


@pytest.mark.parametrize(
    ("phase", "ranks"),
    [
        pytest.param("train", 1, marks=pytest.mark.full),  # as in test_one_kill.py
        ("train", 2),
        pytest.param("cluster", 1, marks=pytest.mark.full),
        ("cluster", 2),
    ],
)
def test_killed_at_a_random_moment(
    forks: Forks, finished: Any, trials: Trials, tmp_path: Path, phase: str, ranks: int
) -> None:
    expected = finished(phase, ranks)
    for rng in trials(f"kill -9 in {phase}, processes: {ranks}; the same command again: same bytes", 5):
        kill_and_resume(forks, expected, phase, ranks, tmp_path / f"{rng.random()}", rng)


def test_killed_while_a_snapshot_is_written(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """`TMPDIR` plays no part: nothing is left there by a process that could not tidy up."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    for rng in trials("kill -9 inside a snapshot's write, TMPDIR elsewhere: a whole one remains", 10):
        folder = tmp_path / f"{rng.random()}"
        with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
            environment = {"SABOTAGE_SEED": str(rng.random()), "TMPDIR": elsewhere}
            job = forks.start(*EDM_COMMAND, folder=folder, sabotage="kill_in_snapshot", environment=environment)
            assert job.wait() == -signal.SIGKILL, job.words()
            assert not list(Path(elsewhere).rglob("*"))
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
    """A model is written before the snapshot of its step and is the smaller file."""
    row = "disk full in a snapshot's or model's write: old files whole, a clear error"
    for rng, full_in in trials.each(row, ["snapshot", "model", "seal"] * 2):
        run = unfinished_copy(finished("train", 1), tmp_path / f"{rng.random()}")
        last, model = max((run / "snapshots").glob("step-*.ckpt")), run / "denoiser.safetensors"
        snapshot_size, model_size = last.stat().st_size, model.stat().st_size
        assert model_size < snapshot_size
        sizes = {"model": (model_size // 3, model_size), "snapshot": (model_size, snapshot_size - SEAL_LENGTH)}
        sizes["seal"] = (snapshot_size - SEAL_LENGTH, snapshot_size)
        last.unlink()
        before = {path: digest(path) for path in (model, *run.glob("snapshots/*"))}
        job = forks.start(*EDM_COMMAND, folder=run.parent, file_size=rng.randrange(*sizes[full_in]))
        assert job.wait() == 2, job.words()
        assert "the disk or your quota is full" in job.words()
        assert "Traceback" not in job.words()
        assert {path: digest(path) for path in (model, *run.glob("snapshots/*"))} == before
        assert not list(run.rglob("*.tmp"))
        forks.start(*EDM_COMMAND, folder=run.parent).succeed()
        assert results_of(run) == finished("train", 1).results


def test_exception_in_an_evaluation(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """Each snapshot that is there then holds what an uninterrupted run's holds, and goes on to the same bytes."""
    straight = finished("train", 1, "evaluation.keep_snapshots=99")
    for rng, number in trials.each("exception in evaluation: EMA and raw weights never change places", [2, 1, 3]):
        folder = tmp_path / f"{rng.random()}"
        which = {"SABOTAGE_EVALUATION": str(number)}
        job = forks.start(*EDM_COMMAND, folder=folder, sabotage="raise_in_evaluation", environment=which)
        assert job.wait() == 1
        assert "planted by the test" in job.words()
        found = {path.name: content_digest(path) for path in folder.glob("run/snapshots/*")}
        assert found
        assert found == {name: content_digest(straight.folder / "run/snapshots" / name) for name in found}
        forks.start(*EDM_COMMAND, folder=folder).succeed()
        assert results_of(folder / "run") == straight.results


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_one_rank_raises(forks: Forks, trials: Trials, tmp_path: Path, moment: str) -> None:
    for rng in trials(f"one of two ranks raises in {moment}: all gone within 60 s, no exit code 0", 4):
        job = forks.start(
            *EDM_COMMAND,
            folder=tmp_path / f"{rng.random()}",
            ranks=2,
            sabotage=f"raise_in_{moment}",
            sabotaged_ranks=[rng.randrange(2)],
            environment={"SABOTAGE_EVALUATION": "2"},
        )
        job.wait(GONE_WITHIN_S)
        assert 0 not in job.codes.values()


DIGITS = open_source(DatasetSettings(max_images=300))
SEEN = [DIGITS.ids[row] for row in SampleStream(300, seed=0).indices(torch.arange(192, 224)).tolist()]  # by one step
NAN = {
    ("train", "nan_in_weight"): f"that of the images {', '.join(SEEN[:8])}, …",
    ("cluster", "nan_in_embedding"): r"the embeddings of these images",
    ("train", "nan_in_image"): f"that of the images {SEEN[205 - 192]}. Set",
    ("train", "nan_in_loss"): f"that of the images {SEEN[205 - 192]}. Set",
    ("cluster", "nan_in_student"): r"its images: [",
}


def test_nan(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    row = "NaN in an image, embedding, weight or loss: stopped before the update, batch named"
    for rng, ((phase, fault), words) in trials.each(row, list(NAN.items()), least=2):
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
