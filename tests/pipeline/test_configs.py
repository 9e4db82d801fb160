"""Every option composes, and the published settings are what the papers say."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig
from pipeline.settings.command import CONFIGS
from pipeline.settings.inputs import plain

from lightning_modules.diffusion.denoiser import build_denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings

OPTIONS = [
    f"{group.name}={option.stem}"
    for group in sorted(CONFIGS.iterdir())
    if group.is_dir() and group.name != "study"  # a study is no stage: it hands the settings on
    for option in sorted(group.glob("*.yaml"))
]


def compose(*overrides: str, command: str = "train") -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return hydra.compose(command, list(overrides))


@pytest.mark.parametrize("command", ["embed", "cluster", "train", "generate", "evaluate"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_with_every_command(option: str, command: str) -> None:
    """All stages of a pipeline understand the same settings, so that ARGS can be handed to each."""
    cfg = compose(option, "dataset.path=somewhere", "training.lr=1e-4", command=command)
    group, name = option.split("=")
    assert (CONFIGS / group / f"{name}.yaml").exists()
    assert cfg.training.lr == 1e-4


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_published_settings_of_cifar(dataset: str) -> None:
    cfg = compose(f"dataset={dataset}")
    assert cfg.backbone.name == "dino_vitb16"
    assert cfg.clustering.num_clusters == {"cifar10": 100, "cifar100": 200}[dataset]
    clustering: dict[str, Any] = plain(cfg.clustering)
    assert clustering | {"beta": 0.6, "num_neighbours": 50, "batch_size": 512, "max_epochs": 200} == clustering
    assert clustering | {"num_heads": 50, "lr": 1e-4, "warmup_epochs": 20, "teacher_momentum": 0.996} == clustering
    training: dict[str, Any] = plain(cfg.training)
    assert training | {"batch_size": 1024, "duration_kimg": 200_000, "lr": 1e-3, "lr_rampup_kimg": 10_000} == training
    assert training | {"augment_probability": 0.12, "ema_halflife_kimg": 500, "ema_rampup_ratio": 0.05} == training
    network = NetworkSettings(**plain(cfg.network))
    denoiser = build_denoiser(network, cfg.dataset.resolution, cfg.dataset.channels, augment_dim=9)
    assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1) == 55.7
    assert cfg.network.dropout == 0.13


@pytest.mark.parametrize("dataset", ["folder", "zip", "npy", "hf", "ffhq64", "afhqv2"])
def test_published_settings_of_64_pixels(dataset: str) -> None:
    cfg = compose(f"dataset={dataset}", "dataset.path=somewhere")
    training: dict[str, Any] = plain(cfg.training)
    assert training | {"batch_size": 512, "lr": 2e-4, "augment_probability": 0.15} == training
    network = NetworkSettings(**plain(cfg.network))
    denoiser = build_denoiser(network, cfg.dataset.resolution, cfg.dataset.channels, augment_dim=9)
    assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1) == 61.8
    assert cfg.network.dropout == (0.25 if dataset == "afhqv2" else 0.05)
    assert (cfg.clustering.num_clusters, cfg.clustering.num_neighbours) == (100 if dataset == "afhqv2" else 400, 50)
    assert cfg.backbone.name == "dino_vitb16"


def test_clustering_settings_of_imagenet() -> None:
    cfg = compose("dataset=folder", "dataset.path=somewhere", "clustering=temi_imagenet")
    clustering: dict[str, Any] = plain(cfg.clustering)
    assert (
        clustering | {"num_neighbours": 25, "num_clusters": 1000, "batch_size": 1024, "max_epochs": 100} == clustering
    )
    assert (clustering["method"], clustering["beta"], clustering["num_heads"]) == ("temi", 0.6, 50)


def test_the_command_line_wins_over_a_data_set() -> None:
    cfg = compose("dataset=cifar100", "backbone=pixels", "clustering=kmeans", "clustering.num_clusters=7")
    assert (cfg.backbone.name, cfg.clustering.method, cfg.clustering.num_clusters) == ("pixels", "kmeans", 7)


def test_the_readme_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (CONFIGS.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    network = {**plain(compose("network=ddpmpp_small").network), "model_channels": 8}
    path = tmp_path / "denoiser.safetensors"
    build_denoiser(NetworkSettings(**network), 8, 1, label_dim=3, augment_dim=9).save_pretrained(path)
    example = example.replace("runs/digits/train-temi-40/TIME/denoiser.safetensors", str(path))
    assert str(path) in example
    exec(example, {})
    assert "[3, 1, 8, 8]) torch.uint8" in capsys.readouterr().out
