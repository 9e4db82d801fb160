"""Image sources: where images come from, how each is named, and what the whole set is known by.

A source lists its images in data-set order (the sorted ids) and reads one at a time. The `fingerprint` of a source is
made of its kind, ids, labels and the bytes of its files, so that a moved data set keeps it and a changed one does not.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.dataset_settings import DatasetSettings, kind_of
from datamodules.images.decoding import UnusableImageError, each_row
from datamodules.images.formats import MEASUREMENTS, suffix_of
from datamodules.images.image_files import printable
from datamodules.images.label_files import labels_from_folders, read_label_file
from datamodules.images.measured import load_measured
from datamodules.images.reader import UNLABELLED, EncodedReader, Labels, Reader
from datamodules.images.split_folders import find_splits, other_split
from datamodules.images.window import SAMPLE, Window, sampled
from storage.additions import DATASETS, load_addition
from storage.errors import UserError, named_by
from storage.files import own_folder, remembered_json
from storage.fingerprints import file_stem, fingerprint

SHOWN = 5  # bad files that a message names
MAY_BE_MEASURED = {*MEASUREMENTS, ".tif", ".tiff", ""}


class ImageSource:
    """Images of one data set, or a part of them, in data-set order.

    Args:
        name: the data set's name, used in file names and messages.
        reader, labels: of the whole data set, bad files included.
        max_images: how many of them; None: all.
        cache_dir: where digests of files are remembered, and decoded images kept.
        skipped: the bad files, which are left out, each with the reason.
        skippable: whether bad files may be left out, for messages.
        fit: how an image becomes a square, for whoever decodes one; the images stay the same.

    Attributes:
        held_out: the images that `dataset.holdout` keeps apart from these; None where there are none.
        undivided: these images and those held out, in one source; this one where none are held out.
    """

    held_out: "ImageSource | None" = None

    def __init__(
        self,
        name: str,
        reader: Reader,
        labels: Labels | None = None,
        max_images: int | None = None,
        cache_dir: str | Path | None = None,
        skipped: Mapping[str, str] | None = None,
        skippable: bool = True,
        fit: str = "crop",
    ) -> None:
        self.fit = fit
        self.name, self.kind = name, reader.kind
        labels = labels or Labels(None)
        self.class_names = labels.class_names  # one per class, or None
        self.classes_are_ids = labels.are_ids  # which are no words
        self.skipped, self.left_out = dict(skipped or {}), dict(reader.left_out)
        self.has_images = reader.has_images
        self.splits = reader.splits  # the split folders, where the images lie in some
        self.window = reader.window  # of measured images
        self.own_output = reader.own_output  # folders of this project's that lie among the images
        usable = torch.tensor([row for row, image_id in enumerate(reader.ids) if image_id not in self.skipped])
        self.total = len(usable)  # images of the whole data set
        self.positions = evenly_spaced(self.total, max_images)  # int64 [N], each image's place in the whole data set
        self.rows = usable[self.positions]  # int64 [N], of the reader
        self.ids = [reader.ids[row] for row in self.rows.tolist()]
        self.labels = None if labels.values is None else labels.values[self.rows]  # int64 [N], −1: no label; or None
        self.labels_note = labels.note  # why there are none
        self._forget_missing_labels()
        self._reader, self._skippable = reader, skippable
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.undivided = self

    def part(self, places: Tensor) -> "ImageSource":
        """The images at these places (int64 [n], rising) of this source, as a source with a fingerprint of its own."""
        part = copy.copy(self)
        for name in ("fingerprint", "images_fingerprint", "whole", "state", "held_out"):
            part.__dict__.pop(name, None)  # they are another's
        part.positions, part.rows = self.positions[places], self.rows[places]
        part.ids = [self.ids[place] for place in places.tolist()]
        part.labels = None if self.labels is None else self.labels[places]
        part._forget_missing_labels()
        return part

    def divided(self, share: float) -> "ImageSource":
        """The images without those that are held out, which it has beside it; itself for a share of 0.

        Whether an image is held out depends on its id and the share alone, so other images may come and go, and a
        larger share holds out the same images and more.

        Raises:
            UserError: none would be held out, or all.
        """
        if share == 0:
            return self
        hashes = (hashlib.sha256(image_id.encode()).digest() for image_id in self.ids)
        apart = torch.tensor([int.from_bytes(one[:6]) / 2**48 < share for one in hashes])  # random, and of the id alone
        if apart.all() or not apart.any():
            which = "all" if apart.all() else "none"
            raise UserError(
                f"dataset.holdout={share:g}: of the {len(self):,} images of {self.name!r}, {which} would be held out. "
                "Set another share, such as dataset.holdout=0.1 with some hundred images or more."
            )
        training = self.part((~apart).nonzero().flatten())
        training.held_out = self.part(apart.nonzero().flatten())
        return training

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index`, decoded: a Pillow image as stored, or uint8 [H, W, C]."""
        with self._refused(f"{self.ids[index]!r} cannot be used: "):
            return self.decoded(index)

    def decoded(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index`, for who counts the bad ones. Raises `UnusableImageError`."""
        return self._reader.read(int(self.rows[index]))

    def header(self, index: int) -> Image.Image | np.ndarray:
        """Image number `index` with its size and mode, its pixels not decoded. Raises `UnusableImageError`."""
        return self._reader.read_header(int(self.rows[index]))

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Image number `index` as the bytes of an image file, and its suffix: as stored, or as PNG from an array."""
        with self._refused(f"{self.ids[index]!r} cannot be exported: "):
            return self._reader.encoded(int(self.rows[index]))

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
        """The data set that this is a part of, without labels; itself where it is no part."""
        if len(self) == self.total:
            return self
        return ImageSource(self.name, self._reader, cache_dir=self.cache_dir, skipped=self.skipped, fit=self.fit)

    @property
    def places(self) -> Tensor:
        """The place of each image in `undivided`, int64 [N]."""
        return torch.searchsorted(self.undivided.positions, self.positions)  # both rise

    def only(self, ids: Sequence[str]) -> "ImageSource":
        """Those of its images that have one of these ids, beside the same ones held out; itself where all have."""
        if len(ids) == len(self):
            return self
        wanted = set(ids)
        part = self.part(torch.tensor([place for place, image_id in enumerate(self.ids) if image_id in wanted]))
        part.held_out = self.held_out
        return part

    @cached_property
    def state(self) -> str:
        """Changes when a file may have changed or another part is taken; reads no file."""
        window = [] if self.window is None else [self.window.limits]
        return fingerprint([self._reader.state(), self.positions.tolist(), self.skipped, *window])

    def image_digests(self) -> list[str]:
        """A digest per image: equal for images that are stored as the same bytes, and for no others."""
        with self._refused():
            return self._reader.image_digests(self.rows.tolist(), self.cache_dir)

    def _fingerprint(self, labels: list[int] | None) -> str:
        with self._refused():
            contents = self._reader.contents(self.rows.tolist(), self.cache_dir)
        window = {} if self.window is None else {"window": self.window.limits}
        return fingerprint({"kind": self.kind, "ids": self.ids, "labels": labels, "contents": contents, **window})

    def _forget_missing_labels(self) -> None:
        if self.labels is not None and bool((self.labels == UNLABELLED).all()):
            self.labels, self.labels_note = None, f"none of the {len(self):,} images has a label"

    @contextmanager
    def _refused(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except UnusableImageError as error:
            raise UserError(f"{self.name}: {what}{error}. {cure(self._skippable)}") from error


def open_source(
    settings: DatasetSettings,
    cache_dir: str | Path | None = None,
    setting: str = "dataset.path",
    without_images: bool = False,
) -> ImageSource:
    """Opens a data set.

    A folder or ZIP may hold a `dataset.json` with labels: `{"labels": [["a/b.png", 3], ...]}`. With `dataset.holdout`
    these are the images that are left for clustering and training; `held_out` has the others.

    Args:
        cache_dir: where digests of files are remembered.
        setting: what the user sets to choose these images, for messages. Only a data set can do without its bad files.
        without_images: whether the names of images, with embeddings of a file, will do.

    Raises:
        UserError: there are no images, labels that do not fit them, or files that cannot be used.
    """
    kind, path, skippable = kind_of(settings.kind), settings.path, setting == "dataset.path"
    if path is None and kind.needs_path:
        raise UserError(
            f"dataset={settings.name}: say where the images are. Set {setting}={kind.path} (make: DATA={kind.path})."
        )
    if path is not None and printable(path) != path:
        problem = "holds control characters or bytes that are no UTF-8 text"
        raise UserError(f"{setting}={printable(path)}: {problem}. Rename it.")
    with named_by(setting):
        open_reader = resolve_name(kind.opener) if kind.opener else load_addition(DATASETS, settings.kind)
        reader: Reader = open_reader(settings)
    if not reader.has_images and not without_images:
        raise UserError(
            f"dataset={settings.name}: embeddings alone, and images are needed here. Say whose embeddings they are "
            "beside embeddings=FILE, such as dataset=folder dataset.path=FOLDER."
        )
    choose_split(reader, settings)
    if isinstance(reader, EncodedReader):
        reader.channels, reader.window = settings.channels, window_of(reader, settings, cache_dir)
    unusable, skip = reader.unusable, settings.on_bad_file == "skip"
    if skip:
        unusable = unusable | damaged_images(reader, settings.name, cache_dir)
    if unusable and (not skip or unusable.keys() >= set(reader.ids)):
        refuse_bad_files(settings.name, unusable, len({*reader.ids, *unusable}), skippable and not skip)
    labels = labels_of(settings, reader)
    given = (settings.max_images, cache_dir, unusable, skippable, settings.fit)
    return ImageSource(settings.name, reader, labels, *given).divided(settings.holdout)


def choose_split(reader: Reader, settings: DatasetSettings) -> None:
    """Keep the images of the split `dataset.split`, where folders are those of splits.

    Raises:
        UserError: there is no such split, or nothing in it.
    """
    if reader.folders is None:
        return
    folders = reader.folders | {name.rpartition("/")[0] for name in reader.unusable}
    splits = reader.splits = find_splits(reader.ids, settings.split, folders)
    if splits is not None:
        reader.keep([row for row, image_id in enumerate(reader.ids) if splits.takes(image_id)])
        reader.unusable = {name: reason for name, reason in reader.unusable.items() if splits.takes(name)}
        reader.folders = {name for name in reader.folders if splits.takes(name)}
        if not reader.ids and not reader.unusable:
            raise UserError(
                f"dataset.split={settings.split}: no images in {', '.join(splits.taken)}. {other_split(splits.counts)}"
            )


def window_of(reader: EncodedReader, settings: DatasetSettings, cache_dir: str | Path | None) -> Window | None:
    """What becomes black and white in images of measurements: as stated, else taken from some, evenly spaced."""
    if settings.window is not None:
        return Window.of_setting(settings.window)
    rows = [row for row, image_id in enumerate(reader.ids) if suffix_of(image_id) in MAY_BE_MEASURED]
    rows = [rows[place] for place in evenly_spaced(len(rows), SAMPLE).tolist()]

    def sample(place: int) -> np.ndarray | None:
        with suppress(UnusableImageError):  # which is told where all are looked at
            measured = load_measured(reader.file(rows[place])[0])
            return None if measured is None else sampled(measured)
        return None

    def find() -> dict[str, Any]:
        found = Window.of_sample(each_row(sample, len(rows), f"looking for the numbers in {settings.name}"))
        return {} if found is None else asdict(found)

    if not rows or cache_dir is None:
        found = find() if rows else {}
    else:
        key = fingerprint([reader.state(), rows])
        path = own_folder(Path(cache_dir) / "surveys") / f"{file_stem(settings.name, 'window', key)}.json"
        found = remembered_json(path, key, find)
    return Window(**found) if found else None


def labels_of(settings: DatasetSettings, reader: Reader) -> Labels | None:
    """Labels as `dataset.labels` says, else those that the data set brings."""
    if settings.label_columns is not None and settings.labels in (None, "none", "folders"):
        settings.refuse("label_columns", "it goes with dataset.labels=FILE.csv")
    if settings.labels is None:
        return reader.own_labels()
    if settings.labels == "none":
        return Labels(None, note="dataset.labels=none leaves them out")
    if settings.labels != "folders":
        return read_label_file(Path(settings.labels), reader.ids, settings.label_columns)
    if reader.folders is None:
        raise UserError(f"{settings.name}: dataset.labels=folders is for folders and ZIPs. Set dataset.labels=FILE.")
    ids, folders, where, shared = reader.ids, reader.folders, str(settings.path), None
    if reader.splits is not None:
        shared = reader.splits.shared
        ids, folders = list(map(reader.splits.without, ids)), {*map(reader.splits.without, folders)} - {""}
        where += f" ({', '.join(filter(None, reader.splits.counts))}: splits, not classes)"
    return labels_from_folders(where, ids, folders, shared)


def evenly_spaced(total: int, count: int | None) -> Tensor:
    """`count` of the numbers 0…total−1, evenly spaced: int64; all of them where None or where there are no more."""
    return torch.arange(total) if count is None or count >= total else torch.arange(count) * total // count


def damaged_images(reader: Reader, name: str, cache_dir: str | Path | None) -> dict[str, str]:
    """Every image that cannot be decoded, by id, with the reason.

    Decodes the whole data set, once: what was found is remembered in `cache_dir` until a file changes.
    """

    def reason(row: int) -> str | None:
        try:
            reader.read(row)
        except UnusableImageError as error:
            return str(error)
        return None

    def find() -> dict[str, Any]:
        reasons = each_row(reason, len(reader.ids), f"looking for bad files in {name}")
        return {image_id: text for image_id, text in zip(reader.ids, reasons, strict=True) if text is not None}

    if cache_dir is None:
        return find()
    window = [] if reader.window is None else [reader.window.limits]
    key = fingerprint([reader.state(), reader.channels, PIL.__version__, *window])
    return remembered_json(own_folder(Path(cache_dir) / "surveys") / f"{file_stem(name, 'bad', key)}.json", key, find)


def refuse_bad_files(name: str, bad: Mapping[str, str], total: int, skippable: bool = True) -> NoReturn:
    """Raise a `UserError` that counts the bad files and names some, each with its reason."""
    lines = [f"  '{image_id}': {reason}" for image_id, reason in list(bad.items())[:SHOWN]]
    lines += [f"  … and {len(bad) - SHOWN:,} more"] * (len(bad) > SHOWN)
    problem = f"{name}: {len(bad):,} of {total:,} files cannot be used as images:"
    raise UserError("\n".join([problem, *lines, cure(skippable)]))


def cure(skippable: bool) -> str:
    """What to do about bad files; a set of generated images would be another set without them."""
    return f"Fix or remove them{', or set dataset.on_bad_file=skip to leave out all such files' if skippable else ''}."
