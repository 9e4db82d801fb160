"""Several devices share a grid: each job once, whatever goes wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from callbacks.stop_request import Stopped, stop_at_once
from pipeline.running import bound_workers
from pipeline.running.bound_grid import Job
from pipeline.running.bound_workers import train_side_by_side
from pipeline.running.workers import Worker
from storage.errors import UserError

from .conftest import Cedm, summary
from .test_bound_command import SHORT

WORKERS = [Worker(f"GPU {name}", (), {"CUDA_VISIBLE_DEVICES": name}) for name in ("5", "7")]

# Stands for `cedm cluster`: notes what it was started with, takes a moment, and writes the result, or fails.
WORK = """
import os, pathlib, sys, time
path, number = pathlib.Path(sys.argv[1]), sys.argv[2]
with (path.parent / "started").open("a") as file:
    file.write(f"{number} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
time.sleep(float(sys.argv[3]))
if number == "1":
    sys.exit("error: out of memory")
path.write_text("done")
"""


@dataclass(frozen=True, eq=False)
class FakeJob(Job):
    number: int = 0

    def __str__(self) -> str:
        return f"job {self.number}"


def fake_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, seconds: float) -> list[FakeJob]:
    def settings_of(job: FakeJob) -> list[str]:
        return [str(job.path), str(job.number), str(seconds)]

    monkeypatch.setattr(bound_workers, "settings_of", settings_of)
    monkeypatch.setattr(Worker, "command", lambda _, __, words: [sys.executable, "-c", WORK, *words])
    return [FakeJob(OmegaConf.create(), folder / f"{n}.done", folder / f"run{n}", n) for n in range(count)]


def test_each_job_is_trained_once_and_a_failure_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = fake_jobs(tmp_path, monkeypatch, count=6, seconds=0.2)
    jobs[0].path.write_text("done before")
    with pytest.raises(UserError, match=r"1 of 5 clusterings failed:\njob 1: exit code 1: error: out of memory"):
        train_side_by_side(jobs, WORKERS)
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert sorted(number for number, _ in started) == ["1", "2", "3", "4", "5"]
    assert {device for _, device in started} == {"5", "7"}
    assert [job.is_done for job in jobs] == [True, False, True, True, True, True]
    assert "failed  job 1" in capsys.readouterr().err


def test_a_job_that_another_process_works_on_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fake_jobs(tmp_path, monkeypatch, count=3, seconds=0.1)[2:]
    monkeypatch.setattr(bound_workers, "LOOK_EVERY_SECONDS", 0.05)
    with jobs[0].claimed(wait=True) as mine:
        assert mine
        thread = threading.Thread(target=lambda: jobs[0].path.write_text("done elsewhere"))
        threading.Timer(0.5, thread.start).start()
        train_side_by_side(jobs, WORKERS)
    assert jobs[0].path.read_text() == "done elsewhere"
    assert not (tmp_path / "started").exists()


def test_a_job_whose_process_dies_elsewhere_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fake_jobs(tmp_path, monkeypatch, count=3, seconds=0)[2:]
    hold = f"import filelock, time; lock = filelock.FileLock({f'{jobs[0].path}.lock'!r}); lock.acquire()"
    wait = "print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", f"{hold}; {wait}"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    threading.Timer(0.3, holder.kill).start()
    train_side_by_side(jobs, WORKERS[:1])
    assert jobs[0].path.read_text() == "done"
    holder.wait()


def test_sigterm_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fake_jobs(tmp_path, monkeypatch, count=6, seconds=60)
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stop_at_once():
        train_side_by_side(jobs[2:], WORKERS)
    signal.signal(signal.SIGTERM, handler)
    assert time.monotonic() - start < 20
    assert len((tmp_path / "started").read_text().splitlines()) == 2
    assert not any(job.is_done for job in jobs)


@pytest.mark.slow
def test_two_devices_give_the_table_of_one(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed").code == 0
    settings = [*SHORT, "bound.grid=[2,5]", "trainer.accelerator=cpu", "seed=3"]
    two = cedm("bound", *settings, "trainer.devices=2", "run_dir=two")
    assert two.code == 0, two.err
    assert "3 clusterings on 2 devices" in two.out
    one = cedm("bound", *settings, "trainer.devices=1", "cache_dir=other", "run_dir=one")
    assert one.code == 2  # no embeddings there
    assert cedm("embed", "cache_dir=other").code == 0
    one = cedm("bound", *settings, "trainer.devices=1", "cache_dir=other", "run_dir=one")
    assert one.code == 0, one.err
    assert Path("two/bound.csv").read_text() == Path("one/bound.csv").read_text()
    assert summary("two")["measurements"] == summary("one")["measurements"]
    part = "clusterings/clusters5-beta1.0-seed3"
    for folder in ("one", "two"):
        for name in ("gallery.png", "clusters.png", "map.png", "clusters.csv", "summary.json"):
            assert (Path(folder) / part / name).is_file(), (folder, name)
    assert json.loads((Path("two") / part / "summary.json").read_text())["num_clusters"] == 5
