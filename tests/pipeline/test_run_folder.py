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


def test_a_run_from_before_a_setting_was_there_has_its_old_meaning(tmp_path: Path) -> None:
    before = {"sampler": {"steps": 18}, "dataset": {"name": "digits"}, "seed": 0}
    write_sealed_json(tmp_path / "settings.json", {"settings": before, "inputs": {}})

    def settings(labels: str) -> dict[str, Any]:
        return {
            "settings": {
                "sampler": {"steps": 18, "labels": labels, "guide": "label", "window": None},
                "dataset": {"name": "digits", "fit": "crop", "holdout": 0.0},
                "preset": {"name": "published", "settings": {}},
                "seed": 0,
            },
            "inputs": {},
        }

    refuse_other_settings(tmp_path, settings("independent"))
    with pytest.raises(UserError, match=r"sampler.labels: independent → low_discrepancy"):
        refuse_other_settings(tmp_path, settings("low_discrepancy"))
