"""Hydra's sweeps and quoted settings with two processes: all ranks work in one folder."""

import json
from pathlib import Path

import pytest

from .conftest import EDM, Trials
from .jobs import real_command

pytestmark = pytest.mark.faults


def test_a_sweep_with_two_processes(trials: Trials, tmp_path: Path) -> None:
    for rng in trials("-m and quoted settings, 2 processes each: all ranks share one folder", 2):
        folder = tmp_path / f"{rng.random()}"
        job = real_command("train", "-m", *EDM, "seed=1,2", 'run_dir="my runs/${seed}, {a}"', folder=folder, ranks=2)
        assert job.wait(110) == 0, job.words()
        runs = sorted((folder / "my runs").iterdir())
        assert [run.name for run in runs] == ["1, {a}", "2, {a}"]
        # No rank has chosen a folder of its own: below runs/ lies the sweep's own record, once, and nothing else.
        assert [entry.name for entry in (folder / "runs").iterdir()] == ["sweeps"]
        assert len(list((folder / "runs").rglob("multirun.yaml"))) == 1
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        assert summaries[0]["loss"] != summaries[1]["loss"]
        assert all((run / "denoiser.safetensors").exists() for run in runs)
