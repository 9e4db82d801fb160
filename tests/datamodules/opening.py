"""Data sets and backbones of tests, opened from settings that are typed as the tests need them."""

from pathlib import Path
from typing import Any

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import ImageSource, open_source


def opened(kind: str, path: Path | None = None, cache_dir: Path | None = None, **settings: Any) -> ImageSource:
    """The images of a data set called `mine`, unless `name` says otherwise."""
    place = None if path is None else str(path)
    return open_source(DatasetSettings(**{"kind": kind, "name": "mine", "path": place, **settings}), cache_dir)
