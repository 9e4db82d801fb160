"""Settings of data sets, backbones and embedding: all YAMLs are accepted, and impossible values are refused."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.embeddings.embedding_settings import EmbeddingSettings
from datamodules.images.dataset_settings import DatasetSettings
from storage.errors import UserError
from storage.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [path for group in ("dataset", "backbone") for path in sorted((CONFIGS / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_option_is_understood(path: Path) -> None:
    settings: Any = OmegaConf.to_container(OmegaConf.load(path))
    if path.parent.name == "backbone":
        assert BackboneSettings(**settings).kind == settings["kind"]
    else:
        assert DatasetSettings(**settings["dataset"]).kind == settings["dataset"]["kind"]


def test_defaults_are_those_of_the_default_options() -> None:
    assert DatasetSettings(**OmegaConf.load(CONFIGS / "dataset/digits.yaml").dataset) == DatasetSettings()
    assert BackboneSettings(**OmegaConf.load(CONFIGS / "backbone/pixels.yaml")) == BackboneSettings()
    assert EmbeddingSettings(**OmegaConf.load(CONFIGS / "base.yaml").embedding) == EmbeddingSettings()


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (DatasetSettings, {"name": "a/b"}),
        (DatasetSettings, {"path": "images"}),
        (DatasetSettings, {"kind": "zipp"}),
        (DatasetSettings, {"resolution": 4}),
        (DatasetSettings, {"max_images": 0}),
        (DatasetSettings, {"value_range": [1, 0]}),
        (DatasetSettings, {"on_bad_file": "ignore"}),
        (BackboneSettings, {"kind": "transformer"}),
        (BackboneSettings, {"batch_size": 0}),
        (EmbeddingSettings, {"num_workers": "many"}),
        (EmbeddingSettings, {"precision": "16-mixed"}),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{settings.group}.{next(iter(values))}="):
        settings(**values)


def test_a_home_folder_is_found() -> None:
    found = DatasetSettings(kind="folder", path="~/images", labels="~/labels.csv")
    assert (found.path, found.labels) == (str(Path.home() / "images"), str(Path.home() / "labels.csv"))
    assert {"path", "labels", "on_bad_file"}.isdisjoint(found.identity())
