"""Run folders: one process at a time works in one, and on one run."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.running.run_folder import locked, refuse_other_settings
from storage.errors import UserError
from storage.files import write_sealed_json

from .conftest import TINY_EDM, Cedm


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_folder_that_another_process_works_in_is_refused(cedm: Cedm, overwrite: str) -> None:
    settings = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "run_dir=run", f"overwrite={overwrite}"]
    with locked(Path("run")):
        result = cedm("train", *settings)
        assert result.code == 2
        assert "run: another process works on this run" in result.err
        assert [path.name for path in Path("run").iterdir()] == [".lock"]


def test_a_run_of_other_settings_is_refused_with_the_differences(tmp_path: Path) -> None:
    def run(labels: str) -> dict[str, Any]:
        return {"settings": {"sampler": {"steps": 18, "labels": labels}, "seed": 0}, "inputs": {"dataset": "0f"}}

    write_sealed_json(tmp_path / "settings.json", run("independent"))
    refuse_other_settings(tmp_path, run("independent"))
    with pytest.raises(UserError, match=r"other settings:\n  sampler.labels: independent → low_discrepancy\nSet"):
        refuse_other_settings(tmp_path, run("low_discrepancy"))
