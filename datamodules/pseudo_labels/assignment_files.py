"""Cluster ids in files of other programs (`.pt`, `.npy`, `.csv`, `.safetensors`), read without running their code."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.images.label_files import in_order, matched_labels
from datamodules.images.label_values import MISSING, labels_from_values
from datamodules.images.reader import Labels
from datamodules.plain_files import TABLES, chosen, column_of, contents_of, is_number, read_csv, whole_numbers
from storage.artifacts import HEADER_KEY
from storage.errors import UserError

LABELS_PREFIX = "labels."  # keys of true labels that may lie beside the cluster ids
NOISE = -1  # the cluster id of an image that is in none, as HDBSCAN writes it


class ClusterIds(NamedTuple):
    """Cluster ids of a file."""

    values: Tensor  # int64 [M], from 0 up, or NOISE
    key: str  # they were found under
    names: list[str] | None = None  # of the clusters, where the file has names


def read_cluster_ids(path: Path, key: str, ids: list[str] | None) -> ClusterIds:
    """Cluster ids, or names of clusters in their order, from a `.pt`, `.npy`, `.csv` or `.safetensors` file.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order. An empty `key` takes the only tensor or column there is. An empty field and NaN are NOISE.

    Raises:
        UserError: the content is not what it should be.
    """
    key, values, known = _read(path, key)
    if ids is not None and known is not None:
        values = in_order(path, known, values, ids)
    if isinstance(values, np.ndarray) and values.dtype.kind in "US":
        values = values.ravel().tolist()
    if not isinstance(values, list) or not any(isinstance(value, str | bytes) for value in values):
        return ClusterIds(whole_numbers(path, values, "cluster ids", none=NOISE), key)
    texts = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
    names = [text for text in texts if not is_number(text) and text.strip().lower() not in MISSING]
    if names:
        if any(is_number(text) and float(text) != NOISE for text in texts):
            raise UserError(
                f"{path}: {names[0]!r} is no cluster id; whole numbers from 0 up, or names alone are expected."
            )
        named = labels_from_values(texts, str(path))
        assert named.values is not None
        return ClusterIds(named.values, key, named.class_names)
    numbers = torch.tensor([float(text.strip() or "nan") for text in texts], dtype=torch.float64)
    return ClusterIds(whole_numbers(path, numbers, "cluster ids", none=NOISE), key)


def read_true_labels(path: Path, key: str, ids: list[str] | None) -> Labels:
    """Labels, not cluster ids, from the same kinds of files: numbers or names, some of which may be missing.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order.

    Raises:
        UserError: the file cannot be read, or is about other images than `ids`.
    """
    _, values, known = _read(path, key)
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    values = values if isinstance(values, list) else [values]
    if ids is not None and known is not None:
        return matched_labels(path, known, values, ids)
    return labels_from_values(values, str(path))


def ids_in_csv(path: Path) -> list[str] | None:
    """The image ids of a CSV file, in its order; None where it has no column `id`, and for every other file.

    Raises:
        UserError: an id stands in two lines.
    """
    if path.suffix.lower() not in TABLES:
        return None
    columns = read_csv(path)
    name = column_of(columns, "id")
    ids = None if name is None else columns[name]
    if ids is not None and len(set(ids)) < len(ids):
        raise UserError(f"{path}: {Counter(ids).most_common(1)[0][0]!r} stands in two lines. Keep one line per image.")
    return ids


def assignment_keys(path: Path) -> list[str]:
    """The keys under which a file holds assignments; `[""]` where it holds one set without a name."""
    return [key for key in _keys(path) if not key.startswith(LABELS_PREFIX)] or [""]


def label_key(path: Path) -> str | None:
    """The key of the true labels that lie beside the assignments; None where there are none."""
    return next((key for key in _keys(path) if key.startswith(LABELS_PREFIX)), None)


def is_artifact(path: Path) -> bool:
    """Whether a file is one that this project wrote."""
    with suppress(SafetensorError, ValueError), safe_open(path, framework="pt") as file:
        return HEADER_KEY in (file.metadata() or {})
    return False


def _read(path: Path, key: str) -> tuple[str, Any, list[str] | None]:
    """The key, what it leads to, and the image ids that a table has beside it."""
    contents, ids = contents_of(path), ids_in_csv(path)
    if ids is not None:
        del contents[str(column_of(contents, "id"))]
    key, values = _choose(path, contents, key)
    if ids is None and path.suffix.lower() in TABLES:  # in the order of its lines, unless it says otherwise
        for name, texts in contents.items():
            if name != key and not all(map(is_number, texts)):
                raise UserError(f"{path}: is {name!r} the column of the images' ids? Call it id, or leave it out.")
    return key, values, ids


def _keys(path: Path) -> list[str]:
    """The keys of a `.safetensors` or `.pt` file with several tensors, in a natural order (clusters20, clusters100)."""
    keys = [key for key in contents_of(path) if key] if path.suffix.lower() in (".safetensors", ".pt") else []
    return sorted(keys, key=lambda key: re.sub(r"\d+", lambda number: number[0].zfill(20), key))


def _choose(path: Path, contents: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """The key that was asked for, or the only one there is (true labels apart), or `cluster`; and what it leads to."""
    if list(contents) == [""]:
        return key, contents[""]  # one thing without a name goes by any
    names = sorted(name for name in contents if key or not name.startswith(LABELS_PREFIX))
    usual = filter(None, [column_of(contents, "cluster")])
    found = chosen(path, names, key, list(usual), "assignment", f"Choose one with {path}::KEY.")
    return found, contents[found]
