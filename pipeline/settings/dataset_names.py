"""The names of data sets of one's own: each folder or file of images has its own, which the cache remembers."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.errors import DamagedArtifactError
from storage.files import numbered, own_folder, read_sealed_json, set_aside, write_sealed_json

AUTO = "auto"  # `dataset.name=auto`: the name of the folder or file
DATASETS = Path(__file__).resolve().parents[2] / "configs" / "dataset"
LONGEST = 60  # characters, as names of files begin with it


def choose_name(path: str, cache_dir: str, is_taken: Callable[[str], bool]) -> str:
    """The name of the images at `path`: the one that they have, or the first of `leaves`, `leaves-2`, … that is free.

    Args:
        is_taken: whether there are runs of other images, and none of these, under a name.
    """
    reserved = {AUTO, *(option.stem for option in DATASETS.glob("*.yaml"))}
    free = (file for file in numbered(Path(f"{plain_name(path)}.json")) if file.stem not in reserved)
    while True:
        name = next(free).stem
        known = recorded(name, cache_dir).get("path")
        if known == address(path):
            return name
        moved = known is None or (Path(known).is_absolute() and not Path(known).exists())
        if moved and not is_taken(name):
            return name


def plain_name(path: str) -> str:
    """`leaves` for `/my/leaves`, `leaves.zip` and `me/leaves` on the hub: letters, digits, `.`, `_`, `+` and `-`."""
    place = Path(path).resolve()
    name = place.stem if place.is_file() else place.name
    return re.sub(r"[^\w.+-]+", "-", name)[:LONGEST].strip(".-") or "images"


def address(path: str) -> str:
    """What tells one data set from another: the absolute path, or an id on the hub."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def records(cache_dir: str) -> Path:
    """The folder of the cache that remembers which images have a name, in a file called so."""
    return own_folder(Path(cache_dir) / "datasets")


def recorded(name: str, cache_dir: str) -> dict[str, Any]:
    """What the cache remembers under a name: the `path` of the images, and what `preset=auto` has chosen for them."""
    with suppress(DamagedArtifactError, OSError):
        return read_sealed_json(records(cache_dir) / f"{name}.json") or {}
    return {}


def keep_record(name: str, cache_dir: str, content: dict[str, Any]) -> None:
    """Remember it; where nothing can be written, as in another user's cache, do nothing."""
    known, path = recorded(name, cache_dir), records(cache_dir) / f"{name}.json"
    with suppress(PermissionError):
        if not known and os.path.lexists(path):
            set_aside(path)
        if known != content:
            write_sealed_json(path, content)


def names_of(path: str, cache_dir: str) -> list[str]:
    """The names under which the cache knows the images at `path`."""
    if not Path(cache_dir).is_dir():
        return []
    names = [file.stem for file in records(cache_dir).glob("*.json")]
    return [name for name in names if recorded(name, cache_dir).get("path") == address(path)]
