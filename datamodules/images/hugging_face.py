"""Images of a Hugging Face `datasets` data set: an id of the hub, or a folder that holds one. No code of it is run."""

from pathlib import Path
from typing import Any

import torch

from datamodules.images.arrays import numbered_ids
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError
from datamodules.images.label_values import labels_from_values
from datamodules.images.own_output import own_output_with
from datamodules.images.reader import UNLABELLED, EncodedReader, Labels
from datamodules.images.split_folders import ALL
from datamodules.images.unchanged import State, refuse_changed, state_of
from datamodules.packages import needed
from storage.digests import file_digests
from storage.errors import UserError
from storage.fingerprints import fingerprint

LABEL_COLUMNS = ("label", "labels", "cls")  # the last in shards of WebDataset
FILES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # what reads them; a folder tells it itself


class HuggingFaceReader(EncodedReader):
    """Images of one column of a data set, as the bytes that are stored there or in the files that it names.

    Args:
        dataset: a `datasets.Dataset` whose column `image_key` has the feature `Image`.
    """

    def __init__(self, dataset: Any, image_key: str, split: str, labels: Labels | None) -> None:
        import datasets

        super().__init__("hf", labels)
        self._images = dataset.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
        self._key = image_key
        self._tables = {file["filename"]: state_of(file["filename"]) for file in self._images.cache_files}
        self._beside: dict[int, State] = {}  # of files that the table names, from when they are listed or first read
        self.ids = numbered_ids(len(dataset), split)

    def file(self, row: int) -> tuple[Path | bytes, str]:
        image = self._images[row][self._key]
        if image is None or image["bytes"] is image["path"] is None:
            raise UnusableImageError("no image in this row of the data set")
        content = image["bytes"]
        if content is None:
            self._beside.setdefault(row, state_of(image["path"]))
        return Path(image["path"]) if content is None else content, image["path"] or ""

    def files_beside(self) -> list[str]:
        """The files that the table names instead of holding their bytes."""
        import pyarrow.compute

        images = self._images.data.column(self._key).combine_chunks()
        lacking = images.filter(pyarrow.compute.struct_field(images, "bytes").is_null())
        return [path for path in pyarrow.compute.struct_field(lacking, "path").to_pylist() if path is not None]

    def refuse_changed(self, row: int) -> None:
        for file, state in self._tables.items():
            refuse_changed(file, state, file)
        if row in self._beside:
            path = self._images[row][self._key]["path"]
            refuse_changed(path, self._beside[row], path)

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
            listed = {row: state_of(image["path"]) for row, image in zip(rows, images, strict=True)}
            self._beside = listed | self._beside
            return file_digests((image["path"] for image in images), cache_dir)
        return self.image_digests(rows, cache_dir)

    def state(self) -> str:
        return fingerprint([self._images._fingerprint, self.ids[0], len(self.ids)])


def open_hugging_face(settings: DatasetSettings) -> HuggingFaceReader:
    """Images and labels of one split of an id on the hub (`ylecun/mnist`), of a folder that `save_to_disk` wrote, of a
    folder of images, Parquet files, WebDataset's shards …, or of one such file; without keys of the only image column,
    and of `label`, `labels`, `cls` or the only column of classes.

    Raises:
        UserError: `datasets` is not installed, or there is no such data set, split or column.
    """
    datasets = needed("datasets", "dataset=hf", "'datasets>=4.0'")
    path = str(settings.path)
    dataset = load_split(datasets, settings)
    if len(dataset) == 0:
        raise UserError(f"dataset.path={path}: the split {settings.split!r} is empty.")
    features = dataset.features
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [name for name, feature in features.items() if holds_bytes(feature)]
    if not pictures or settings.image_key in encoded:  # as Parquet files have them that another library wrote
        pictures = encoded
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name in LABEL_COLUMNS if name in features] or (classes if len(classes) == 1 else [])
    image_key = choose_column(path, "image_key", settings.image_key, pictures, features)
    label_key = settings.label_key or next(iter(usual), None)
    labels = None
    if label_key is not None:
        choose_column(path, "label_key", label_key, list(features), features)
        labels = labels_in_column(dataset, label_key) if settings.labels is None else None
    elif classes:
        labels = Labels(
            None, note=f"several columns of classes, {', '.join(classes)}; set dataset.label_key={classes[0]}"
        )
    reader = HuggingFaceReader(dataset, image_key, settings.split, labels)
    if own := own_output_with(reader.files_beside(), Path(path).resolve()):
        raise UserError(
            f"{path}: {own} is a run or a cache of this project, and `datasets` takes its pictures for images. "
            "For a folder of images set dataset=folder, which leaves them out; else move it."
        )
    return reader


def labels_in_column(dataset: Any, key: str) -> Labels:
    """Labels from a column of classes, numbers or names."""
    import datasets

    feature, where = dataset.features[key], f"column {key!r}"
    if not isinstance(feature, datasets.ClassLabel | datasets.Value):
        kind = "several values for an image" if isinstance(feature, list) else type(feature).__name__
        return Labels(None, note=f"{where}: holds {kind}; one number or name for each image is expected")
    values = dataset.select_columns([key])[:][key]
    if not isinstance(feature, datasets.ClassLabel):
        return labels_from_values(values, where)
    numbers = torch.tensor([UNLABELLED if value is None else value for value in values], dtype=torch.int64)
    return Labels(numbers, list(feature.names))


def load_split(datasets: Any, settings: DatasetSettings) -> Any:
    """One split as a `datasets.Dataset`."""
    path, split = str(settings.path), settings.split
    words: dict[str, Any] = {"path": path, "name": settings.config_name, "revision": settings.revision}
    if Path(path).is_file():
        kind = FILES.get(Path(path).suffix.lower())
        if kind is None:
            known = ", ".join(FILES)
            raise UserError(f"{path}: a file, and none of {known}. Set dataset.path to the folder that holds it.")
        words = {"path": kind, "data_files": {"train": path}}
    saved = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        dataset = datasets.load_from_disk(path) if saved else datasets.load_dataset(**words, split=split)
    except Exception as error:  # dozens of kinds, of this library, of the hub's and of file formats
        hint = "" if Path(path).exists() else " Where there is no network, give a folder that save_to_disk wrote."
        raise UserError(
            f"dataset.path={path}, dataset.split={split}: the library `datasets` cannot load this "
            f"({type(error).__name__}: {str(error).strip() or 'no reason given'}).{hint}"
        ) from error
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if split == ALL:
        return datasets.concatenate_datasets(list(dataset.values()))
    if split not in dataset:
        names = list(dataset)
        raise UserError(f"{path}: no split {split!r}; there are {', '.join(names)}. Set dataset.split={names[0]}.")
    return dataset[split]


def holds_bytes(feature: Any) -> bool:
    """Whether a column holds bytes, or bytes and a path, without saying that they are images."""
    if isinstance(feature, dict):
        return {"bytes"} <= feature.keys() <= {"bytes", "path"} and holds_bytes(feature["bytes"])
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def choose_column(path: str, setting: str, key: str | None, fitting: list[str], columns: Any) -> str:
    """The column that was asked for, or the only fitting one."""
    if key in fitting or (key is None and len(fitting) == 1):
        return key or fitting[0]
    problem = f"dataset.{setting}={key}: no such column" if key else "which column holds the images?"
    if key in columns:
        problem = f"dataset.{setting}={key}: no column of images or of encoded images"
    elif not fitting:
        problem = "no column of images or of encoded images (PNG, JPEG, … as bytes)"
    said = [f"{name} ({getattr(feature, 'dtype', type(feature).__name__)})" for name, feature in columns.items()]
    advice = f" Set dataset.{setting}={fitting[0]}." if fitting else ""
    raise UserError(f"{path}: {problem}; columns: {', '.join(said)}.{advice}")
