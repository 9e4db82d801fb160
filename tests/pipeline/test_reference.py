"""Statistics of the data set's features: found again where nothing that decides them has changed, and only there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.evaluation.reference import cached

SETTINGS = {
    "source": "0123456789abcdef",
    "dataset.resolution": 32,
    "dataset.channels": 3,
    "dataset.path": "/data",
    "extractor": "weights 1",
    "evaluation.batch_size": 128,
    "training.memory_gb": 8,
}


def name_of(**changed: Any) -> str:
    settings = SETTINGS | changed
    source, extractor = settings.pop("source"), settings.pop("extractor")
    cfg = OmegaConf.create({"cache_dir": "cache"})
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    found = cached(
        cfg,
        "statistics",
        SimpleNamespace(name="mine", fingerprint=source),  # type: ignore[arg-type]
        SimpleNamespace(name="dino", identity={"weights": extractor}),  # type: ignore[arg-type]
    )
    assert found.parent == Path("cache/statistics")
    return found.name


@pytest.mark.parametrize(
    "changed",
    [{"source": "f" * 16}, {"dataset.resolution": 64}, {"dataset.channels": 1}, {"extractor": "weights 2"}],
)
def test_what_decides_the_features_decides_the_name(changed: dict[str, Any]) -> None:
    assert name_of(**changed) != name_of()


def test_place_and_speed_do_not() -> None:
    assert name_of(**{"dataset.path": "/else", "evaluation.batch_size": 8, "training.memory_gb": 1}) == name_of()
