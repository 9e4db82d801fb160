"""Commands run in this process, as if typed in an empty folder."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from pipeline.settings.door import run_command


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Cedm = Callable[..., Result]

TINY_TEMI = [
    "clustering.num_clusters=5",
    "clustering.max_epochs=2",
    "clustering.warmup_epochs=1",
    "clustering.num_heads=2",
    "map_images=50",
]
TINY_EDM = [
    "network.model_channels=8",
    "network.num_blocks=1",
    "training.duration_kimg=1",
    "training.batch_size=64",
    "training.posthoc_snapshots=0",
    "evaluation.num_images=80",
    "evaluation.every_kimg=1",
    "evaluation.grid_every_kimg=1",
    "evaluation.snapshot_every_kimg=0.5",
    "sampler.steps=3",
]


def summary(folder: Path | str) -> dict[str, Any]:
    """What a command wrote of itself into its run folder."""
    return json.loads((Path(folder) / "summary.json").read_text())


@pytest.fixture
def model(workplace: Path) -> Path:
    """An untrained denoiser of the clusters 2, 5 and 7, whose images nevertheless differ."""
    torch.manual_seed(0)
    network = NetworkSettings(
        "ddpmpp", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0
    )
    denoiser = Denoiser(network, img_resolution=8, img_channels=1, label_dim=3, augment_dim=9)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    denoiser.cluster_frequencies, denoiser.cluster_ids = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([2, 5, 7])
    denoiser.save_pretrained(workplace / "denoiser.safetensors", dataset="digits")
    return workplace / "denoiser.safetensors"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cedm(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cedm]:
    """Runs `cedm COMMAND key=value …` here and tells how it ended."""

    def run(command: str, *overrides: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["cedm", command, *overrides])
        os.environ.pop("CEDM_RUN_FOLDER", None)
        GlobalHydra.instance().clear()
        try:
            code = run_command(command.replace("_", "-"), overrides)
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield run
    os.environ.pop("CEDM_RUN_FOLDER", None)
