"""SIGTERM: exit code 143 within 30 s, a whole snapshot, and the same command goes on from there."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from callbacks.snapshots import newest_snapshot

from .conftest import EDM, TEMI, Trials, prepare, results_of
from .jobs import Forks, Job, real_command

pytestmark = pytest.mark.faults
COMMAND = ["train", *EDM, "run_dir=run"]
WHOM = ["group", "rank 0", "rank 1"]
STOPPED_WITHIN_S = 30


def check_stop(job: Job, goes_on: Job) -> None:
    assert "Stopped. Run the same command again to continue from run/snapshots/step-" in job.words()
    assert not (job.folder / "run/summary.json").exists()
    goes_on.succeed()
    assert "Resuming from run/snapshots/step-" in goes_on.words()


def test_sigterm_in_training(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """Between the second and the last snapshot, far from any evaluation; also with workers, which get it too."""
    training = [*COMMAND, "evaluation.every_kimg=100000"]
    expected = finished("train", 2, *training[len(COMMAND) :])
    cases = [(WHOM[number % 3], (2, 0)[number % 2]) for number in range(9)]
    row = "SIGTERM to group, rank 0 or rank 1 in training: code 143 in 30 s, goes on"
    for rng, (whom, workers) in trials.each(row, cases):
        folder, settings = tmp_path / f"{rng.random()}", [*training, f"training.num_workers={workers}"]
        job = forks.start(*settings, folder=folder, ranks=2, sabotage="slow_steps")
        job.await_path("run/snapshots/step-00000004.ckpt")
        time.sleep(rng.uniform(0, 1.5))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        snapshot = newest_snapshot(folder / "run/snapshots")
        assert snapshot is not None
        assert 4 < int(snapshot.stem.split("-")[1]) < 16
        assert not (folder / "notes.txt").exists()  # of an evaluation
        check_stop(job, forks.start(*settings, folder=folder, ranks=2))
        assert results_of(folder / "run") == expected.results


def test_sigterm_in_evaluation(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """The last of three comes after all steps: the last snapshot then lacks its distance, the result has it."""
    cases = [(WHOM[(number + number // 3 + 1) % 3], (3, 1, 2)[number % 3]) for number in range(9)]  # all pairs
    row = "SIGTERM to group, rank 0 or rank 1 in evaluation: code 143 in 30 s, goes on"
    for rng, (whom, number) in trials.each(row, cases, least=2):
        folder, which = tmp_path / f"{rng.random()}", {"SABOTAGE_EVALUATION": str(number)}
        job = forks.start(*COMMAND, folder=folder, ranks=2, sabotage="slow_evaluation", environment=which)
        job.await_path("notes.txt")
        time.sleep(rng.uniform(0, 1.5))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        check_stop(job, forks.start(*COMMAND, folder=folder, ranks=2))
        results, expected = results_of(folder / "run"), dict(finished("train", 2).results)
        if number == 3:
            del results["step-00000016.ckpt"], expected["step-00000016.ckpt"]
        assert results == expected


def test_sigterm_in_clustering(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    command = ["cluster", *TEMI, "run_dir=run"]
    row = "SIGTERM to group, rank 0 or rank 1 in cluster: code 143 in 30 s, goes on"
    for rng, whom in trials.each(row, WHOM[::-1]):
        folder = tmp_path / f"{rng.random()}"
        prepare(forks, "cluster", folder)
        job = forks.start(*command, folder=folder, ranks=2, sabotage="slow_steps")
        job.await_path("run/snapshots/step-*.ckpt")
        time.sleep(rng.uniform(0, 1.5))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        check_stop(job, forks.start(*command, folder=folder, ranks=2))
        assert results_of(folder / "run") == finished("cluster", 2).results


def test_sigterm_to_typed_commands(forks: Forks, finished: Any, trials: Trials, tmp_path: Path) -> None:
    """With the processes that Lightning starts."""
    endless = ["evaluation.backbone=null", "training.duration_kimg=100000", "evaluation.grid_every_kimg=100000"]
    row = "SIGTERM to a typed command, 2 processes: code 143 in 30 s, all gone, a whole snapshot"
    for rng, whom in trials.each(row, WHOM):
        folder = tmp_path / f"{rng.random()}"
        job = real_command(*COMMAND, *endless, folder=folder, ranks=2)
        job.await_path("run/snapshots/step-*.ckpt")
        time.sleep(rng.uniform(0, 1))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        assert newest_snapshot(folder / "run/snapshots") is not None
        assert "Stopped. Run the same command again to continue from run/snapshots/step-" in job.words()
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_sigterm_while_generating(forks: Forks, finished: Any, trials: Trials, tmp_path: Path, kind: str) -> None:
    model = finished("train", 1).folder / "run/denoiser.safetensors"
    settings = [f"ckpt={model}", "num=24", "batch_size=4", "steps=3", "run_dir=run", f"format={kind}"]
    row = f"SIGTERM to group, rank 0 or rank 1 in generate format={kind}: code 143 in 30 s, goes on"
    for rng, whom in trials.each(row, (WHOM if kind == "zip" else WHOM[::-1]) * 2):
        folder = tmp_path / f"{rng.random()}"
        job = forks.start("generate", *settings, folder=folder, ranks=2, launched=True, sabotage="slow_sampling")
        job.await_path("run/images/00000/*.png")
        time.sleep(rng.uniform(0, 1))
        job.signal(signal.SIGTERM, whom)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("run/images/00000/*.png")}
        assert 4 <= len(kept) < 24
        assert not list(folder.rglob("*.tmp"))
        job = forks.start("generate", *settings, folder=folder, ranks=2, launched=True)
        job.succeed()
        if kind == "png":
            assert {path: path.stat().st_mtime_ns for path in kept} == kept
            assert len(list(folder.glob("run/images/00000/*.png"))) == 24
        else:
            own = sum(int(path.stem.removeprefix("img")) % 2 == 0 for path in kept)
            assert f"{own}/12" in job.words()  # where rank 0's progress bar went on
            assert (folder / "run/images.zip").exists()
            assert not (folder / "run/images").exists()


@pytest.mark.full
def test_sigterm_to_typed_generation(finished: Any, trials: Trials, tmp_path: Path) -> None:
    """With the processes that Lightning starts."""
    settings = [f"ckpt={finished('train', 1).folder / 'run/denoiser.safetensors'}", "num=100000", "batch_size=4"]
    row = "SIGTERM to a typed generate, 2 processes: code 143 in 30 s, all gone, goes on"
    for rng, whom in trials.each(row, WHOM[::-1]):
        folder, images = tmp_path / f"{rng.random()}", 0
        for _ in range(2):
            job = real_command("generate", *settings, "run_dir=run", folder=folder, ranks=2)
            job.await_path(f"run/images/00000/img{images + 10:08d}.png")
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
        slow = {"sabotage": "slow_evaluation", "environment": slurm | {"SABOTAGE_EVALUATION": "1"}}
        job = forks.start(*COMMAND, "trainer.devices=1", folder=folder, **slow)
        job.await_path("notes.txt")
        job.signal(signal.SIGUSR1)
        assert job.wait(STOPPED_WITHIN_S) == 143, job.words()
        assert (folder / "requeued.txt").read_text() == "requeue 77\n"
        check_stop(job, forks.start(*COMMAND, "trainer.devices=1", folder=folder, environment=slurm))
        assert not list(folder.rglob("hpc_ckpt*"))
        assert results_of(folder / "run") == finished("train", 1).results
