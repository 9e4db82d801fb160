"""The settings' classes agree with the YAML files and the tables of what they choose from, and refuse what can't be."""

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_modules.clustering.bound_settings import BoundSettings
from lightning_modules.clustering.clustering_settings import METHODS, ClusteringSettings, TEMISettings
from lightning_modules.clustering.objectives import OBJECTIVES
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.networks import ARCHITECTURES
from lightning_modules.diffusion.sampler import SOLVERS
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.optimizers import OPTIMIZERS
from lightning_modules.training_settings import TrainingSettings
from storage.errors import UserError
from storage.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
DEFAULTS: dict[str, type[Settings]] = {
    "network/ddpmpp": NetworkSettings,
    "optimizer/adam": OptimizerSettings,
    "sampler/heun": SamplerSettings,
    "training/edm": TrainingSettings,
    **{f"clustering/{name}": settings for name, settings in METHODS.items()},
}


def loaded(option: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{option}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize("option", DEFAULTS)
def test_defaults_are_those_of_the_yaml_file(option: str) -> None:
    assert loaded(option) == asdict(DEFAULTS[option]())


def test_the_bound_too() -> None:
    assert loaded("bound")["bound"] == asdict(BoundSettings())


@pytest.mark.parametrize("path", sorted((CONFIGS / "network").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_network_is_accepted(path: Path) -> None:
    assert set(loaded(f"network/{path.stem}")) == set(asdict(NetworkSettings(**loaded(f"network/{path.stem}"))))


@pytest.mark.parametrize(
    ("settings", "name", "table"),
    [
        (ClusteringSettings, "method", METHODS),
        (TEMISettings, "objective", OBJECTIVES),
        (NetworkSettings, "architecture", ARCHITECTURES),
        (SamplerSettings, "solver", SOLVERS),
        (OptimizerSettings, "name", OPTIMIZERS),
    ],
)
def test_choices_are_what_the_table_has(settings: type[Settings], name: str, table: dict[str, Any]) -> None:
    assert set(settings.__dataclass_fields__[name].metadata["about"].choices) == set(table)


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (TrainingSettings, {"ema_halflife_kimg": 50.0, "extra_ema_halflife_kimg": [50.0]}, "differ"),
        (TrainingSettings, {"extra_ema_halflife_kimg": [50.0, 50.0]}, "differ"),
        (TrainingSettings, {"extra_ema_halflife_kimg": [-1.0]}, "above 0"),
        (TrainingSettings, {"label_dropout": 3.0}, "0 up to 1"),
        (TrainingSettings, {"max_batch_per_device": 0}, "from 1"),
        (OptimizerSettings, {"betas": [0.9]}, "two numbers"),
        (OptimizerSettings, {"betas": [0.9, 1.0]}, "below 1"),
        (NetworkSettings, {"architecture": "ddpm++"}, "ddpmpp"),
        (NetworkSettings, {"channel_mult": []}, "multiplier"),
        (SamplerSettings, {"sigma_min": 90.0}, "finite number above"),
        (SamplerSettings, {"sigma_max": math.inf}, "finite number"),
        (SamplerSettings, {"guidance_interval": [3.0, 0.2]}, "highest"),
        (SamplerSettings, {"steps": 0}, "from 1"),
        (SamplerSettings, {"churn": -2.0}, "from 0"),
        (SamplerSettings, {"solver": "rk4"}, "heun, euler"),
        (TEMISettings, {"num_clusters": 1}, "from 2"),
        (TEMISettings, {"teacher_momentum": 1.0}, "below 1"),
        (TEMISettings, {"objective": "tem"}, "temi, wmi"),
        (TEMISettings, {"lr": 0.0}, "above 0"),
        (TEMISettings, {"weight_decay": -1.0}, "from 0"),
        (TEMISettings, {"frozen_last_layer_epochs": -1}, "from 0"),
        (BoundSettings, {"grid": []}, "2 up"),
        (BoundSettings, {"threshold": 1.5}, "up to 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**values)


@pytest.mark.parametrize(("resolution", "steps"), [(32, 18), (63, 18), (64, 40)])
def test_the_published_number_of_steps(resolution: int, steps: int) -> None:
    assert SamplerSettings().num_steps(resolution) == steps
    assert SamplerSettings(steps=7).num_steps(resolution) == 7


def test_settings_need_no_torch() -> None:
    modules = ", ".join(sorted({settings.__module__ for settings in (*DEFAULTS.values(), BoundSettings)}))
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
