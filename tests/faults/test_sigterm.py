"""SIGTERM: exit code 143 within 30 s, a whole snapshot, and the same command goes on from there."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from callbacks.snapshots import newest_snapshot

from .conftest import EDM, Forks, Job, Trials, real_command, results_of

pytestmark = pytest.mark.faults
COMMAND = ["train", *EDM, "run_dir=run"]
WHOM = ["group", "rank 0", "rank 1"]
STOPPED_WITHIN_S = 30


def await_path(job: Job, pattern: str) -> None:
    """Wait until a file of this name is there."""
    deadline = time.monotonic() + 90
    while not list(job.folder.glob(pattern)):
        assert not job.poll(), job.words()
        assert time.monotonic() < deadline, job.words()
        time.sleep(0.02)


def check_stop(job: Job, goes_on: Job) -> None:
    assert "Stopped. The same command goes on from run/snapshots/step-" in job.words()
    assert not (job.folder / "run/summary.json").exists()
    goes_on.succeed()
    assert "Going on from run/snapshots/step-" in goes_on.words()


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_sigterm_while_training(forks: Forks, finished: Any, trials: Trials, tmp_path: Path, moment: str) -> None:
    expected = finished("train", 2)
    number = 0
    for rng in trials(f"SIGTERM to group, rank 0 or rank 1 in {moment}: code 143 in 30 s, goes on", 9):
        folder, whom, number = tmp_path / f"{rng.random()}", WHOM[number % 3], number + 1
        job = forks.start(*COMMAND, folder=folder, ranks=2, sabotage="slow_evaluation")
        await_path(job, "notes.txt" if moment == "evaluation" else "run/snapshots/step-00000004.ckpt")
        time.sleep(rng.uniform(0, 2))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        assert newest_snapshot(folder / "run/snapshots") is not None
        check_stop(job, forks.start(*COMMAND, folder=folder, ranks=2))
        assert results_of(folder / "run") == expected.results


def test_sigterm_to_typed_commands(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """With the processes that Lightning starts."""
    endless = ["evaluation.backbone=null", "training.duration_kimg=100000", "evaluation.grid_every_kimg=100000"]
    number = 0
    for rng in trials("SIGTERM to a typed command, 2 processes: code 143 in 30 s, all gone, a whole snapshot", 6):
        folder, whom, number = tmp_path / f"{rng.random()}", WHOM[number % 3], number + 1
        job = real_command(*COMMAND, *endless, folder=folder, ranks=2)
        await_path(job, "run/snapshots/step-*.ckpt")
        time.sleep(rng.uniform(0, 1))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        assert newest_snapshot(folder / "run/snapshots") is not None
        assert "Stopped. The same command goes on from run/snapshots/step-" in job.words()
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_sigterm_while_generating(forks: Forks, finished: Any, trials: Trials, tmp_path: Path, kind: str) -> None:
    model = finished("train", 1).folder / "run/denoiser.safetensors"
    settings = [f"ckpt={model}", "num=24", "batch_size=4", "steps=3", "run_dir=run", f"format={kind}"]
    for rng in trials(f"SIGTERM in generate format={kind}: code 143 in 30 s, goes on with what is left", 3):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start("generate", *settings, folder=folder, sabotage="slow_sampling")
        await_path(job, "run/images/00000/*.png")
        time.sleep(rng.uniform(0, 1.5))
        job.signal(signal.SIGTERM)
        assert job.wait(STOPPED_WITHIN_S) == 143
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("run/images/00000/*.png")}
        assert 4 <= len(kept) < 24
        assert not list(folder.rglob("*.tmp"))
        job = forks.start("generate", *settings, folder=folder)
        job.succeed()
        if kind == "png":
            assert {path: path.stat().st_mtime_ns for path in kept} == kept
            assert len(list(folder.glob("run/images/00000/*.png"))) == 24
        else:
            assert f"{len(kept)}/24" in job.words()  # where the progress bar went on
            assert (folder / "run/images.zip").exists()
            assert not (folder / "run/images").exists()


def test_sigterm_to_typed_generation(finished: Any, trials: Trials, tmp_path: Path) -> None:
    """With the processes that Lightning starts."""
    settings = [f"ckpt={finished('train', 1).folder / 'run/denoiser.safetensors'}", "num=100000", "batch_size=4"]
    number = 0
    for rng in trials("SIGTERM to a typed generate, 2 processes: code 143 in 30 s, all gone, goes on", 3):
        folder, whom, number = tmp_path / f"{rng.random()}", WHOM[number % 3], number + 1
        images = 0
        for _ in range(2):
            job = real_command("generate", *settings, "run_dir=run", folder=folder, ranks=2)
            await_path(job, f"run/images/00000/img{images + 10:08d}.png")
            time.sleep(rng.uniform(0, 1))
            job.signal(signal.SIGTERM, whom)
            assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
            assert not list(folder.rglob("*.tmp"))
            images = len(list(folder.glob("run/images/*/*.png")))


def test_slurm_queues_the_job_again(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """SIGUSR1 announces the end of the time limit: a snapshot, then `scontrol requeue`."""
    for rng in trials("SLURM's notice before the time limit: snapshot, requeued once, goes on", 2):
        folder = tmp_path / f"{rng.random()}"
        folder.mkdir()
        scontrol = folder / "scontrol"
        scontrol.write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
        scontrol.chmod(0o755)
        slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77", "SLURM_NODELIST": "localhost"}
        slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        slurm |= {"PATH": f"{folder}:{os.environ['PATH']}"}
        job = forks.start(*COMMAND, "trainer.devices=1", folder=folder, environment=slurm, sabotage="slow_evaluation")
        await_path(job, "notes.txt")
        job.signal(signal.SIGUSR1)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        assert (folder / "requeued.txt").read_text() == "requeue 77\n"
        check_stop(job, forks.start(*COMMAND, "trainer.devices=1", folder=folder, environment=slurm))
        assert not list(folder.rglob("hpc_ckpt*"))
        assert results_of(folder / "run") == finished("train", 1).results
