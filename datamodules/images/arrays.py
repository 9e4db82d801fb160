"""Images as arrays: in memory, in an `.npy` file that stays on disk, or in an `.npz`. Any number of channels."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError
from datamodules.images.label_files import labels_from_array
from datamodules.images.reader import Labels, Reader
from datamodules.images.unchanged import GONE, refuse_changed, state_of
from datamodules.plain_files import ZIP, chosen, load_npy, refuse_other_kinds, told_of_arrays
from storage.bounds import refuse_npz
from storage.digests import file_digest, file_state
from storage.errors import UserError, WrongPathError

IMAGE_KEYS = ("images", "train_images", "x_train", "x", "X", "data", "arr_0")
LABELS_OF = {"images": "labels", "x_train": "y_train", "x_test": "y_test", "x": "y", "X": "y", "data": "labels"}
LABELS_OF |= {f"{split}_images": f"{split}_labels" for split in ("train", "val", "test")}
mapped = partial(load_npy, mmap_mode="r")
NATURAL_RANGES = {"u1": (0.0, 255.0), "u2": (0.0, 65535.0), "b1": (0.0, 1.0)}


class ArrayReader(Reader):
    """Images [N, H, W] or [N, H, W, C] in one array.

    Args:
        images: the array, or the file that holds it, which is then read image by image and never whole.
        value_range: the values that become 0 and 255. None: that of uint8, uint16 and bool.
        cut: whether values beyond are cut off, and not refused.
        name: the file and the array in it, for messages.
        split: the first part of the ids.
        key: names the array, where the file holds several.
        open_file: returns the array in the file, of which indexing reads a part. Each process opens it for itself.
    """

    def __init__(
        self,
        images: np.ndarray | Path,
        value_range: Sequence[float] | None = None,
        name: str = "the array",
        labels: Labels | None = None,
        kind: str = "array",
        split: str = "train",
        key: str = "",
        cut: bool = False,
        open_file: Callable[[Path], Any] = mapped,
    ) -> None:
        super().__init__(kind, labels)
        self.name, self.path = name, images if isinstance(images, Path) else None
        self._key, self._cut, self._open_file = key, cut, open_file
        self._state = GONE if self.path is None else state_of(self.path)
        self._images, self._opened_by = (None if self.path else images), 0
        self.value_range = checked_range(name, self.images, value_range)
        self.ids = numbered_ids(len(self.images), split)

    @property
    def images(self) -> Any:
        """The array, or what reads from it."""
        if self.path is not None and self._opened_by != os.getpid():
            self._images, self._opened_by = self._open_file(self.path), os.getpid()
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.path is None else {**self.__dict__, "_images": None, "_opened_by": 0}

    def read(self, row: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        self._refuse_changed()  # before: what is mapped into memory may be there no more
        image = self._read(row)
        self._refuse_changed()
        return image

    def _refuse_changed(self) -> None:
        if self.path is not None:
            refuse_changed(self.path, self._state, str(self.path))

    def _read(self, row: int) -> np.ndarray:
        image = self.read_header(row)
        if image.dtype == np.uint8 and self.value_range == NATURAL_RANGES["u1"]:
            return np.array(image)
        low, high = self.value_range
        values = image.astype(np.float64)
        if not np.isfinite(values).all():
            raise UnusableImageError("holds NaN or infinity")
        if self._cut:
            values = values.clip(low, high)
        elif values.min() < low or values.max() > high:
            raise UnusableImageError(
                f"holds values from {values.min():g} to {values.max():g}, outside of {low:g} to {high:g}; "
                "set the range of the whole array with dataset.value_range=[LOW,HIGH], or cut it with dataset.window"
            )
        return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)

    def read_header(self, row: int) -> np.ndarray:
        try:
            image = self.images[row]
        except OSError as error:  # of HDF5, whose parts have checksums and filters
            raise UnusableImageError(f"cannot be read ({error})") from error
        return image[..., np.newaxis] if image.ndim == 2 else image

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        if self.path is not None:
            key = [self._key] * bool(self._key) + ["cut off"] * self._cut
            return [*map(str, self.value_range), *key, file_digest(self.path, cache_dir)]
        chosen = self.images[rows]
        return [str(chosen.shape), digest(chosen)]

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [digest(self.images[row]) for row in rows]

    def state(self) -> str:
        if self.path is None:
            return digest(self.images)
        return f"{file_state(self.path)} {self.value_range} {self._key}{self._cut or ''}".rstrip()


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def open_array(settings: DatasetSettings) -> ArrayReader:
    """Images of an `.npy`, or images and labels of an `.npz` file.

    Raises:
        UserError: no such file or key, an array of another shape, or values whose range nothing says.
    """
    path, image_key, label_key = Path(str(settings.path)), settings.image_key, settings.label_key
    if not path.is_file():
        problem = "a folder; for images in one, set dataset=folder" if path.is_dir() else "no such file"
        raise WrongPathError(f"{path}: {problem}.", "FILE.npy or FILE.npz")
    if path.suffix != ".npz":
        if image_key or label_key:
            raise UserError(f"{path}: dataset.image_key and dataset.label_key are for .npz files, which name arrays.")
        reader = ArrayReader(path, span_of(settings), str(path), cut=settings.window is not None)
        refuse_other_layouts(str(path), reader.images.shape, settings.channels)
        return reader
    refuse_other_kinds(path, ZIP, "an .npz file")
    with told_of_arrays(path), np.load(path, allow_pickle=False) as archive:
        image_key = chosen(path, archive.files, image_key, IMAGE_KEYS, "array", "Set dataset.image_key=NAME.")
        refuse_npz(archive, image_key, path.stat().st_size)
        images, name = archive[image_key], f"{path}::{image_key}"
        checked_range(name, images, span_of(settings))
        refuse_other_layouts(name, images.shape, settings.channels)
        own_labels = labels_in_archive(path, archive, image_key, len(images), settings)
        others = [key for key in archive.files if key != image_key and re.search("images|^x_", key, re.I)]
    reader = ArrayReader(images, span_of(settings), name, own_labels, cut=settings.window is not None)
    reader.left_out.update(f"array {key} (dataset.image_key={key} takes it)" for key in others)
    return reader


def span_of(settings: DatasetSettings) -> list[float] | None:
    """The values that become black and white, as stated; None: as the type of the array says."""
    return settings.value_range or settings.window


def labels_in_archive(path: Path, archive: Any, image_key: str, count: int, settings: DatasetSettings) -> Labels | None:
    """Labels from the array of an `.npz` that `dataset.label_key` names, or that goes with the images'.

    Raises:
        UserError: there is no array of that name.
    """
    found = LABELS_OF.get(image_key)
    if settings.label_key:
        found = chosen(path, archive.files, settings.label_key, (), "array", "Set dataset.label_key=NAME.")
    if settings.labels is not None or found not in archive.files:
        return None
    try:
        refuse_npz(archive, str(found), path.stat().st_size)
        return labels_from_array(f"{path}::{found}", archive[found], count)
    except UserError as error:  # of another length
        return Labels(None, note=str(error).rstrip("."))
    except ValueError as error:  # Python objects, which are not loaded, or a header that lies
        return Labels(None, note=f"{path}::{found}: {error}; one number or name for each image is expected")


def checked_range(name: str, images: np.ndarray, value_range: Sequence[float] | None) -> tuple[float, float]:
    """The lowest and highest value, as given or as the type says.

    Raises:
        UserError: the array is none of images, or nothing says its range.
    """
    what = f"{name}: an array of {images.dtype}, {list(images.shape)}"
    if images.ndim not in (3, 4) or 0 in images.shape or images.dtype.kind not in "uifb":
        rows = " Rows of pixels: save array.reshape(-1, H, W)." * (images.ndim == 2)
        raise UserError(f"{what}; expected numbers [N, H, W] or [N, H, W, C] with images in it.{rows}")
    span = value_range or NATURAL_RANGES.get(images.dtype.str[1:])
    if span is None:
        first = np.asarray(images[:64], dtype=np.float64)
        raise UserError(
            f"{what}, whose range nothing says; the first images hold {first.min():g} to {first.max():g}. "
            "Set what black and white are: dataset.value_range=[0,1], or dataset.window=[0,1] to cut off the rest."
        )
    return float(span[0]), float(span[1])


def refuse_other_layouts(name: str, shape: Sequence[int], channels: int) -> None:
    """Raise a `UserError` for an array whose axes seem to stand in another order than [N, H, W, C].

    Args:
        channels: `dataset.channels`; last axes of that length are taken, whatever the others are.
    """
    looks, cure = None, ""
    channels_last = f"If the last axis holds the channels, set dataset.channels={shape[-1]}"
    if len(shape) == 3:
        if shape[2] in (3, 4) and shape[1] > 4:
            looks, cure = "one image [H, W, C]", "array[None]"
    elif shape[2] <= 4 < min(*shape[:2], shape[3]) and shape[3] != channels:
        looks, cure = "[H, W, C, N]", "array.transpose(3, 0, 1, 2)"
    elif shape[1] == shape[2] == shape[3] and shape[3] not in (channels, 1, 3):
        looks, cure = "volumes [N, D, H, W]", f"array[:, {shape[1] // 2}], their middle slices. {channels_last}"
    elif shape[1] <= 4 < min(shape[2:]) or (
        shape[3] not in (channels, 1, 3) and (shape[1] <= shape[3] or shape[1] != shape[2] == shape[3])
    ):
        looks = "[N, C, H, W]"
        cure = f"array.transpose(0, 2, 3, 1), and set dataset.channels={shape[1]}. {channels_last}"
    if looks:
        raise UserError(
            f"{name}: an array {list(shape)}, which looks like {looks}; expected [N, H, W, C]. Save {cure}."
        )


def numbered_ids(count: int, split: str = "train") -> list[str]:
    """`train/00042`, with as many digits as sort them."""
    digits = max(5, len(str(count - 1)))
    return [f"{split}/{row:0{digits}d}" for row in range(count)]
