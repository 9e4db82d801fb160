"""Statistics of the data set's features: found again where nothing that decides them has changed, and only there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.images.dataset_settings import DatasetSettings
from pipeline.evaluation.reference import Extractors


def name_of(source: str = "0123456789abcdef", weights: str = "weights 1", **dataset: Any) -> str:
    settings = DatasetSettings(**{"kind": "folder", "path": "/data", "resolution": 32, "channels": 3} | dataset)
    found = Extractors(BackboneSettings(), {}, settings, "cache").cached(
        "statistics",
        SimpleNamespace(name="mine", fingerprint=source),  # type: ignore[arg-type]
        SimpleNamespace(name="dino", identity={"weights": weights}),  # type: ignore[arg-type]
    )
    assert found.parent == Path("cache/statistics")
    return found.name


def test_what_decides_the_features_decides_the_name() -> None:
    changed = name_of(source="f" * 16), name_of(resolution=64), name_of(channels=1), name_of(weights="weights 2")
    assert len({name_of(), *changed}) == 5
    assert name_of(path="/else") == name_of()
