"""Image sources: where images come from, how each is named, and what the whole set is known by.

A source lists its images in data-set order (the sorted ids) and reads one at a time. The `fingerprint` of a source is
made of its kind, ids, labels and the bytes of its files, so that a moved data set keeps it and a changed one does not.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.arrays import ArrayReader, open_array
from datamodules.images.bad_files import damaged_images, refuse_bad_files
from datamodules.images.built_in import load_cifar, load_digits
from datamodules.images.decoding import UnusableImageError
from datamodules.images.hugging_face import open_hugging_face
from datamodules.images.image_files import FolderReader, ZipReader, printable
from datamodules.images.label_files import FOLDERS, Labels, labels_of_files, read_label_file
from storage.errors import UserError
from storage.fingerprints import fingerprint

KINDS = ("digits", "cifar10", "cifar100", "folder", "zip", "files", "array", "hf")
NEEDED_PATH = {"folder": "FOLDER", "zip": "FILE.zip", "files": "FOLDER or FILE.zip", "array": "FILE.npy", "hf": "NAME"}


class Reader(Protocol):
    """Reads the images of a whole data set by their row in it.

    Attributes:
        ids: one name per image, in data-set order.
    """

    ids: list[str]

    def read(self, row: int) -> Image.Image | np.ndarray:
        """The image in this row: a Pillow image, or uint8 [H, W, C]. Raises `UnusableImageError`."""

    def read_header(self, row: int) -> Image.Image | np.ndarray:
        """Opens the image in this row without decoding its pixels. Raises `UnusableImageError`."""

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """Digests that change when the bytes of any image in `rows` change."""

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """A digest per row: equal for images that are stored as the same bytes, and for no others."""

    def state(self) -> str:
        """Changes when a file may have changed, told from sizes and times without reading it."""


class ImageSource:
    """Images of one data set, or an evenly spaced subset of them, in data-set order.

    Attributes:
        name: the data set's name, used in file names and messages.
        kind: one of `KINDS`.
        ids: one name per image: its POSIX path below the root, its name in the ZIP, or `train/00042`.
        labels: int64 [N], or None where there are none.
        class_names: one per class, or None.
        positions: int64 [N], the place of each image in the whole data set.
        total: number of images of the whole data set.
        skipped: names of the files that `on_bad_file=skip` left out, each with the reason.
        left_out: how many files of which kind are no images.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        reader: Reader,
        labels: Labels | None = None,
        max_images: int | None = None,
        cache_dir: str | Path | None = None,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.class_names = None if labels is None else labels.class_names
        self.skipped = dict(skipped or {})
        self.left_out: dict[str, int] = dict(getattr(reader, "left_out", {}))
        usable = torch.arange(len(reader.ids))
        if self.skipped:
            usable = usable[torch.tensor([image_id not in self.skipped for image_id in reader.ids])]
        self.total = len(usable)
        self.positions = evenly_spaced(self.total, max_images)  # [N]
        self.rows = usable[self.positions]  # [N], of the reader
        self.ids = [reader.ids[row] for row in self.rows.tolist()]
        self.labels = None if labels is None else labels.values[self.rows]  # [N]
        self._reader = reader
        self._cache_dir = None if cache_dir is None else Path(cache_dir)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index`, decoded: a Pillow image as stored, or uint8 [H, W, C]."""
        try:
            return self._reader.read(int(self.rows[index]))
        except UnusableImageError as error:
            raise UserError(
                f"{self.name}: {self.ids[index]!r} cannot be used: {error}. Mend or remove it, or type "
                "dataset.on_bad_file=skip to leave out all such files."
            ) from error

    def header(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index` with its size and mode, its pixels not decoded. Raises `UnusableImageError`."""
        return self._reader.read_header(int(self.rows[index]))

    @cached_property
    def fingerprint(self) -> str:
        """Known by kind, ids, labels and contents; 16 hex digits. Paths and times do not enter."""
        return self._fingerprint(None if self.labels is None else self.labels.tolist())

    @cached_property
    def images_fingerprint(self) -> str:
        """The fingerprint without the labels."""
        return self.fingerprint if self.labels is None else self._fingerprint(None)

    @cached_property
    def whole(self) -> "ImageSource":
        """The data set that this is a part of; itself where it is no part."""
        if len(self) == self.total:
            return self
        return ImageSource(self.kind, self.name, self._reader, cache_dir=self._cache_dir, skipped=self.skipped)

    @cached_property
    def state(self) -> str:
        """Changes when a file may have changed or another part is taken; reads no file."""
        return fingerprint([self._reader.state(), self.positions.tolist(), self.skipped])

    def image_digests(self) -> list[str]:
        """A digest per image: equal for images that are stored as the same bytes, and for no others."""
        return self._reader.image_digests(self.rows.tolist(), self._cache_dir)

    def _fingerprint(self, labels: list[int] | None) -> str:
        contents = self._reader.contents(self.rows.tolist(), self._cache_dir)
        return fingerprint({"kind": self.kind, "ids": self.ids, "labels": labels, "contents": contents})


def open_source(
    kind: str,
    name: str,
    path: str | Path | None = None,
    max_images: int | None = None,
    cache_dir: str | Path | None = None,
    *,
    labels: str | None = None,
    on_bad_file: str = "stop",
    value_range: Sequence[float] | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
) -> ImageSource:
    """Opens a data set.

    Args:
        kind: `digits` (scikit-learn's 8x8 digits), `cifar10` or `cifar100` (their training images), `folder` (any tree
            of images), `zip` (EDM's format), `files` (either of them), `array` (`.npy`, `.npz`) or `hf` (a data set of
            the Hugging Face library). A folder or ZIP may hold a `dataset.json` with labels:
            `{"labels": [["a/b.png", 3], ...]}`.
        name: what to call it in file names and messages.
        path: the folder or file. For CIFAR the folder to find it in or download it to, `data` where none is given.
        max_images: take this many images, evenly spaced over the data set.
        cache_dir: where digests of files are remembered.
        labels: `folders`, or a file with the labels; None: what the data set brings.
        on_bad_file: `stop`: a file that cannot be used is an error; `skip`: all files are tried first, and such ones
            left out.
        value_range: of arrays: the values that become black and white.
        image_key, label_key: arrays of an `.npz` file, or columns of a Hugging Face data set.
        split, config_name, revision: of a Hugging Face data set.
    """
    if kind not in KINDS:
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
        raise UserError(
            f"dataset.kind={kind}: no such kind of data set. Did you mean {nearest}? Known: {', '.join(KINDS)}"
        )
    if path is None and kind in NEEDED_PATH:
        raise UserError(f"dataset={name}: say where the images are with dataset.path={NEEDED_PATH[kind]}")
    if path is not None and printable(str(path)) != str(path):
        raise UserError(
            f"dataset.path={printable(str(path))}: holds control characters or bytes that are no UTF-8 text. Rename it"
        )
    place = Path(path or "data").expanduser()
    if kind == "files":
        kind = "zip" if place.suffix.lower() == ".zip" else "folder"
    reader: Reader
    found: Labels | None
    unusable: dict[str, str] = {}
    if kind in ("folder", "zip"):
        reader = files = FolderReader(place) if kind == "folder" else ZipReader(place)
        unusable, found = files.unusable, None  # labels are matched below, when the bad files are known
    elif kind == "digits":
        images, found = load_digits()
        reader = ArrayReader(images)
    elif kind == "array":
        reader, found = open_array(place, value_range, image_key, label_key)
    elif kind == "hf":
        reader, found = open_hugging_face(str(place), split, config_name, revision, image_key, label_key)
    else:
        images, found = load_cifar(kind, place)
        reader = ArrayReader(images)
    if on_bad_file == "skip":
        unusable = unusable | damaged_images(reader, name, cache_dir)
        if all(image_id in unusable for image_id in reader.ids):
            refuse_bad_files(name, unusable, len(unusable), skippable=False)
    elif unusable:
        refuse_bad_files(name, unusable, len(unusable) + len(reader.ids))
    if isinstance(reader, FolderReader | ZipReader):
        found = labels_of_files(labels, place, reader)
    elif labels == FOLDERS:
        raise UserError(f"dataset.labels=folders is for folders and ZIPs; dataset={name} has none. Give a file instead")
    elif labels is not None:
        found = read_label_file(Path(labels), reader.ids)
    return ImageSource(kind, name, reader, found, max_images, cache_dir, unusable)


def evenly_spaced(total: int, count: int | None) -> Tensor:
    """`count` of the numbers 0…total−1, evenly spaced: int64; all of them where None."""
    if count is None or count >= total:
        return torch.arange(total)
    if count < 1:
        raise UserError(f"dataset.max_images={count}: expected at least 1, or null for all {total}")
    return torch.arange(count) * total // count
