"""Cluster ids in files of other programs (`.pt`, `.npy`, `.csv`, `.safetensors`), read without running their code."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from datamodules.images.label_files import in_order, matched_labels
from datamodules.images.label_values import labels_from_values
from datamodules.images.reader import Labels
from datamodules.plain_files import is_number, load_npy, load_pt, read_csv, whole_numbers
from storage.artifacts import HEADER_KEY
from storage.errors import UserError

LABELS_PREFIX = "labels."  # keys of true labels that may lie beside the cluster ids


def read_cluster_ids(path: Path, key: str, ids: list[str] | None) -> tuple[Tensor, str]:
    """Cluster ids from a `.pt`, `.npy`, `.csv` or `.safetensors` file: int64 [M], and the key they were found under.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order. An empty `key` takes the only tensor or column there is. Raises `UserError` where the content is
    not what it should be.
    """
    contents = _contents(path)
    known = ids_in_csv(path)
    if known is not None:
        del contents["id"]
    key, values = _choose(path, contents, key)
    if path.suffix == ".csv":
        wrong = next((text for text in values if not is_number(text)), None)
        if wrong is not None:
            raise UserError(f"{path}: {wrong!r} is no cluster id; expected whole numbers from 0 up.")
        if ids is not None and known is not None:
            values = in_order(path, known, values, ids)
        values = torch.tensor(list(map(float, values)), dtype=torch.float64)
    return whole_numbers(path, values, "cluster ids"), key


def read_true_labels(path: Path, key: str, ids: list[str] | None) -> Labels:
    """Labels, not cluster ids, from the same kinds of files: numbers or names, some of which may be missing.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order.

    Raises:
        UserError: the file cannot be read, or is about other images than `ids`.
    """
    contents, known = _contents(path), ids_in_csv(path)
    if known is not None:
        del contents["id"]
    _, values = _choose(path, contents, key)
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
    ids = read_csv(path).get("id") if path.suffix == ".csv" else None
    if ids is not None and len(set(ids)) < len(ids):
        raise UserError(f"{path}: {Counter(ids).most_common(1)[0][0]!r} stands in two lines. Keep one line per image.")
    return ids


def assignment_keys(path: Path) -> list[str]:
    """The keys under which a file holds assignments; `[""]` where it holds one set without a name."""
    return [key for key in _keys(path) if not key.startswith(LABELS_PREFIX)] or [""]


def label_key(path: Path) -> str | None:
    """The key of the true labels that lie beside the assignments; None where there are none."""
    return next((key for key in _keys(path) if key.startswith(LABELS_PREFIX)), None)


def read_embeddings(path: Path, key: str) -> Tensor:
    """Feature vectors from a `.pt`, `.npy` or `.safetensors` file: float32 [N, D].

    An empty `key` takes the only tensor there is. Raises `UserError` where the content is not what it should be.
    """
    values = torch.as_tensor(_choose(path, _contents(path), key)[1])
    if values.ndim != 2 or not values.isfinite().all():
        raise UserError(f"{path}: expected embeddings, finite numbers [images, features].")
    return values.float()


def is_artifact(path: Path) -> bool:
    """Whether a file is one that this project wrote."""
    with suppress(SafetensorError, ValueError), safe_open(path, framework="pt") as file:
        return HEADER_KEY in (file.metadata() or {})
    return False


def _contents(path: Path) -> dict[str, Any]:
    """What a file holds by its keys: arrays, or the texts of a CSV file's columns; '' is one thing without a key."""
    if path.suffix not in READERS:
        raise UserError(f"{path}: a file of assignments ends in {', '.join(READERS)}.")
    content = READERS[path.suffix](path)
    named = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {"": content}
    for key, value in named.items():
        if isinstance(value, Tensor) and value.numel() > path.stat().st_size:  # one value under many indices
            name = key or "the tensor"
            raise UserError(f"{path}: {name} has {value.numel():,} values, more than the file has bytes.")
    return named


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises `UserError` where it is damaged."""
    try:
        return load_file(path)
    except Exception as error:  # readers raise anything over a damaged file
        raise UserError(f"{path}: cannot be read as plain tensors ({error}).") from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": load_pt,
    ".npy": load_npy,
    ".csv": read_csv,
    ".safetensors": load_safetensors,
}


def _keys(path: Path) -> list[str]:
    """The keys of a `.safetensors` or `.pt` file with several tensors, in a natural order (clusters20, clusters100)."""
    keys = [key for key in _contents(path) if key] if path.suffix in (".safetensors", ".pt") else []
    return sorted(keys, key=lambda key: re.sub(r"\d+", lambda number: number[0].zfill(20), key))


def _choose(path: Path, contents: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """The key that was asked for, or the only one there is (true labels apart), or `cluster`; and what it leads to."""
    if list(contents) == [""]:
        return key, contents[""]  # one thing without a name goes by any
    candidates = [name for name in contents if not name.startswith(LABELS_PREFIX)]
    found = key or (candidates[0] if len(candidates) == 1 else "cluster")
    if found in contents:
        return found, contents[found]
    problem = f"holds no {key!r}" if key else f"holds {len(candidates)} sets of assignments"
    example = (candidates or list(contents) or ["KEY"])[0]
    raise UserError(f"{path}: {problem}. Choose one with {path}::{example}; there are: {', '.join(sorted(contents))}.")
