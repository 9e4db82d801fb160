"""Images as arrays: in memory, in an `.npy` file that stays on disk, or in an `.npz`. Any number of channels."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.decoding import UnusableImageError
from datamodules.images.label_files import Labels, from_array
from storage.digests import file_digest
from storage.errors import UserError

IMAGE_KEYS = ("images", "train_images", "x_train", "x", "X", "data", "arr_0")
LABELS_OF = {"images": "labels", "x_train": "y_train", "x_test": "y_test", "x": "y", "X": "y", "data": "labels"}
LABELS_OF |= {f"{split}_images": f"{split}_labels" for split in ("train", "val", "test")}
NATURAL_RANGES = {"u1": (0.0, 255.0), "u2": (0.0, 65535.0), "b1": (0.0, 1.0)}


class ArrayReader:
    """Images [N, H, W] or [N, H, W, C] in one array.

    Args:
        images: the array, or the `.npy` file that holds it, which is then read image by image and never whole.
        value_range: the values that become 0 and 255. None: that of uint8, uint16 and bool.
        name: the file, for messages.
    """

    def __init__(
        self, images: np.ndarray | Path, value_range: Sequence[float] | None = None, name: str = "the array"
    ) -> None:
        self.path = images if isinstance(images, Path) else None
        self._images: np.ndarray | None = None if isinstance(images, Path) else images
        self.ids = numbered_ids(len(self.images))
        self.value_range = checked_range(name, self.images, value_range)

    @property
    def images(self) -> np.ndarray:
        """The whole array; a file's is mapped into memory, not read."""
        if self._images is None:
            assert self.path is not None
            self._images = map_file(self.path)
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None} if self.path is not None else self.__dict__

    def read(self, row: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        image = self.read_header(row)
        if image.dtype == np.uint8 and self.value_range == NATURAL_RANGES["u1"]:
            return np.array(image)
        low, high = self.value_range
        values = image.astype(np.float64)
        if not np.isfinite(values).all():
            raise UnusableImageError("holds NaN or infinity")
        if values.min() < low or values.max() > high:
            raise UnusableImageError(
                f"holds values from {values.min():g} to {values.max():g}, outside of {low:g} to {high:g}; "
                "state the range of the whole array with dataset.value_range=[LOW,HIGH]"
            )
        return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)

    def read_header(self, row: int) -> np.ndarray:
        image = self.images[row]
        return image[..., np.newaxis] if image.ndim == 2 else image

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        if self.path is not None:
            return [*map(str, self.value_range), file_digest(self.path, cache_dir)]
        chosen = np.ascontiguousarray(self.images[rows])
        return [str(chosen.shape), hashlib.sha256(chosen.data).hexdigest()]

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [hashlib.sha256(np.ascontiguousarray(self.images[row]).data).hexdigest() for row in rows]

    def state(self) -> str:
        if self.path is None:
            return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {self.value_range}"


def open_array(
    path: Path, value_range: Sequence[float] | None, image_key: str | None, label_key: str | None
) -> tuple[ArrayReader, Labels | None]:
    """Images of an `.npy`, or images and labels of an `.npz` file.

    Raises:
        UserError: no such file or key, an array of another shape, or values whose range nothing says.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give an .npy or .npz file with dataset.path=FILE.npy")
    if path.suffix != ".npz":
        if image_key or label_key:
            raise UserError(f"{path}: dataset.image_key and dataset.label_key are for .npz files, which name arrays")
        return ArrayReader(path, value_range, str(path)), None
    try:
        with np.load(path, allow_pickle=False) as archive:
            images_from = choose_key(path, archive.files, image_key, IMAGE_KEYS, "image")
            images = archive[images_from]
            labels_from = LABELS_OF.get(images_from)
            if label_key is not None:
                labels_from = choose_key(path, archive.files, label_key, (), "label")
            labels = archive[labels_from] if labels_from in archive.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as plain arrays ({error})") from error
    reader = ArrayReader(images, value_range, f"{path}::{images_from}")
    return reader, None if labels is None else from_array(path, labels, len(images))


def choose_key(path: Path, keys: list[str], key: str | None, usual: tuple[str, ...], what: str) -> str:
    """The array that was asked for, else the only one, else the first with a usual name."""
    found = key or (keys[0] if len(keys) == 1 else next((name for name in usual if name in keys), None))
    if found not in keys:
        problem = f"holds no array {key!r}" if key else f"holds {len(keys)} arrays"
        raise UserError(f"{path}: {problem}; there are {', '.join(keys)}. Name one with dataset.{what}_key=NAME")
    return str(found)


def map_file(path: Path) -> np.ndarray:
    """An `.npy` file, mapped into memory; without running code from it."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read as a plain array ({error}). Write it whole with numpy.save, as numbers"
        ) from error


def checked_range(name: str, images: np.ndarray, value_range: Sequence[float] | None) -> tuple[float, float]:
    """The lowest and highest value, as given or as the type says.

    Raises:
        UserError: the array is none of images, or nothing says its range.
    """
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or 0 in images.shape:
        shape = list(np.shape(images))
        raise UserError(f"{name}: an array of shape {shape}; expected [N, H, W] or [N, H, W, C] with images in it")
    if images.ndim == 4 and images.shape[1] <= 4 < min(images.shape[2:]):
        raise UserError(
            f"{name}: an array of shape {list(images.shape)}, which looks like [N, C, H, W]; expected [N, H, W, C]. "
            "Save array.transpose(0, 2, 3, 1)"
        )
    if images.dtype.kind not in "uifb":
        raise UserError(f"{name}: holds {images.dtype}; expected uint8, or numbers with dataset.value_range=[LOW,HIGH]")
    if value_range is None:
        natural = NATURAL_RANGES.get(images.dtype.str[1:])
        if natural is None:
            first = np.asarray(images[:64], dtype=np.float64)
            raise UserError(
                f"{name}: {images.dtype} values, whose range nothing says; the first images hold {first.min():g} to "
                f"{first.max():g}. State what black and white are, such as dataset.value_range=[0,1] or [-1,1]"
            )
        return natural
    numbers = [value for value in value_range if isinstance(value, int | float)]
    if len(numbers) != 2 or len(value_range) != 2 or not numbers[0] < numbers[1]:
        raise UserError(f"dataset.value_range={list(value_range)}: expected [LOW,HIGH], such as [0,1]")
    return float(numbers[0]), float(numbers[1])


def numbered_ids(count: int, split: str = "train") -> list[str]:
    """`train/00042`, with as many digits as sort them."""
    digits = max(5, len(str(count - 1)))
    return [f"{split}/{row:0{digits}d}" for row in range(count)]
