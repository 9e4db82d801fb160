"""Images of a Hugging Face `datasets` data set: an id of the hub, or a folder that holds one. No code of it is run."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.images.arrays import numbered_ids
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError, load_image, open_image
from datamodules.images.label_files import from_array
from datamodules.images.reader import Labels, Reader
from storage.digests import file_digests
from storage.errors import UserError

LABEL_COLUMNS = ("label", "labels")


class HuggingFaceReader(Reader):
    """Images of one column of a data set, as the bytes that are stored there or in the files that it names.

    Args:
        dataset: a `datasets.Dataset` whose column `image_key` has the feature `Image`.
    """

    def __init__(self, dataset: Any, image_key: str, split: str, labels: Labels | None) -> None:
        import datasets

        super().__init__("hf", labels)
        self._images = dataset.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
        self._key = image_key
        self.ids = numbered_ids(len(dataset), split)

    def read(self, row: int) -> Image.Image:
        return load_image(*self._content(row))

    def read_header(self, row: int) -> Image.Image:
        return open_image(*self._content(row))

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """Digests of the Arrow files that hold the images, or of the images' own files."""
        import pyarrow.compute

        chunks = self._images.data.column(self._key).chunks
        lacking = sum(pyarrow.compute.struct_field(chunk, "bytes").null_count for chunk in chunks)
        arrow_files = [file["filename"] for file in self._images.cache_files]
        if arrow_files and lacking == 0:
            return file_digests(arrow_files, cache_dir)
        images = [self._images[row][self._key] for row in rows] if lacking == len(self.ids) else []
        if images and all(image is not None and Path(image["path"]).is_file() for image in images):
            return file_digests((image["path"] for image in images), cache_dir)
        return self.image_digests(rows, cache_dir)

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        digests = []
        for row in rows:
            try:
                digests.append(hashlib.sha256(self._content(row)[0]).hexdigest())
            except UnusableImageError as error:
                digests.append(str(error))
        return digests

    def state(self) -> str:
        return hashlib.sha256(repr((self._images._fingerprint, self.ids[0], len(self.ids))).encode()).hexdigest()

    def _content(self, row: int) -> tuple[bytes, str]:
        """The bytes of an image file, and its name."""
        image = self._images[row][self._key]
        if image is None:
            raise UnusableImageError("no image in this row of the data set")
        if image["bytes"] is not None:
            return image["bytes"], image["path"] or ""
        try:
            return Path(image["path"]).read_bytes(), image["path"]
        except OSError as error:
            raise UnusableImageError(f"{image['path']} cannot be read ({error.strerror})") from error


def open_hugging_face(settings: DatasetSettings) -> HuggingFaceReader:
    """Images and labels of one split of an id on the hub (`ylecun/mnist`), of a folder that `save_to_disk` wrote, or of
    a folder of images, Parquet, …; without keys of the only image column, and of `label`, `labels` or the only column
    of classes.

    Raises:
        UserError: `datasets` is not installed, or there is no such data set, split or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("dataset=hf needs the package `datasets`. Run: pip install 'datasets>=4.0'") from error
    path, label_key = str(settings.path), settings.label_key
    dataset = load_split(datasets, settings)
    features = dataset.features

    def columns(kind: type) -> list[str]:
        return [name for name, feature in features.items() if isinstance(feature, kind)]

    image_key = choose_column(path, settings.image_key, columns(datasets.Image), features)
    if len(dataset) == 0:
        raise UserError(f"dataset.path={path}: the split {settings.split!r} is empty.")
    if label_key is None:
        classes = columns(datasets.ClassLabel)
        label_key = next(
            (name for name in LABEL_COLUMNS if name in features), classes[0] if len(classes) == 1 else None
        )
    elif label_key not in features:
        raise UserError(f"dataset.label_key={label_key}: no such column in {path}; there are {', '.join(features)}.")
    labels = None
    if label_key is not None:
        labels = from_array(Path(path) / label_key, np.asarray(dataset.with_format("numpy")[label_key]), len(dataset))
        if isinstance(features[label_key], datasets.ClassLabel):
            labels = Labels(labels.values, list(features[label_key].names))
    return HuggingFaceReader(dataset, image_key, settings.split, labels)


def load_split(datasets: Any, settings: DatasetSettings) -> Any:
    """One split as a `datasets.Dataset`."""
    path, split = str(settings.path), settings.split
    saved = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        dataset = (
            datasets.load_from_disk(path)
            if saved
            else datasets.load_dataset(path, name=settings.config_name, split=split, revision=settings.revision)
        )
    except Exception as error:  # dozens of kinds, of this library, of the hub's and of file formats
        hint = "" if Path(path).exists() else " Where there is no network, give a folder that save_to_disk wrote."
        raise UserError(
            f"dataset.path={path}, dataset.split={split}: the library `datasets` cannot load this "
            f"({type(error).__name__}: {str(error).strip() or 'no reason given'}).{hint}"
        ) from error
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if split not in dataset:
        names = list(dataset)
        raise UserError(f"{path}: no split {split!r}; there are {', '.join(names)}. Set dataset.split={names[0]}.")
    return dataset[split]


def choose_column(path: str, key: str | None, image_columns: list[str], columns: Any) -> str:
    """The image column that was asked for, or the only one there is."""
    if key in image_columns or (key is None and len(image_columns) == 1):
        return key or image_columns[0]
    problem = f"dataset.image_key={key} is none of its image columns" if key else "which column holds the images?"
    raise UserError(
        f"{path}: {problem}. Image columns: {', '.join(image_columns) or 'none'}; all columns: {', '.join(columns)}. "
        f"Set dataset.image_key={image_columns[0] if image_columns else 'NAME'}."
    )
