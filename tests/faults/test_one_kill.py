"""One kill -9, Ctrl-C and SIGTERM among the fast tests; `make test-faults` has the many."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import EDM, kill_and_resume
from .jobs import Forks


def test_a_killed_run_ends_in_the_same_bytes(forks: Forks, finished: Any, tmp_path: Path) -> None:
    kill_and_resume(forks, finished("train", 1), "train", 1, tmp_path / "killed", random.Random(0))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_no_finished_one(forks: Forks, tmp_path: Path, number: int, code: int) -> None:
    """Both end with a non-zero code and a word on how to go on; nothing says that the run is done."""
    endless = ["evaluation.backbone=null", "training.duration_kimg=100000", "evaluation.grid_every_kimg=100000"]
    job = forks.start("train", *EDM, *endless, "run_dir=run", folder=tmp_path)
    job.await_path("run/snapshots/step-*.ckpt")
    job.signal(number)
    assert job.wait() == code
    assert "Run the same command again to continue from run/snapshots/step-" in job.words()
    assert not (tmp_path / "run/summary.json").exists()
