"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)  # tests run side by side: threads of several processes would only wait for one another


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
