"""Images as files: a tree of folders, or a ZIP in EDM's format, and the labels that may lie beside them."""

import json
import os
import zipfile
import zlib
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.artifacts import UserError, file_digest, file_digests

LABELS_FILE = "dataset.json"

# Formats that Pillow registers but cannot decode by itself (it hands them to other programs, or to none).
UNDECODABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# What Pillow and zipfile raise over damaged, encrypted and outsized files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


class FolderReader:
    """Images in a folder and the folders below it. Hidden files, `__MACOSX` and files of other kinds are left out."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder. Give the folder of the images with dataset.path=FOLDER")
        self.root = root
        self.ids = sorted(_walk_images(root))
        _check_ids(root, self.ids)

    def read(self, row: int) -> Image.Image:
        image = self.read_header(row)
        image.load()
        return image

    def read_header(self, row: int) -> Image.Image:
        return Image.open(self.root / self.ids[row])

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return file_digests((self.root / self.ids[row] for row in rows), cache_dir)

    def labels(self) -> Tensor | None:
        """int64 [N] from the folder's `dataset.json`, or None where there is none."""
        path = self.root / LABELS_FILE
        return parse_labels(path, path.read_bytes(), self.ids) if path.is_file() else None


class ZipReader:
    """Images in a ZIP file. Each process opens the file for itself: a handle shared across a fork reads garbage."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file. Give the ZIP of the images with dataset.path=FILE.zip")
        self.path = path
        self._handles: dict[int, zipfile.ZipFile] = {}
        try:
            names = self._zip.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(
                f"{path}: not a readable ZIP file ({error}). Give another with dataset.path=FILE.zip"
            ) from error
        self.ids = sorted({name for name in names if not name.endswith("/") and _is_image_id(name)})
        _check_ids(path, self.ids)

    @property
    def _zip(self) -> zipfile.ZipFile:
        process = os.getpid()
        if process not in self._handles:
            self._handles[process] = zipfile.ZipFile(self.path)
        return self._handles[process]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def read(self, row: int) -> Image.Image:
        image = self.read_header(row)
        image.load()
        return image

    def read_header(self, row: int) -> Image.Image:
        return Image.open(BytesIO(self._zip.read(self.ids[row])))

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [file_digest(self.path, cache_dir)]

    def labels(self) -> Tensor | None:
        """int64 [N] from the `dataset.json` in the ZIP, or None where there is none."""
        if LABELS_FILE not in self._zip.namelist():
            return None
        return parse_labels(self.path / LABELS_FILE, self._zip.read(LABELS_FILE), self.ids)


def _walk_images(root: Path) -> list[str]:
    """Ids of the images below `root`; each real folder is entered once, however many links lead to it."""
    ids: list[str] = []
    linked_folders: list[Path] = []
    entered: set[tuple[int, int]] = set()
    folders = [root]
    while folders or linked_folders:
        folder = folders.pop() if folders else linked_folders.pop(0)  # a real folder goes before links to it
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in entered:
            continue
        entered.add((stat.st_dev, stat.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            image_id = PurePosixPath(Path(entry.path).relative_to(root)).as_posix()
            if entry.is_dir():
                if _is_visible(image_id):
                    (linked_folders if entry.is_symlink() else folders).append(Path(entry.path))
            elif _is_image_id(image_id):
                if not entry.is_file():
                    raise UserError(f"{entry.path}: a link that leads nowhere. Remove it or mend it.")
                ids.append(image_id)
    return ids


def _is_visible(image_id: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in image_id.split("/"))


def _is_image_id(image_id: str) -> bool:
    if not Image.registered_extensions():
        Image.init()
    image_format = Image.registered_extensions().get(PurePosixPath(image_id).suffix.lower())
    return image_format in Image.OPEN and image_format not in UNDECODABLE_FORMATS and _is_visible(image_id)


def _check_ids(path: Path, ids: list[str]) -> None:
    if not ids:
        raise UserError(f"{path}: no images in there. Give a folder or ZIP that holds PNG, JPEG, WebP, … files")
    for image_id in ids:
        if "\n" in image_id or not _is_text(image_id):
            raise UserError(
                f"{path}: the name {image_id!r} holds a line break or bytes that are no text. Rename that file."
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_labels(path: Path, text: bytes, ids: list[str]) -> Tensor | None:
    """Labels of the images, int64 [N], from the text of EDM's `dataset.json`; None where it says null."""
    try:
        pairs = json.loads(text)["labels"]
        labels_by_id = None if pairs is None else dict(pairs)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f'{path}: expected {{"labels": [["image.png", 3], ...]}} ({type(error).__name__}: {error})'
        ) from error
    if labels_by_id is None:
        return None
    unlabelled = [image_id for image_id in ids if image_id not in labels_by_id]
    if unlabelled:
        raise UserError(f"{path}: {len(unlabelled)} of {len(ids)} images have no label, the first is {unlabelled[0]!r}")
    labels = [labels_by_id[image_id] for image_id in ids]
    for image_id, label in zip(ids, labels, strict=True):
        if type(label) is not int or label < 0:
            raise UserError(f"{path}: the label of {image_id!r} is {label!r}; expected an integer from 0 up")
    return torch.tensor(labels, dtype=torch.int64)
