"""Labels of images: from the names of their folders, a CSV or `.npy` file, or EDM's `dataset.json`.

They serve `clustering=labels` and the scores; nothing else learns from them. So what a file says never stands in the
way of the images: where it is no label of each image, there are none, and a note says why.
"""

import json
from collections.abc import Sequence, Set
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.image_names import same_text, spelled_as
from datamodules.images.label_values import SHOWN, labels_from_values, numbered
from datamodules.images.reader import Labels
from datamodules.plain_files import TABLES, column_of, load_npy, read_csv
from storage.bounds import refuse_large
from storage.errors import UserError

LABELS_FILE = "dataset.json"
FORMAT = '{"labels": [["image.png", 3], ...]}'


def labels_from_folders(path: str, ids: list[str], folders: Set[str], shared: list[str] | None = None) -> Labels:
    """The class of an image is the first folder in which the ids differ: `images/cat/1.png` and `images/dog/7.png`.

    Args:
        path: of the tree, for messages.
        ids, folders: of the images, and all that are there.
        shared: the folders around the classes, where they are known.

    Raises:
        UserError: an image outside of them, or one of the `folders` beside them that holds no image.
    """
    places = [image_id.split("/")[:-1] for image_id in ids]
    common = commonprefix(places) if shared is None else shared  # noqa: RUF071 (of lists of folders, not of texts)
    depth = len(common)
    loose = next((image_id for image_id, parts in zip(ids, places, strict=True) if len(parts) <= depth), None)
    if loose is not None:
        raise UserError(
            f"{path}: dataset.labels=folders, but {loose!r} lies in no class folder. One folder per class is expected, "
            "such as cat/1.png and dog/2.png. Or set dataset.labels=FILE.csv, with the columns id and label."
        )
    labels = numbered([parts[depth] for parts in places], path)
    beside = (folder.split("/") for folder in folders)
    classes = {parts[depth] for parts in beside if len(parts) == depth + 1 and parts[:depth] == common}
    empty = sorted(classes - set(labels.class_names or []))
    if empty:
        raise UserError(
            f"{path}: dataset.labels=folders, but the class folder {empty[0]!r} holds no image ({len(empty)} such). "
            "Put its images there, or remove the folder."
        )
    return labels


def read_label_file(path: Path, ids: list[str], columns: Sequence[str] | None = None) -> Labels:
    """Labels from a table with the columns `id` and `label` (numbers or names), a `.json` like EDM's, or an `.npy`.

    Args:
        columns: what a table calls the two, where not so.

    Raises:
        UserError: there is no such file, it cannot be read, or it is about other images.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"dataset.labels={path}: {what}. Set dataset.labels=folders or dataset.labels=FILE.csv.")
    suffix = path.suffix.lower()
    if columns is not None and suffix not in TABLES:
        kinds = " or ".join(TABLES)
        raise UserError(f"dataset.label_columns={list(columns)}: {path} is no table, {kinds}. Leave it out.")
    if suffix == ".npy":
        return labels_from_array(path, load_npy(path), len(ids))
    if suffix == ".json":
        known, values = pairs_in_json(path, read_labels(path, len(ids)))
        if not known:
            raise UserError(f"{path}: says that there are no labels (null).")
        return matched_labels(path, known, values, ids)
    if suffix not in TABLES:
        raise UserError(f"dataset.labels={path}: a file of labels ends in {', '.join(TABLES)}, .json or .npy.")
    table = read_csv(path)
    id_name, label_name = columns or ("id", "label")
    of_ids, of_labels = column_of(table, id_name), column_of(table, label_name)
    if of_ids is None or of_labels is None:
        given = ",".join(table) or "numbers alone"
        if not {*table}.isdisjoint(spelled_as(list(table), ids)):
            raise UserError(f"{path}: its first line is {given!r}, an image and no heading. Add the line id,label.")
        example = ",".join(list(table)[:2] if len(table) > 1 else ["image_id", "dx"])
        raise UserError(
            f"{path}: the columns {id_name},{label_name} are expected; found {given!r}. Name those of the ids and of "
            f"the labels: dataset.label_columns=[{example}]."
        )
    return matched_labels(path, table[of_ids], table[of_labels], ids)


def most_labels(count: int) -> int:
    """Bytes that a JSON file of the labels of `count` images, and of as many others, can have."""
    return (1 << 24) + count * 2048


def read_labels(path: Path, count: int) -> bytes:
    """The bytes of such a file. Raises `UserError` where it is larger, or cannot be read."""
    refuse_large(path, most_labels(count), f"labels of {count:,} images")
    return path.read_bytes()


def labels_in_dataset_json(path: Path, text: bytes, ids: list[str]) -> Labels | None:
    """Labels from the text of the `dataset.json` that lies with the images; None where it says null.

    Raises:
        UserError: the file is damaged.
    """
    try:
        known, values = pairs_in_json(path, text)
        return matched_labels(path, known, values, ids) if known else None
    except ForeignFileError as error:
        return Labels(None, note=str(error))


class ForeignFileError(UserError):
    """A file that says nothing of these images."""


def pairs_in_json(path: Path, text: bytes) -> tuple[list[str], list[Any]]:
    """Image ids and their labels, as EDM writes them; none where it says null.

    Raises:
        ForeignFileError: it holds something else.
        UserError: it is no JSON.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: expected {FORMAT} ({type(error).__name__}: {error}). Set dataset.labels=none to leave it out."
        ) from error
    pairs = content.get("labels", ()) if isinstance(content, dict) else ()
    if pairs is None:
        return [], []
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ForeignFileError(f"{path}: holds no labels as EDM writes them, {FORMAT}")
    return [str(image_id) for image_id, _ in pairs], [label for _, label in pairs]


def matched_labels(path: Path, known: Sequence[str], values: Sequence[Any], ids: list[str]) -> Labels:
    """Labels for the images `ids`, from the `values` of the images `known`; an image that is not among them has none.

    Raises:
        ForeignFileError: none is among them, or it cannot be told which.
    """
    image_names = spelled(path, known, ids)
    wanted, by_name = set(image_names), dict[str, Any]()
    for name, value in zip(map(same_text, known), values, strict=True):
        if name in wanted and repr(before := by_name.setdefault(name, value)) != repr(value):
            shown = " and ".join(repr(one)[:SHOWN] for one in (before, value))
            why = f"{name!r} has two labels, {shown}; one for each image is expected"
            return Labels(None, note=f"{path}: {why}")
    if not by_name:
        raise ForeignFileError(unlabelled(path, ids, known, len(ids)))
    return labels_from_values([by_name.get(name) for name in image_names], str(path))


def in_order(path: Path, known: list[str], labels: list[Any], ids: list[str]) -> list[Any]:
    """The label of each image of `ids`, from the `labels` of the images `known`.

    Raises:
        UserError: an image without a label, or one with two different ones.
    """
    image_names = spelled(path, known, ids)
    by_name: dict[str, Any] = {}
    for name, label in zip(map(same_text, known), labels, strict=True):
        if (before := by_name.setdefault(name, label)) != label:
            raise UserError(f"{path}: {name!r} has two labels, {before!r} and {label!r}.")
    lacking = [image_id for image_id, name in zip(ids, image_names, strict=True) if name not in by_name]
    if lacking:
        raise UserError(unlabelled(path, lacking, known, len(ids)))
    return [by_name[name] for name in image_names]


def spelled(path: Path, known: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The ids of images as a file spells them. Raises `ForeignFileError` where it cannot be told which is which."""
    try:
        return spelled_as(known, ids)
    except UserError as error:
        raise ForeignFileError(f"{path}: {error}.") from error


def unlabelled(path: Path, lacking: Sequence[str], known: Sequence[str], count: int) -> str:
    """The message about images that a file does not know."""
    others = f"; the labels are for {known[0]!r} and {len(known) - 1:,} more" if known else ""
    return (
        f"{path}: {len(lacking)} of {count} images have no label, the first is {lacking[0]!r}{others}. "
        "An id is the image's path below the folder, or its name in the ZIP."
    )


def labels_from_array(where: Path | str, values: np.ndarray, count: int) -> Labels:
    """Labels of `count` images from an array [N] or [N, 1] of numbers or names.

    Raises:
        UserError: it is as long as another number of images.
    """
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim == 0 or len(values) != count:
        raise UserError(f"{where}: labels of shape {list(values.shape)} for {count:,} images; expected [{count}].")
    if values.ndim > 1 or values.dtype.kind not in "biufUS":
        kind = f"an array of shape {list(values.shape)} ({values.dtype})"
        return Labels(None, note=f"{where}: holds {kind}; one number or name for each image is expected")
    return labels_from_values(values.tolist(), str(where))
