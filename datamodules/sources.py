"""Image sources: where images come from, how each is named, and what the whole set is known by.

A source lists its images in data-set order (the sorted ids) and reads one at a time. The `fingerprint` of a source is
made of its kind, ids, labels and the bytes of its files, so that a moved data set keeps it and a changed one does not.
"""

import difflib
import hashlib
import shutil
import urllib.error
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from datamodules.artifacts import UserError, fingerprint
from datamodules.image_files import DECODING_ERRORS, FolderReader, ZipReader

KINDS = ("digits", "cifar10", "cifar100", "folder", "zip")


class Reader(Protocol):
    """Reads the images of a whole data set by their row in it."""

    def read(self, row: int) -> Image.Image | np.ndarray:
        """The image in this row: a Pillow image, or uint8 [H, W, C]."""

    def read_header(self, row: int) -> Image.Image | np.ndarray:
        """Opens the image in this row without decoding its pixels."""

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """Digests that change when the bytes of any image in `rows` change."""


class ImageSource:
    """Images of one data set, or an evenly spaced subset of them, in data-set order.

    Attributes:
        name: the data set's name, used in file names and messages.
        kind: one of `KINDS`.
        ids: one name per image: its POSIX path below the root, its name in the ZIP, or `train/00042`.
        labels: int64 [N], or None where there are none.
        class_names: one per class, or None.
        positions: int64 [N], the row of each image in the whole data set.
        total: number of images of the whole data set.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        reader: Reader,
        ids: list[str],
        labels: Tensor | None = None,
        class_names: list[str] | None = None,
        max_images: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.class_names = class_names
        self.total = len(ids)
        self.positions = _evenly_spaced(self.total, max_images)  # [N]
        self.ids = [ids[row] for row in self.positions.tolist()]
        self.labels = None if labels is None else labels[self.positions]  # [N]
        self._reader = reader
        self._cache_dir = None if cache_dir is None else Path(cache_dir)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index`, decoded: a Pillow image as stored, or uint8 [H, W, C]."""
        try:
            return self._reader.read(int(self.positions[index]))
        except DECODING_ERRORS as error:
            raise UserError(
                f"{self.name}: {self.ids[index]!r} cannot be decoded as an image ({error}). "
                f"{self._count_unopenable()} of the {len(self)} files cannot even be opened as one. "
                "Remove or replace them."
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Known by kind, ids, labels and contents; 16 hex digits. Paths and times do not enter."""
        return fingerprint(
            {
                "kind": self.kind,
                "ids": self.ids,
                "labels": None if self.labels is None else self.labels.tolist(),
                "contents": self._reader.contents(self.positions.tolist(), self._cache_dir),
            }
        )

    def _count_unopenable(self) -> int:
        """Files whose very header is no image's. Reads headers alone: data sets are large, and the user waits."""
        unopenable = 0
        for row in self.positions.tolist():
            try:
                self._reader.read_header(row)
            except DECODING_ERRORS:
                unopenable += 1
        return unopenable


def open_source(
    kind: str,
    name: str,
    path: str | Path | None = None,
    max_images: int | None = None,
    cache_dir: str | Path | None = None,
) -> ImageSource:
    """Opens a data set.

    Args:
        kind: `digits` (scikit-learn's 8x8 digits), `cifar10` or `cifar100` (their training images), `folder` (any tree
            of images) or `zip` (EDM's format). The last two may hold a `dataset.json` with labels:
            `{"labels": [["a/b.png", 3], ...]}`.
        name: what to call it in file names and messages.
        path: the folder or ZIP. For CIFAR the folder to find it in or download it to, `data` where none is given.
        max_images: take this many images, evenly spaced over the data set.
        cache_dir: where digests of files are remembered.
    """
    if kind not in KINDS:
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
        raise UserError(
            f"dataset.kind={kind}: no such kind of data set. Did you mean {nearest}? Known: {', '.join(KINDS)}"
        )
    labels: Tensor | None
    class_names: list[str] | None = None
    reader: Reader
    if kind == "digits":
        images, labels, class_names = _load_digits()
        reader, ids = ArrayReader(images), _numbered_ids(len(images))
    elif kind in ("cifar10", "cifar100"):
        images, labels, class_names = _load_cifar(kind, Path(path or "data"))
        reader, ids = ArrayReader(images), _numbered_ids(len(images))
    elif path is None:
        raise UserError(
            f"dataset={name}: say where the images are with dataset.path={'FOLDER' if kind == 'folder' else 'FILE.zip'}"
        )
    else:
        files = FolderReader(Path(path)) if kind == "folder" else ZipReader(Path(path))
        reader, ids, labels = files, files.ids, files.labels()
    return ImageSource(kind, name, reader, ids, labels, class_names, max_images, cache_dir)


class ArrayReader:
    """Images that lie in memory: uint8 [N, H, W, C]."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def read(self, row: int) -> np.ndarray:
        return self.images[row]

    read_header = read

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        chosen = np.ascontiguousarray(self.images[rows])
        return [str(chosen.shape), hashlib.sha256(chosen.data).hexdigest()]


def _load_digits() -> tuple[np.ndarray, Tensor, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # values 0..16 → [1797, 8, 8, 1]
    return images, torch.as_tensor(digits.target, dtype=torch.int64), [str(name) for name in digits.target_names]


def _load_cifar(kind: str, root: Path) -> tuple[np.ndarray, Tensor, list[str]]:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset_class = {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]
    if root.name == dataset_class.base_folder:  # the folder itself was given, not the one that holds it
        root = root.parent
    try:
        dataset = dataset_class(root, train=True)
    except RuntimeError:  # not there, or not whole: torchvision compares MD5 sums
        was_there = root.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{kind}.lock"):
                dataset = dataset_class(root, train=True, download=True)
        except (RuntimeError, urllib.error.URLError, OSError) as error:
            if not was_there:
                shutil.rmtree(root, ignore_errors=True)
            raise UserError(
                f"{kind}: not found whole in {root}, and it cannot be downloaded ({error}). "
                f"Download {dataset_class.url}, unpack it, and give the folder that then holds "
                f"{dataset_class.base_folder} with dataset.path=FOLDER"
            ) from error
    return dataset.data, torch.tensor(dataset.targets, dtype=torch.int64), list(dataset.classes)


def _numbered_ids(count: int) -> list[str]:
    return [f"train/{row:05d}" for row in range(count)]


def _evenly_spaced(total: int, count: int | None) -> Tensor:
    if count is None or count >= total:
        return torch.arange(total)
    if count < 1:
        raise UserError(f"dataset.max_images={count}: expected at least 1, or null for all {total}")
    return torch.arange(count) * total // count
