"""Labels of images: from the names of their folders, a CSV or `.npy` file, or EDM's `dataset.json`.

They serve `clustering=labels` and the scores; nothing else learns from them.
"""

import json
import unicodedata
from collections.abc import Set
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.images.reader import Labels
from datamodules.plain_files import load_npy, read_csv, whole_numbers
from storage.errors import UserError

LABELS_FILE = "dataset.json"


def labels_from_folders(path: str, ids: list[str], folders: Set[str]) -> Labels:
    """The class of an image is the first folder in which the ids differ: `train/cat/1.png` and `train/dog/7.png`.

    Raises:
        UserError: an image outside of them, or one of the `folders` beside them that holds no image.
    """
    places = [image_id.split("/")[:-1] for image_id in ids]
    common = commonprefix(places)  # noqa: RUF071 (of lists of folders, not of texts)
    shared = len(common)
    loose = next((image_id for image_id, parts in zip(ids, places, strict=True) if len(parts) <= shared), None)
    if loose is not None:
        raise UserError(
            f"{path}: dataset.labels=folders, but {loose!r} lies in no class folder. One folder per class is expected, "
            "such as cat/1.png and dog/2.png. Or set dataset.labels=FILE.csv, with the columns id and label."
        )
    labels = from_names([parts[shared] for parts in places])
    beside = (folder.split("/") for folder in folders)
    classes = {parts[shared] for parts in beside if len(parts) == shared + 1 and parts[:shared] == common}
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
        raise UserError(f"dataset.labels={path}: no such file. Set dataset.labels=folders or dataset.labels=FILE.csv.")
    if path.suffix == ".npy":
        return from_array(path, load_npy(path), len(ids))
    if path.suffix == ".json":
        labels = parse_dataset_json(path, path.read_bytes(), ids)
        if labels is None:
            raise UserError(f"{path}: says that there are no labels (null).")
        return labels
    if path.suffix != ".csv":
        raise UserError(f"dataset.labels={path}: a file of labels ends in .csv, .json or .npy.")
    columns = read_csv(path)
    if not {"id", "label"} <= columns.keys():
        raise UserError(f"{path}: the columns id,label are expected; found {','.join(columns) or 'numbers alone'!r}.")
    given = [text.strip() for text in columns["label"]]
    if "" in given:
        raise UserError(f"{path}: the label of {columns['id'][given.index('')]!r} is empty.")
    texts = in_order(path, columns["id"], given, ids)
    if all(text.lstrip("-").isdecimal() for text in texts):
        return Labels(whole_numbers(path, [int(text) for text in texts], "labels"))
    return from_names(texts)


def parse_dataset_json(path: Path, text: bytes, ids: list[str]) -> Labels | None:
    """Labels from the text of EDM's `dataset.json`; None where it says null."""
    try:
        pairs = json.loads(text)["labels"]
        if pairs is None:
            return None
        known, labels = [str(image_id) for image_id, _ in pairs], [label for _, label in pairs]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: expected {{"labels": [["image.png", 3], ...]}} ({type(error).__name__}: {error}).'
        ) from error
    return Labels(whole_numbers(path, in_order(path, known, labels, ids), "labels"))


def in_order(path: Path, known: list[str], labels: list[Any], ids: list[str]) -> list[Any]:
    """The label of each image of `ids`, from the `labels` of the images `known`.

    Raises:
        UserError: an image without a label, or one with two different ones.
    """
    by_id: dict[str, Any] = {}
    for image_id, label in zip(known, labels, strict=True):
        if (before := by_id.setdefault(same_text(image_id), label)) != label:
            raise UserError(f"{path}: {image_id!r} has two labels, {before!r} and {label!r}.")
    unlabelled = [image_id for image_id in ids if same_text(image_id) not in by_id]
    if unlabelled:
        others = f"; the labels are for {known[0]!r} and {len(known) - 1:,} more" if known else ""
        raise UserError(
            f"{path}: {len(unlabelled)} of {len(ids)} images have no label, the first is {unlabelled[0]!r}{others}. "
            "An id is the image's path below the folder, or its name in the ZIP."
        )
    return [by_id[same_text(image_id)] for image_id in ids]


def same_text(name: str) -> str:
    """A name in the one Unicode form that `ü` has, composed: macOS stores it as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


def from_names(names: list[str]) -> Labels:
    """Classes numbered by their sorted names."""
    class_names, numbers = np.unique(names, return_inverse=True)
    return Labels(torch.from_numpy(numbers), class_names.tolist())


def from_array(path: Path, values: np.ndarray, count: int) -> Labels:
    """Labels from an array [N] or [N, 1] of whole numbers, or of names."""
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (count,):
        raise UserError(f"{path}: labels of shape {list(values.shape)} for {count:,} images; expected [{count}].")
    return from_names(values.tolist()) if values.dtype.kind == "U" else Labels(whole_numbers(path, values, "labels"))
