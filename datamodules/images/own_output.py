"""What this project itself has written below a data set: its runs and its cache, whose pictures are no images of it."""

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from datamodules.images.formats import suffixes
from storage.digests import DATABASE
from storage.files import CACHE_FOLDERS, is_own

SETTINGS_FILE = "settings.json"  # of a run
LARGEST_SETTINGS = 1 << 20  # bytes


def is_own_output(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder that holds these files is a run or a cache, told by what is written into each of them.

    A cache's own folder holds no pictures. Where there are some beside `file_digests.sqlite`, a user chose a folder of
    images for `cache_dir`, and only the folders in it are the cache's.
    """
    is_cache = DATABASE in files and not any(PurePosixPath(name).suffix.lower() in suffixes() for name in files)
    entries = bool(files) and all(name.endswith((".safetensors", ".lock", ".damaged")) for name in files)
    part_of_cache = folder.name in CACHE_FOLDERS and entries
    return is_own(folder) or is_cache or part_of_cache or (SETTINGS_FILE in files and is_run(folder))


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run: its `settings.json` says what the run was made from."""
    path = folder / SETTINGS_FILE
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        if path.stat().st_size <= LARGEST_SETTINGS:
            return {"settings", "inputs"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    return False


def own_output_with(files: Iterable[str], root: Path) -> Path | None:
    """The first folder below `root` that is a run or a cache and holds one of these files, at any depth."""
    folders = {folder for parent in {Path(file).parent for file in files} for folder in (parent, *parent.parents)}
    below = sorted(folder for folder in folders if root in folder.parents)
    return next((folder for folder in below if is_own_output(folder, {path.name for path in folder.iterdir()})), None)


def outermost(own: Iterable[str], ids: Iterable[str]) -> list[str]:
    """For each of the folders `own` the outermost one around it without an image: `runs` for `runs/digits/embed/1`."""
    holding = {parent for image_id in {str(PurePosixPath(name).parent) for name in ids} for parent in around(image_id)}
    return sorted({next(place for place in around(folder) if place not in holding) for folder in own})


def around(folder: str) -> list[str]:
    """`a`, `a/b`, `a/b/c` for the folder `a/b/c`."""
    parts = PurePosixPath(folder).parts
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
