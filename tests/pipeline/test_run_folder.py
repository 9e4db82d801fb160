"""Run folders: one process at a time works in one."""

from pathlib import Path

import pytest

from pipeline.running.run_folder import locked

from .conftest import TINY_EDM, Cedm


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_folder_that_another_process_works_in_is_refused(cedm: Cedm, overwrite: str) -> None:
    settings = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "run_dir=run", f"overwrite={overwrite}"]
    with locked(Path("run")):
        result = cedm("train", *settings)
        assert result.code == 2
        assert "run: another process works on this run" in result.err
        assert [path.name for path in Path("run").iterdir()] == [".lock"]
