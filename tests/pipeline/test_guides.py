"""What `sampler.guide` names, from the training that keeps a guide to the images that it guides."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.sampler import latents, sample
from storage.digests import file_digest

from .conftest import TINY_EDM, Cedm, summary

STEPS = 3


def image(run: Path) -> np.ndarray:
    """What a run of `cedm generate` made of seed 1."""
    return np.array(Image.open(run / "images/00000/img00000001.png")).astype(int)


def test_a_training_keeps_an_early_model_that_guides_the_late_one(cedm: Cedm, workplace: Path) -> None:
    words = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "evaluation.backbone=null", "run_dir=run"]
    assert cedm("train", *words).code == 0
    model, guide = (Denoiser.from_pretrained(f"run/{name}.safetensors") for name in ("denoiser", "guide"))
    assert (model.meta["nimg"], guide.meta["nimg"]) == (16 * 64, 2 * 64)  # of 1 kimg, an eighth: the second step

    asked = ["sampler.guide=auto", f"steps={STEPS}", "num=2"]
    assert cedm("generate", "ckpt=run", *asked, "guidance=2.5", "run_dir=guided").code == 0
    assert cedm("generate", "ckpt=run", *asked[1:], "run_dir=plain").code == 0
    unguided = cedm("generate", "ckpt=run", *asked)
    assert (unguided.code, "no guidance" in unguided.err) == (2, True), unguided.err

    def guided(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return 2.5 * model(x, sigma) - 1.5 * guide(x, sigma)

    for denoiser, run in ((guided, "guided"), (model, "plain")):
        made = sample(denoiser, latents(torch.tensor([1]), (1, 8, 8)), num_steps=STEPS)
        expected = model.encoder.decode(made)[0, 0].numpy().astype(int)
        assert abs(image(workplace / run) - expected).max() <= 1
    assert abs(image(workplace / "guided") - image(workplace / "plain")).max() > 1
    assert summary("guided")["inputs"]["guide"] == file_digest(Path("run/guide.safetensors"))
    assert "guide" not in summary("plain")["inputs"]

    measured = ["num=50", "metrics=[fd]", "memorisation=false", *asked[:2], "guidance=2.5", "run_dir=measured"]
    assert cedm("evaluate", "generated=run", *measured).code == 0
    (generated,) = summary("measured")["scores"]["fd_pixels"]["protocol"]["generated"]
    assert (generated["sampler"]["guidance"], generated["guide"]["path"]) == (2.5, "run/guide.safetensors")


def test_no_guide_is_kept_where_none_is_wanted(cedm: Cedm, workplace: Path) -> None:
    words = [*TINY_EDM, "conditioning=none", "dataset.max_images=100", "evaluation.backbone=null", "run_dir=run"]
    assert cedm("train", *words, "training.keep_guide=false").code == 0
    assert not Path("run/guide.safetensors").exists()
    result = cedm("generate", "ckpt=run", "guidance=2", "sampler.guide=auto")
    assert (result.code, "there is no run/guide.safetensors" in result.err) == (2, True)


def test_windows_guide_a_model_without_labels_or_training(cedm: Cedm, model: Path, workplace: Path) -> None:
    plain = [f"ckpt={model}", "num=2", f"steps={STEPS}"]
    assert cedm("generate", *plain, "run_dir=plain").code == 0
    words = [*plain, "sampler.guide=sliding_window"]
    for name, more in {"guided": ["guidance=3"], "larger": ["guidance=3", "sampler.window=7"]}.items():
        assert cedm("generate", *words, *more, f"run_dir={name}").code == 0
    assert abs(image(workplace / "guided") - image(workplace / "plain")).max() > 1
    assert abs(image(workplace / "guided") - image(workplace / "larger")).max() > 1
    result = cedm("generate", *words, "guidance=3", "sampler.window=8", "run_dir=whole")
    assert (result.code, "sampler.window=8" in result.err, Path("whole").exists()) == (2, True, False)


@pytest.fixture
def head(workplace: Path) -> str:
    """An untrained clustering head of 3 clusters, which reads pixels."""
    torch.manual_seed(0)
    heads = ClusteringHeads(1, 64, 3, hidden_dim=16, bottleneck_dim=8)
    for parameter in (*heads.parameters(), heads.hidden_bias, heads.bottleneck_bias):
        torch.nn.init.normal_(parameter, std=0.3)
    identity = {"kind": "pixels", "resolution": 8, "channels": 1}
    ClusteringHead(heads, torch.zeros(64), torch.ones(64), identity).save_pretrained("head.safetensors")
    return "head=head.safetensors"


def test_the_clustering_head_guides_to_the_clusters_asked_for(cedm: Cedm, head: str, workplace: Path) -> None:
    """A fresh network is the ideal denoiser of normal pixels, whatever the cluster."""
    network = NetworkSettings("ddpmpp", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    denoiser = Denoiser(network, img_resolution=8, img_channels=1, label_dim=3)
    denoiser.cluster_frequencies, denoiser.cluster_ids = torch.full((3,), 1 / 3), torch.arange(3)
    denoiser.save_pretrained("denoiser.safetensors", dataset="digits")
    words = ["num=60", f"steps={STEPS}", head]
    for strength in (1, 2, 4):
        guide = [f"guidance={strength}", "sampler.guide=head"][: 2 if strength > 1 else 0]
        result = cedm("generate", "ckpt=denoiser.safetensors", *words, *guide, f"run_dir=run{strength}")
        assert result.code == 0, result.err
    agreements = [summary(f"run{strength}")["confidence"]["agreement"] for strength in (1, 2, 4)]
    assert agreements[0] + 0.1 < agreements[1] < agreements[2]
    assert summary("run2")["inputs"]["guide"] == file_digest(Path("head.safetensors"))
    assert summary("run2")["sampler"]["guide"] == "head"

    measured = ["generated=denoiser.safetensors", *words, "metrics=[fd]", "memorisation=false", "run_dir=measured"]
    assert cedm("evaluate", *measured, "sampler.guide=head", "guidance=2").code == 0
    (generated,) = summary("measured")["scores"]["fd_pixels"]["protocol"]["generated"]
    assert generated["guide"]["path"] == "head.safetensors"


def test_a_head_that_cannot_guide_is_refused(cedm: Cedm, model: Path, head: str, workplace: Path) -> None:
    asked = ["num=2", "guidance=2", "sampler.guide=head"]
    Denoiser(Denoiser.from_pretrained(model).settings, 8, 1).save_pretrained("none.safetensors")
    for words, expected in {
        (f"ckpt={model}", head): "knows 3 clusters, the model 8",  # with ids up to 7
        (f"ckpt={model}",): "set head=",
        ("ckpt=none.safetensors", head): "without clusters",
    }.items():
        result = cedm("generate", *words, *asked)
        assert (result.code, expected in result.err) == (2, True), result.err


@pytest.mark.parametrize(("change", "word"), [("clusters", "other clusters"), ("size", "16×16 pixels")])
def test_a_guide_of_something_else_is_refused(cedm: Cedm, model: Path, workplace: Path, change: str, word: str) -> None:
    guide = Denoiser.from_pretrained(model)
    if change == "clusters":
        guide.cluster_ids = torch.tensor([2, 5, 8])
    else:
        guide = Denoiser(guide.settings, img_resolution=16, img_channels=1)
    guide.save_pretrained("other.safetensors")
    result = cedm("generate", f"ckpt={model}", "guidance=2", "sampler.guide=other.safetensors")
    assert (result.code, word in result.err) == (2, True), result.err
