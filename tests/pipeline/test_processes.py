"""Several processes, started as users start them, against one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from pipeline.running.processes import tasks_without_srun

from ..faults.jobs import Forks
from .conftest import TINY_EDM, TINY_TEMI, Cedm

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def run(command: list[str], folder: Path) -> str:
    """Run a command in `folder`; its output, if it ended well within two minutes."""
    environment = {key: value for key, value in os.environ.items() if key != "CEDM_RUN_FOLDER"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same_model(a: Path, b: Path) -> None:
    one, two = (Denoiser.from_pretrained(folder / "denoiser.safetensors") for folder in (a, b))
    for (name, x), (_, y) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_train_the_model_that_one_trains(cedm: Cedm, workplace: Path) -> None:
    """Through Lightning's own launcher, with the distance measured on both ranks; all ranks share one run folder."""
    settings = ["conditioning=none", *TINY_EDM, "training.lr_rampup_kimg=10"]
    assert cedm("train", *settings, "run_dir=one").code == 0
    out = run([sys.executable, "-m", "pipeline", "train", *settings, *TWO, "trainer.strategy=ddp"], workplace)
    (two,) = workplace.glob("runs/digits/train-none/*")
    assert "64 = 2 × cpu × 32 images × 1 accumulated" in out
    assert_same_model(workplace / "one", two)
    assert out.count("fd_pixels") == 1
    (grid_of_one,), (grid_of_two,) = ((folder / "grids").glob("*.png") for folder in (workplace / "one", two))
    difference = np.array(Image.open(grid_of_one)).astype(int) - np.array(Image.open(grid_of_two))
    assert np.abs(difference).mean() < 1  # each image in its place, whichever rank made it


def test_two_processes_generate_what_one_generates(cedm: Cedm, workplace: Path, forks: Forks) -> None:
    """Each image is made once, whoever makes it."""
    network = {"architecture": "ddpmpp", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "dropout": 0.0}
    torch.manual_seed(0)
    denoiser = Denoiser(NetworkSettings(**network, attn_resolutions=[]), 8, 1, label_dim=3)
    denoiser.cluster_frequencies, denoiser.cluster_ids = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1, 4, 6])
    denoiser.save_pretrained(workplace / "denoiser.safetensors")
    settings = ["ckpt=denoiser.safetensors", "num=7", "steps=2", "batch_size=2"]
    assert cedm("generate", *settings, "run_dir=one").code == 0
    forks.start("generate", *settings, "run_dir=two", folder=workplace, ranks=2).succeed()
    one, two = (sorted(Path(folder, "images").glob("*/*.png")) for folder in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 7
    for a, b in zip(one, two, strict=True):
        assert abs(np.array(Image.open(a)).astype(int) - np.array(Image.open(b))).max() <= 1
    assert Path("one/images/dataset.json").read_text() == Path("two/images/dataset.json").read_text()


@pytest.mark.slow
def test_torchrun_trains_the_same_model(cedm: Cedm, workplace: Path) -> None:
    settings = ["conditioning=none", *TINY_EDM, "training.lr_rampup_kimg=10"]
    assert cedm("train", *settings, "run_dir=one").code == 0
    run([*TORCHRUN, "-m", "pipeline", "train", *settings, "trainer.accelerator=cpu"], workplace)  # devices: torchrun's
    (two,) = workplace.glob("runs/digits/train-none/*")  # chosen by rank 0, the same on both ranks
    assert_same_model(workplace / "one", two)


@pytest.mark.slow
def test_two_processes_end_together_when_the_time_is_up(workplace: Path, forks: Forks) -> None:
    """And go on to the bytes of a run that nothing has stopped."""
    train = ["train", "conditioning=none", *TINY_EDM]
    job = forks.start(*train, "trainer.max_time={seconds:0}", "run_dir=stopped", folder=workplace, ranks=2)
    job.succeed()
    assert job.words().count("Not finished: trainer.max_time={'seconds': 0} is up at step 1 of 16.") == 1
    other = "trainer.strategy=ddp_find_unused_parameters_true"
    for name in ("stopped", "straight"):
        forks.start(*train, other, f"run_dir={name}", folder=workplace, ranks=2).succeed()
    assert Path("stopped/denoiser.safetensors").read_bytes() == Path("straight/denoiser.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_cluster_like_one(cedm: Cedm, workplace: Path, forks: Forks) -> None:
    assert cedm("embed").code == 0
    settings = [*TINY_TEMI, "clustering.lr=1e-4"]
    assert cedm("cluster", *settings, "run_dir=one").code == 0
    forks.start("cluster", *settings, "run_dir=two", "overwrite=true", folder=workplace, ranks=2).succeed()
    one, two = (PseudoLabels.load(Path(name) / "pseudo_labels.safetensors") for name in ("one", "two"))
    assert (one.cluster_ids == two.cluster_ids).float().mean() > 0.99


def test_a_slurm_job_of_several_tasks_needs_srun(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the other tasks; what needs one process, and an interactive job, just runs."""
    for key, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    assert cedm("embed").code == 0
    for words in (["train", "conditioning=none", *TINY_EDM], ["cluster", *TINY_TEMI]):
        refused = cedm(*words)
        assert (refused.code, "Put srun in front" in refused.err) == (2, True), refused.err
    assert cedm("cluster", "clustering=random").code == 0
    assert tasks_without_srun() == 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert tasks_without_srun() == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert cedm("cluster", *TINY_TEMI, "trainer.accelerator=cpu").code == 0
