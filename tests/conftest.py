"""Fixtures that every room's tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .faults.jobs import Forks

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
collect_ignore_glob = ["bench/*", "gpu/[!t]*"]  # programs of their own, which hold no tests and no examples
torch.set_num_threads(1)  # tests run side by side: threads of several processes would only wait for one another


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=None, help="at most this many trials per row; default: all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--trials`, leave out the rows whose mechanism another row has too."""
    if config.getoption("--trials") is not None:
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of faults, where some were tried."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    properties = [found for report in reports for found in getattr(report, "user_properties", [])]
    rows = {value[0]: value for name, value in properties if name == "row"}
    if not rows:
        return
    terminalreporter.write_line(f"\n{'fault':<92} {'trials':>6} {'passed':>6} {'seconds':>7}")
    for row, wanted, passed, seconds in rows.values():
        terminalreporter.write_line(f"{row:<92} {wanted:>6} {passed:>6} {seconds:>7.0f}")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts commands in processes of their own, in milliseconds."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the committed reference numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data (`CEDM_TEST_DATA`); the test is skipped where there is none."""
    folder = os.environ.get("CEDM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set CEDM_TEST_DATA to its folder")
    return Path(folder)
