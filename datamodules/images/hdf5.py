"""Images in one array of an HDF5 file, which are read one by one and never whole."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.arrays import IMAGE_KEYS, LABELS_OF, ArrayReader, refuse_other_layouts, span_of
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.label_files import labels_from_array
from datamodules.images.reader import Labels
from datamodules.packages import needed
from datamodules.plain_files import chosen, refuse_other_kinds
from storage.bounds import SMALL
from storage.errors import UserError, WrongPathError

HDF5 = b"\x89HDF\r\n\x1a\n"
MOST_DEFLATED = 1032  # bytes that one of deflate's may become


def open_hdf5(settings: DatasetSettings) -> ArrayReader:
    """Images of the array `dataset.image_key`, and labels of `dataset.label_key` or of the array that goes with it.

    Raises:
        UserError: h5py is not installed, no such file or array, or one that is not of images.
    """
    path = Path(str(settings.path))
    if not path.is_file():
        raise WrongPathError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}.", "FILE.h5")
    refuse_other_kinds(path, HDF5, "an HDF5 file")
    keys = arrays_in(path)
    image_key = chosen(path, keys, settings.image_key, IMAGE_KEYS, "array", "Set dataset.image_key=NAME.")
    label_key = settings.label_key or LABELS_OF.get(image_key)
    if settings.label_key:
        chosen(path, keys, settings.label_key, (), "array", "Set dataset.label_key=NAME.")
    name = f"{path}::{image_key}"
    images = array_in(path, image_key)
    labels = None
    if settings.labels is None and label_key in keys:
        labels = labels_in(path, str(label_key), images.shape[:1])
    open_file = partial(array_in, key=image_key)
    try:
        cut = settings.window is not None
        reader = ArrayReader(path, span_of(settings), name, labels, key=image_key, cut=cut, open_file=open_file)
    except OSError as error:  # a filter that is missing, or damaged first images
        raise UserError(f"{name}: cannot be read ({error}). Copy or make it again.") from error
    refuse_other_layouts(name, images.shape, settings.channels)
    return reader


def arrays_in(path: Path) -> list[str]:
    """The names of the arrays in a file, `group/name` in groups; not of empty ones, and of links to other files."""
    keys = list[str]()
    try:
        with opened(path) as file:
            file.visititems(lambda name, item: keys.append(name) if getattr(item, "shape", None) is not None else None)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}). Copy or make it again.") from error
    return keys


def array_in(path: Path, key: str) -> Any:
    """An array in a file, of which nothing was read yet.

    Raises:
        UserError: its numbers lie in other files, or are more than the file can hold.
    """
    try:
        array = opened(path)[key]
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}::{key}: cannot be read ({error}). Copy or make it again.") from error
    if array.is_virtual or array.external or array.file.filename != str(path):
        raise UserError(f"{path}::{key}: its numbers lie in other files. Copy it into one: h5repack {path} ONE.h5")
    if array.dtype.hasobject or array.nbytes > most_bytes(path):
        promised = f"{array.nbytes:,} bytes in a file of {path.stat().st_size:,}"
        what = "Python objects or text" if array.dtype.hasobject else promised
        raise UserError(f"{path}::{key}: an array {list(array.shape)} of {what}; numbers that lie there are expected.")
    return array


def most_bytes(path: Path) -> int:
    """Bytes that an array in a file of this size can have."""
    return max(SMALL, MOST_DEFLATED * path.stat().st_size)


def labels_in(path: Path, key: str, shape: tuple[int, ...]) -> Labels:
    """Labels from one array of the file, numbers or texts; none, with a note, where it does not go with the images."""
    try:
        array = opened(path)[key]
        if array.shape not in (shape, (*shape, 1)) or array.nbytes > most_bytes(path):
            found = f"an array {list(array.shape)} for {list(shape)} images, {array.nbytes:,} bytes"
            return Labels(None, note=f"{path}::{key}: {found}; one number or name for each image is expected")
        values = np.array(array.asstr("utf-8")[:], str) if array.dtype.kind in "OS" else array[:]
        return labels_from_array(f"{path}::{key}", values, len(values))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        return Labels(None, note=f"{path}::{key}: cannot be read ({error})")


def opened(path: Path) -> Any:
    """The file. Raises OSError where it is damaged."""
    return needed("h5py", "an HDF5 file").File(path, "r", locking="best-effort")  # some file systems know no locks
