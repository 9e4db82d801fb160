"""Sharing jobs between workers, on jobs that take milliseconds: order, failures, going on."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.running.workers import Worker
from pipeline.studies.jobs import Job
from pipeline.studies.runner import run_jobs

WORKERS = [Worker("a", (), {}), Worker("b", (), {})]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(job, worker) in the order of their start. A job's first word is a piece of Python that makes its summary."""
    order = []

    def command(worker: Worker, _: str, words: list[str]) -> list[str]:
        folder = Path(words[-1].removeprefix("run_dir="))
        order.append((folder.name, worker.name))
        return [sys.executable, "-c", f"import os, sys; os.chdir({str(folder)!r}); {words[0]}"]

    monkeypatch.setattr(Worker, "command", command)
    return order


def job(folder: Path, name: str, *needs: str, code: str | None = None) -> Job:
    summary = json.dumps({"command": "train"})
    return Job(name, "train", (code or f"open('summary.json', 'w').write('{summary}')",), folder / name, needs)


def test_each_job_comes_after_those_that_it_needs(tmp_path: Path, started: list) -> None:
    jobs = [job(tmp_path, "first"), job(tmp_path, "second", "first"), job(tmp_path, "third", "second", "first")]
    assert run_jobs([*jobs, job(tmp_path, "beside")], WORKERS) == {}
    names = [name for name, _ in started]
    assert names[:2] == ["first", "beside"]
    assert {worker for _, worker in started[:2]} == {"a", "b"}  # both at work
    assert names[2:] == ["second", "third"]


def test_a_failure_stops_only_what_needs_it(tmp_path: Path, started: list) -> None:
    bad = job(tmp_path, "bad", code="print('a word before'); print('error: no such thing'); sys.exit(2)")
    silent = job(tmp_path, "silent", code="sys.exit(0)")  # ends well and has nothing to show
    jobs = [bad, job(tmp_path, "after", "bad"), job(tmp_path, "last", "after"), silent, job(tmp_path, "good")]
    failed = run_jobs(jobs, WORKERS)
    assert set(failed) == {"bad", "after", "last", "silent"}
    assert failed["bad"].startswith("exit code 2: error: no such thing")
    assert failed["after"] == "not run, because bad failed"
    assert failed["last"] == "not run, because after failed"
    assert {name for name, _ in started} == {"bad", "silent", "good"}


def test_what_is_finished_is_not_started_again(tmp_path: Path, started: list) -> None:
    jobs = [job(tmp_path, "first"), job(tmp_path, "second", "first")]
    assert run_jobs(jobs[:1], WORKERS) == {}
    assert run_jobs(jobs, WORKERS) == {}
    assert run_jobs(jobs, WORKERS) == {}
    assert [name for name, _ in started] == ["first", "second"]


def test_a_finished_job_whose_cache_is_gone_runs_again(tmp_path: Path) -> None:
    found = job(tmp_path, "cluster")
    found.folder.mkdir()
    kept = tmp_path / "labels"
    kept.touch()
    (found.folder / "summary.json").write_text(json.dumps({"command": "train", "pseudo_labels": str(kept)}))
    assert found.summary() is not None
    kept.unlink()
    assert found.summary() is None
