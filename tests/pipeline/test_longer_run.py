"""A finished training goes on for more images, and the best of its models is kept."""

import json
from pathlib import Path

import pytest

from lightning_modules.diffusion.denoiser import Denoiser

from .conftest import TINY_EDM, Cedm, summary

WORDS = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "dataset.holdout=0.1", "evaluation.every_kimg=0.25"]


def test_a_finished_run_goes_on_as_if_it_had_been_longer_from_the_start(cedm: Cedm, workplace: Path) -> None:
    shorter = "training.duration_kimg=0.5"
    assert cedm("train", *WORDS, shorter, "run_dir=run").code == 0
    before = summary("run")
    result = cedm("train", *WORDS, "run_dir=run")
    assert (result.code, "Resuming from run/snapshots/step-00000008.ckpt" in result.out) == (0, True), result.err
    assert cedm("train", *WORDS, "run_dir=whole").code == 0
    for name in ("denoiser.safetensors", "denoiser-best.safetensors", "held_out.safetensors"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    assert summary("run")["distances"] == summary("whole")["distances"]
    assert summary("run")["held_out"] == summary("whole")["held_out"]
    assert [point[0] for point in summary("run")["held_out"]["kimg_and_losses"]] == [0.256, 0.512, 0.768, 1.024]
    assert json.loads(Path("run/summary-0.5kimg.json").read_text()) == before
    assert "Nothing to do" in cedm("train", *WORDS, "run_dir=run").out
    result = cedm("train", *WORDS, shorter, "run_dir=run")
    assert (result.code, "training.duration_kimg: 1.0 → 0.5" in result.err) == (2, True), result.err
    result = cedm("train", *WORDS, "training.duration_kimg=2", "training.lr=0.5", "run_dir=run")
    assert (result.code, "training.lr" in result.err) == (2, True), result.err


def test_the_model_of_the_least_distance_is_kept(cedm: Cedm, workplace: Path) -> None:
    """With a learning rate that ruins the model in its last quarter; distances in the precision that was asked for."""
    ruinous = ["training.lr=6", "training.lr_rampup_kimg=0.8"]
    assert cedm("train", *WORDS, *ruinous, "evaluation.precision=bf16-mixed", "run_dir=run").code == 0
    trained = summary("run")
    curve = dict(trained["distances"]["kimg_and_distance"])
    best = min(curve, key=lambda kimg: curve[kimg])
    assert best < max(curve), "the test needs a training whose last distance is not its least"
    assert (trained["best"]["kimg"], trained["best"]["fd_pixels"]) == (best, curve[best])
    meta = Denoiser.from_pretrained("run/denoiser-best.safetensors").meta
    assert trained["distances"]["sampler"]["precision"] == "bf16-mixed"
    assert (meta["nimg"], meta["fd_pixels"]) == (1000 * best, curve[best])
    assert cedm("generate", "ckpt=run/denoiser-best.safetensors", "num=1", "steps=1").code == 0
    measured = ["num=80", "metrics=[fd]", "memorisation=false", "sampler.steps=3", "run_dir=again", WORDS[-2]]
    measured.append("sampler.precision=bf16-mixed")
    assert cedm("evaluate", "generated=run/denoiser-best.safetensors", *measured).code == 0
    assert summary("again")["fd_pixels"] == pytest.approx(curve[best], rel=1e-2)  # bf16 rounds by batch
