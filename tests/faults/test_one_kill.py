"""One kill -9 among the fast tests; `make test-faults` has the many."""

import random
from pathlib import Path
from typing import Any

from .conftest import kill_and_resume
from .jobs import Forks


def test_a_killed_run_ends_in_the_same_bytes(forks: Forks, finished: Any, tmp_path: Path) -> None:
    kill_and_resume(forks, finished("train", 1), "train", 1, tmp_path / "killed", random.Random(0))
