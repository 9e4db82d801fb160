"""`cedm average`, as a user types it after a training."""

import shutil
from pathlib import Path

import torch

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.power_average import coefficients

from .conftest import TINY_EDM, Cedm, summary

WORDS = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "run_dir=run"]


def test_averages_of_any_length_and_the_best_of_them(cedm: Cedm, workplace: Path) -> None:
    assert cedm("train", *WORDS, "evaluation.backbone=null", "training.posthoc_snapshots=4").code == 0
    names = sorted(path.name for path in Path("run/averages").iterdir())
    assert names == [
        f"width{width}-{nimg:08d}.safetensors" for width in ("0.05", "0.1") for nimg in (256, 512, 768, 1024)
    ]

    assert cedm("average", "run=run", "length=0.07", "run_dir=one").code == 0
    stored = [dict(Denoiser.from_pretrained(Path("run/averages") / name).named_parameters()) for name in names]
    nimg, widths = [256, 512, 768, 1024] * 2, [0.05] * 4 + [0.1] * 4
    factors = coefficients(nimg, widths, 1024, 0.07).tolist()
    made, base = (
        Denoiser.from_pretrained("one/denoiser.safetensors"),
        Denoiser.from_pretrained("run/denoiser.safetensors"),
    )
    for name, weight in made.named_parameters():
        expected = sum(factor * one[name].double() for factor, one in zip(factors, stored, strict=True))
        torch.testing.assert_close(weight, torch.as_tensor(expected).float())
    assert any(
        not torch.equal(weight, other) for weight, other in zip(made.parameters(), base.parameters(), strict=True)
    )
    assert (made.meta["length"], made.meta["nimg"]) == (0.07, 1024)

    result = cedm("average", "run=run", "length=[0.03,0.1,0.2]", "num=60", "steps=2", "run_dir=several", WORDS[-2])
    assert result.code == 0, result.err
    found = summary("several")
    distances = dict(found["lengths"])
    assert found["length"] == min(distances, key=lambda length: distances[length])
    best = Path(f"several/denoiser-length{found['length']:g}.safetensors")
    assert Path("several/denoiser.safetensors").read_bytes() == best.read_bytes()
    assert Path("several/lengths.png").is_file()
    protocol = found["protocol"]
    assert (protocol["num_reference"], protocol["extractor"]["kind"]) == (100, "pixels")
    assert [one["seeds"] for one in protocol["generated"]] == ["0 to 59"] * 3
    assert {one["sampler"]["labels"] for one in protocol["generated"]} == {"low_discrepancy"}
    measured = ["num=60", "steps=2", "metrics=[fd]", "memorisation=false", "run_dir=again", WORDS[-2]]
    assert cedm("evaluate", "generated=several", *measured).code == 0
    assert abs(summary("again")["fd_pixels"] / distances[found["length"]] - 1) < 1e-6

    assert "trained on other images" not in result.out
    others = cedm("average", "run=run", "length=[0.03,0.1]", "num=60", "steps=2", "run_dir=others")
    assert (others.code, "trained on other images of 'digits' than these 1,797" in others.out) == (0, True), others.out
    size = cedm("average", "run=run", "dataset.resolution=16")
    assert (size.code, "8×8 pixels" in size.err) == (2, True), size.err

    words = ["run=run", "length=[0.03,0.1]", "num=60", "steps=2", "guidance=3", WORDS[-2]]
    assert cedm("average", *words, "sampler.guide=auto", "run_dir=guided").code == 0
    assert summary("guided")["lengths"] != found["lengths"][:2]
    shutil.copyfile("run/guide.safetensors", "early.safetensors")
    assert cedm("average", *words, "sampler.guide=early.safetensors", "run_dir=by_file").code == 0
    assert summary("by_file")["lengths"] == summary("guided")["lengths"]
    shutil.copyfile("run/denoiser.safetensors", "early.safetensors")
    other = cedm("average", *words, "sampler.guide=early.safetensors", "run_dir=by_file")
    assert (other.code, "inputs.guide" in other.err) == (2, True), other.err


def test_a_run_without_stored_averages_is_named(cedm: Cedm, model: Path, workplace: Path) -> None:
    result = cedm("average", f"run={model}")
    assert (result.code, "training.posthoc_snapshots" in result.err) == (2, True), result.err
    for wrong in ("0", "0.3", "[0.1,0.1]", "[]", "much"):
        result = cedm("average", f"run={model}", f"length={wrong}")
        assert (result.code, "below 0.2887" in result.err) == (2, True), result.err
