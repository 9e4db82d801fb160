"""Labels of images: from the names of their folders, a CSV or `.npy` file, or EDM's `dataset.json`.

They serve `clustering=labels` and the scores; nothing else learns from them.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.images.image_files import LABELS_FILE, FolderReader, ZipReader, same_text
from storage.errors import UserError

FOLDERS = "folders"


@dataclass(frozen=True)
class Labels:
    """int64 [N] in 0…classes−1, and the classes' names where they have some."""

    values: Tensor
    class_names: list[str] | None = None


def labels_of_files(setting: str | None, path: Path, reader: FolderReader | ZipReader) -> Labels | None:
    """Labels of a folder or ZIP: as `dataset.labels` says, else from its `dataset.json`, else None."""
    if setting == FOLDERS:
        return labels_from_folders(path, reader.ids, reader.folders)
    if setting is not None:
        return read_label_file(Path(setting), reader.ids)
    text = reader.labels_text()
    return None if text is None else parse_dataset_json(path / LABELS_FILE, text, reader.ids)


def labels_from_folders(path: Path, ids: list[str], folders: set[str]) -> Labels:
    """The class of an image is the first folder in which the ids differ: `train/cat/1.png` and `train/dog/7.png`.

    Raises:
        UserError: an image outside of them, or one of the `folders` beside them that holds no image.
    """
    places = [image_id.split("/")[:-1] for image_id in ids]
    shared = 0
    while all(len(parts) > shared and parts[shared] == places[0][shared] for parts in places):
        shared += 1
    loose = next((image_id for image_id, parts in zip(ids, places, strict=True) if len(parts) <= shared), None)
    if loose is not None:
        raise UserError(
            f"{path}: dataset.labels=folders, but {loose!r} lies in no class folder. Expected one folder per class, "
            "such as cat/1.png and dog/2.png; or a CSV file with the columns id and label: dataset.labels=FILE.csv"
        )
    labels = from_names([parts[shared] for parts in places])
    beside = (folder.split("/") for folder in folders)
    classes = {parts[shared] for parts in beside if len(parts) == shared + 1 and parts[:shared] == places[0][:shared]}
    empty = sorted(classes - set(labels.class_names or []))
    if empty:
        raise UserError(
            f"{path}: dataset.labels=folders, but the class folder {empty[0]!r} holds no image ({len(empty)} such). "
            "Put its images there, or remove the folder."
        )
    return labels


def read_label_file(path: Path, ids: list[str]) -> Labels:
    """Labels from a CSV with the columns `id` and `label` (numbers or names), a `.json` like EDM's, or an `.npy`."""
    if not path.is_file():
        raise UserError(f"dataset.labels={path}: no such file. Type dataset.labels=folders or dataset.labels=FILE.csv")
    if path.suffix == ".npy":
        return from_array(path, load_numbers(path), len(ids))
    if path.suffix == ".json":
        labels = parse_dataset_json(path, path.read_bytes(), ids)
        if labels is None:
            raise UserError(f"{path}: says that there are no labels (null)")
        return labels
    if path.suffix != ".csv":
        raise UserError(f"dataset.labels={path}: files of labels end in .csv, .json or .npy")
    texts = in_order(path, read_csv(path), ids)
    if all(text.lstrip("-").isdecimal() for text in texts):
        return Labels(whole_numbers(path, [int(text) for text in texts], ids))
    return from_names(texts)


def read_csv(path: Path) -> list[tuple[str, Any]]:
    """The rows of a CSV file as (id, label)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    heading = [name.strip() for name in rows[0]] if rows else []
    if not {"id", "label"} <= set(heading):
        raise UserError(
            f"{path}: expected a first line with the columns id,label; found {','.join(heading) or 'none'!r}"
        )
    short = next((number for number, row in enumerate(rows, 1) if len(row) != len(heading)), None)
    if short is not None:
        raise UserError(f"{path}: row {short} has {len(rows[short - 1])} columns, the first line {len(heading)}")
    id_column, label_column = heading.index("id"), heading.index("label")
    pairs = [(row[id_column], row[label_column].strip()) for row in rows[1:]]
    unlabelled = next((image_id for image_id, label in pairs if not label), None)
    if unlabelled is not None:
        raise UserError(f"{path}: the label of {unlabelled!r} is empty")
    return pairs


def parse_dataset_json(path: Path, text: bytes, ids: list[str]) -> Labels | None:
    """Labels from the text of EDM's `dataset.json`; None where it says null."""
    try:
        pairs = json.loads(text)["labels"]
        pairs = None if pairs is None else [(str(image_id), label) for image_id, label in pairs]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: expected {{"labels": [["image.png", 3], ...]}} ({type(error).__name__}: {error})'
        ) from error
    return None if pairs is None else Labels(whole_numbers(path, in_order(path, pairs, ids), ids))


def in_order(path: Path, pairs: list[tuple[str, Any]], ids: list[str]) -> list[Any]:
    """The label of each image, matched by id.

    Raises:
        UserError: an image without a label, or one with two different ones.
    """
    by_id: dict[str, Any] = {}
    for image_id, label in pairs:
        if by_id.setdefault(image_id, label) != label:
            raise UserError(f"{path}: {image_id!r} has two labels, {by_id[image_id]!r} and {label!r}")
    unlabelled = [image_id for image_id in ids if image_id not in by_id]
    if unlabelled:  # perhaps only for an `ü` that one side writes as `u` and two dots
        by_id = {same_text(image_id): label for image_id, label in pairs}
        unlabelled = [image_id for image_id in ids if same_text(image_id) not in by_id]
        if unlabelled:
            known = f"; the labels are for {pairs[0][0]!r} and {len(pairs) - 1:,} more" if pairs else ""
            raise UserError(
                f"{path}: {len(unlabelled)} of {len(ids)} images have no label, the first is {unlabelled[0]!r}{known}. "
                "An id is the image's path below the folder, or its name in the ZIP."
            )
        return [by_id[same_text(image_id)] for image_id in ids]
    return [by_id[image_id] for image_id in ids]


def whole_numbers(path: Path, labels: list[Any], ids: list[str]) -> Tensor:
    """`labels` as int64 [N], if they are whole numbers from 0 up."""
    for image_id, label in zip(ids, labels, strict=True):
        if type(label) is not int or not 0 <= label < 2**31:
            raise UserError(f"{path}: the label of {image_id!r} is {label!r}; expected an integer from 0 up")
    return torch.tensor(labels, dtype=torch.int64)


def from_names(names: list[str]) -> Labels:
    """Classes numbered by their sorted names."""
    class_names = sorted(set(names))
    numbers = {name: number for number, name in enumerate(class_names)}
    return Labels(torch.tensor([numbers[name] for name in names], dtype=torch.int64), class_names)


def from_array(path: Path, values: np.ndarray, count: int) -> Labels:
    """Labels from an array [N] or [N, 1] of whole numbers, or of names."""
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (count,):
        raise UserError(f"{path}: labels of shape {list(values.shape)} for {count:,} images; expected [{count}]")
    if values.dtype.kind == "U":
        return from_names(values.tolist())
    if values.dtype.kind not in "iub" or (count and values.min() < 0):
        raise UserError(f"{path}: labels of type {values.dtype}; expected integers from 0 up, or names")
    return Labels(torch.from_numpy(values.astype(np.int64)))


def load_numbers(path: Path) -> np.ndarray:
    """An `.npy` file, read without running code from it."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a plain array ({error})") from error
