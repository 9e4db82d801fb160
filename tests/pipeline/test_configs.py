"""Every option fits its typed settings, and the published settings are what the papers say."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.settings.compose import CONFIGS, compose
from pipeline.settings.schemas import SharedSettings


def composed(*words: str) -> SharedSettings:
    return compose("train", [*words, "dataset.path=somewhere"] if "dataset=digits" not in words else words)


def holds(settings: Any, **values: Any) -> bool:
    return asdict(settings) | values == asdict(settings)


def parameters(settings: SharedSettings) -> float:
    denoiser = Denoiser(settings.network, settings.dataset.resolution, settings.dataset.channels, augment_dim=9)
    return round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1)


def test_every_option_of_every_group_fits_its_settings():
    for path in CONFIGS.glob("*/*.yaml"):
        if path.parent.name not in ("study", "experiment"):
            group = f"{path.parent.name}={path.stem}"
            needs_path = path.parent.name == "dataset" and path.stem not in ("digits", "emoji")
            words = [group, *["dataset.path=x"] * needs_path, *["embeddings=x"] * (path.stem == "embeddings")]
            assert compose("train", words).seed == 0, group


@pytest.mark.parametrize(("dataset", "clusters"), [("cifar10", 100), ("cifar100", 200)])
def test_published_settings_of_cifar(dataset: str, clusters: int):
    settings = composed(f"dataset={dataset}")
    assert settings.backbone.name == "dino_vitb16"
    assert holds(
        settings.clustering, num_clusters=clusters, beta=0.6, num_neighbours=50, batch_size=1024, max_epochs=100
    )
    assert holds(
        settings.clustering, standardise=False, num_heads=16, lr=1e-4, warmup_epochs=20, teacher_momentum=0.996
    )
    assert holds(settings.training, batch_size=1024, duration_kimg=200_000, lr=1e-3, lr_rampup_kimg=10_000)
    assert holds(settings.training, augment_probability=0.12, ema_halflife_kimg=500, ema_rampup_ratio=0.05)
    assert holds(settings.optimizer, betas=[0.9, 0.999], eps=1e-8)
    assert (parameters(settings), settings.network.dropout) == (55.7, 0.13)
    assert settings.sampler.labels == "independent"


@pytest.mark.parametrize("dataset", ["folder", "zip", "npy", "hdf5", "hf", "ffhq64", "afhqv2"])
def test_published_settings_of_64_pixels(dataset: str):
    settings = composed(f"dataset={dataset}")
    animals = dataset == "afhqv2"
    assert holds(settings.training, batch_size=512, lr=2e-4, augment_probability=0.15)
    assert (parameters(settings), settings.network.dropout) == (61.8, 0.25 if animals else 0.05)
    assert holds(settings.clustering, num_clusters=100 if animals else 400, num_neighbours=50)
    assert settings.backbone.name == "dino_vitb16"
    assert settings.sampler.labels == ("independent" if dataset in ("ffhq64", "afhqv2") else "low_discrepancy")


def test_published_settings_of_imagenet():
    settings = composed("dataset=imagenet", "dataset.path=x", "sampler=stochastic")
    assert holds(settings.training, batch_size=4096, duration_kimg=2_500_000, lr=1e-4, augment_probability=0.0)
    assert holds(settings.training, ema_halflife_kimg=50_000, lr_rampup_kimg=10_000)
    assert holds(settings.network, model_channels=192, channel_mult=[1, 2, 3, 4], num_blocks=3, dropout=0.1)
    assert holds(settings.network, architecture="adm", attn_resolutions=[32, 16, 8])
    assert holds(settings.sampler, labels="independent", churn=40, S_tmin=0.05, S_tmax=50, S_noise=1.003)
    assert holds(settings.clustering, num_neighbours=25, num_clusters=1000, batch_size=128, max_epochs=100)
    assert holds(settings.clustering, method="temi", beta=0.6, num_heads=16, standardise=True)


def test_a_zip_of_cifar_takes_the_published_settings_as_its_page_says():
    page = (CONFIGS.parent / "docs/cifar10-on-a-cpu.md").read_text()
    words = next(code for code in page.split("`") if code.startswith("network=ddpmpp")).split()
    found, published = composed("dataset=zip", *words), composed("dataset=cifar10")
    assert (found.training, found.network, found.sampler) == (published.training, published.network, published.sampler)


def test_the_readme_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (CONFIGS.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    network = replace(compose("train", ["network=ddpmpp_small"]).network, model_channels=8)
    path = tmp_path / "denoiser.safetensors"
    Denoiser(network, 8, 1, label_dim=3, augment_dim=9).save_pretrained(path)
    example = example.replace("runs/digits/train-temi-40/TIME", str(path))
    assert str(path) in example
    exec(example, {})
    assert "[3, 1, 8, 8]) torch.uint8" in capsys.readouterr().out
