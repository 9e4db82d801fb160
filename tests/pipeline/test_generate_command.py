"""`cedm generate` and what it shares with its model, as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from pipeline.evaluation.generate_settings import GenerateSettings
from pipeline.evaluation.generated import GeneratedByModel
from pipeline.evaluation.sampling import Sampler, labels_of
from pipeline.running.run_folder import locked
from pipeline.settings.compose import compose
from pipeline.settings.schemas import GenerateCommandSettings
from storage.files import read_sealed_json, write_sealed_json

from .conftest import Cedm, summary


def test_guidance_needs_a_model_that_saw_images_without_labels(cedm: Cedm, model: Path, workplace: Path) -> None:
    denoiser = Denoiser.from_pretrained(model)
    for dropout, code in ((0.0, 2), (0.1, 0)):
        denoiser.save_pretrained(workplace / "guided.safetensors", label_dropout=dropout)
        result = cedm("generate", "ckpt=guided.safetensors", "num=2", "steps=2", "guidance=9", "run_dir=guided")
        assert result.code == code, result.err
    for name, settings in {"plain": [], "outside": ["guidance=9", "sampler.guidance_interval=[200,300]"]}.items():
        result = cedm("generate", "ckpt=guided.safetensors", "num=2", "steps=2", *settings, f"run_dir={name}")
        assert result.code == 0, result.err
    assert (pixels(workplace / "guided", 1) != pixels(workplace / "plain", 1)).any()
    assert (pixels(workplace / "outside", 1) == pixels(workplace / "plain", 1)).all()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_weights_cast_once_make_the_same_images(architecture: str, precision: str) -> None:
    """As autocast makes, which casts them at each evaluation."""
    torch.manual_seed(0)
    network = NetworkSettings(architecture, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    denoiser = Denoiser(network, img_resolution=8, img_channels=3, label_dim=3, augment_dim=9).eval()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    sampler, asked = (
        Sampler(SamplerSettings(steps=3, precision=precision)),
        (torch.arange(4), torch.tensor([0, 1, 2, 0])),
    )
    before = sampler(denoiser, *asked)
    sampler.cast(denoiser)
    assert torch.equal(sampler(denoiser, *asked), before)
    assert len(before.unique()) > 100
    assert denoiser.model.map_layer0.weight.dtype == (sampler.low_precision or torch.float32)


def test_a_generating_model_is_cast(model: Path) -> None:
    settings = compose("generate", [f"ckpt={model}", "sampler.precision=bf16-mixed"])
    assert isinstance(settings, GenerateCommandSettings)
    made = GeneratedByModel(model, torch.arange(2), settings)
    made.to(torch.device("cpu"))
    assert {weight.dtype for weight in made.denoiser.parameters()} == {torch.float32, torch.bfloat16}


def pixels(folder: Path, seed: int) -> np.ndarray:
    return np.array(Image.open(folder / f"images/00000/img{seed:08d}.png")).astype(int)


def test_an_image_depends_on_its_seed_alone(cedm: Cedm, model: Path, workplace: Path) -> None:
    """Not on the batch, nor on which other seeds were asked for."""
    assert cedm("generate", f"ckpt={model}", "num=12", "batch_size=5", "run_dir=all").code == 0
    assert cedm("generate", f"ckpt={model}", "seeds=[7,2]", "run_dir=some").code == 0
    for seed in (2, 7):
        assert abs(pixels(workplace / "all", seed) - pixels(workplace / "some", seed)).max() <= 1
    everything = dict(json.loads((workplace / "all/images/dataset.json").read_text())["labels"])
    for name, label in json.loads((workplace / "some/images/dataset.json").read_text())["labels"]:
        assert everything[name] == label
    assert set(everything.values()) <= {2, 5, 7}


def test_a_model_says_nothing_of_where_images_go(cedm: Cedm, model: Path, workplace: Path) -> None:
    """Its file may come from anyone."""
    Denoiser.from_pretrained(model).save_pretrained(model, dataset=str(workplace / "elsewhere/../../=evil"))
    assert cedm("generate", f"ckpt={model}", "num=2", "steps=2").code == 0
    assert {path.name for path in workplace.iterdir()} <= {"denoiser.safetensors", "runs", "cache"}
    (folder,) = workplace.glob("runs/*/generate/*")
    assert "=" not in str(folder.relative_to(workplace))


def test_images_that_are_not_finite_are_none(cedm: Cedm, model: Path, workplace: Path) -> None:
    """They would be black, and a distance would be taken on them."""
    denoiser = Denoiser.from_pretrained(model)
    with torch.no_grad():
        next(denoiser.parameters()).fill_(torch.nan)
    denoiser.save_pretrained(model)
    result = cedm("generate", f"ckpt={model}", "seeds=[3,4]", "steps=2", "run_dir=broken")
    assert (result.code, "no image of the seeds 3, 4" in result.err) == (2, True), result.err
    assert not list((workplace / "broken").rglob("*.png"))


def test_generation_goes_on_where_it_stopped(cedm: Cedm, model: Path, workplace: Path) -> None:
    """The images of a ZIP lie in a folder until all are there."""
    assert cedm("generate", f"ckpt={model}", "num=6", "run_dir=z").code == 0
    labels = [label for _, label in json.loads((workplace / "z/images/dataset.json").read_text())["labels"]]
    before, kept = pixels(workplace / "z", 4), workplace / "z/images/00000/img00000003.png"
    time_stamp = kept.stat().st_mtime_ns
    (workplace / "z/images/00000/img00000004.png").unlink()
    assert cedm("generate", f"ckpt={model}", "num=6", "run_dir=z").code == 0
    assert kept.stat().st_mtime_ns == time_stamp
    assert abs(pixels(workplace / "z", 4) - before).max() <= 1

    (workplace / "z/images/00000/img00000004.png").unlink()
    (workplace / "z/summary.json").unlink()
    settings = read_sealed_json(workplace / "z/settings.json")
    assert settings is not None
    settings["settings"]["format"] = "zip"
    write_sealed_json(workplace / "z/settings.json", settings)
    Image.new("L", (8, 8), 77).save(kept)
    for _ in range(2):  # a finished one is left as it is, and is a data set again
        assert cedm("generate", f"ckpt={model}", "num=6", "format=zip", "run_dir=z").code == 0
        assert not (workplace / "z/images").exists()
        source = open_source(DatasetSettings(kind="zip", path=str(workplace / "z/images.zip")))
        assert np.array(source.image(3)).mean() == 77
        assert source.labels is not None
        assert source.labels.tolist() == labels


def test_samplers_are_options(cedm: Cedm, model: Path, workplace: Path) -> None:
    """What is typed for short wins over the option."""
    used = {}
    for name, settings in {
        "euler": ["sampler=euler"],
        "stochastic": ["sampler=stochastic"],
        "calm": ["sampler=stochastic", "churn=0"],
        "heun": [],
    }.items():
        assert cedm("generate", f"ckpt={model}", "num=2", "steps=4", *settings, f"run_dir={name}").code == 0
        used[name] = summary(workplace / name)["sampler"]
    assert used["euler"]["solver"] == "euler"
    assert (used["stochastic"]["churn"], used["calm"]["churn"]) == (40, 0)
    assert used["heun"]["S_tmax"] == "inf"  # which JSON has no number for
    pictures = {name: pixels(workplace / name, 1) for name in used}
    assert (pictures["euler"] != pictures["heun"]).any()
    assert (pictures["stochastic"] != pictures["heun"]).any()
    assert (pictures["calm"] == pictures["heun"]).all()


def test_labels_are_drawn_as_asked(model: Path) -> None:
    """In proportion to the frequencies ½, ¼, ¼, uniformly, or in turn; a seed has the same label in any company."""
    denoiser = Denoiser.from_pretrained(model)
    for clusters, share in (("frequencies", 1 / 2), ("uniform", 1 / 3), ([2, 5], 1 / 2)):
        settings = GenerateSettings(clusters=clusters)
        labels = labels_of(settings, denoiser, model, torch.arange(300), "low_discrepancy")
        assert labels is not None
        assert torch.equal(
            labels[[299, 31]], labels_of(settings, denoiser, model, torch.tensor([299, 31]), "low_discrepancy")
        )
        assert (labels == 0).float().mean() == pytest.approx(share, abs=0.1)


def test_two_processes_cannot_work_in_one_run_folder(cedm: Cedm, model: Path, workplace: Path) -> None:
    with locked(workplace / "run"):
        result = cedm("generate", f"ckpt={model}", "num=1", "run_dir=run")
    assert result.code == 2
    assert "another process" in result.err
    assert cedm("generate", f"ckpt={model}", "num=1", "run_dir=run").code == 0
