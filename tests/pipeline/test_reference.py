"""Statistics of the data set's features: found again where nothing that decides them has changed, and only there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.images.dataset_settings import DatasetSettings
from metrics.frechet import KIND as STATISTICS
from pipeline.evaluation.reference import Extractors
from storage.artifacts import write_artifact


def name_of(source: str = "0123456789abcdef", weights: str = "weights 1", **dataset: Any) -> str:
    settings = DatasetSettings(**{"kind": "folder", "path": "/data", "resolution": 32, "channels": 3} | dataset)
    found = Extractors(BackboneSettings(), {}, settings, "cache").cached(
        "statistics",
        SimpleNamespace(name="mine", fingerprint=source),  # type: ignore[arg-type]
        SimpleNamespace(name="dino", identity={"weights": weights}),  # type: ignore[arg-type]
    )
    assert found.parent == Path("cache/statistics")
    return found.name


def test_a_damaged_entry_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = DatasetSettings(kind="folder", path="/data", resolution=32, channels=3)
    extractors = Extractors(BackboneSettings(), {}, settings, str(tmp_path))
    source: Any = SimpleNamespace(name="mine", fingerprint="0123456789abcdef")
    dino: Any = SimpleNamespace(name="dino", identity={})
    path = extractors.cached("statistics", source, dino)
    write_artifact(path, STATISTICS, {"mean": torch.zeros(3)}, {"made_from": extractors.description(source, dino)})
    content = path.read_bytes()[:-1]
    path.write_bytes(content)
    assert extractors.read(source, dino, with_rows=False) is None
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    assert "Set aside" in capsys.readouterr().err


def test_what_decides_the_features_decides_the_name() -> None:
    changed = name_of(source="f" * 16), name_of(resolution=64), name_of(channels=1), name_of(weights="weights 2")
    assert len({name_of(), *changed}) == 5
    assert name_of(path="/else") == name_of()
