"""Cluster ids in files of other programs (`.pt`, `.npy`, `.csv`, `.safetensors`), read without running their code."""

import csv
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.images.label_files import in_order
from storage.artifacts import HEADER_KEY
from storage.errors import UserError

MOST_CLUSTERS = 10_000_000  # tables as long as the highest id are made
LABELS_PREFIX = "labels."  # keys of true labels that may lie beside the cluster ids
NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", re.ASCII)  # float() would take 1_0 for 10


def read_cluster_ids(path: Path, key: str, ids: list[str] | None) -> tuple[Tensor, str]:
    """Cluster ids from a `.pt`, `.npy`, `.csv` or `.safetensors` file: int64 [M], and the key they were found under.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order. An empty `key` takes the only tensor or column there is. Raises `UserError` where the content is
    not what it should be.
    """
    values, key = _read_values(path, key)
    if isinstance(values, dict):
        texts = list(values.values()) if ids is None else in_order(path, list(values.items()), ids)
        values = _numbers(path, texts)
    return _whole_numbers(path, values), key


def ids_in_csv(path: Path) -> list[str] | None:
    """The image ids of a CSV file, in its order; None where it has no column `id`, and for every other file."""
    if path.suffix != ".csv":
        return None
    heading, rows = _csv_rows(path)
    return list(_rows_by_id(path, heading, rows)) if "id" in heading else None


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
    values, _ = _read_values(path, key)
    if isinstance(values, dict) or values.ndim != 2 or not values.isfinite().all():
        raise UserError(f"{path}: expected embeddings, finite numbers [images, features]")
    return values.float()


def _keys(path: Path) -> list[str]:
    """The keys of a `.safetensors` or `.pt` file with several tensors, in a natural order (clusters20, clusters100)."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return sorted(file.keys(), key=_natural)
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
            return sorted(map(str, content), key=_natural) if isinstance(content, dict) else []
    except UserError:
        raise
    except Exception as error:  # readers raise anything over a damaged file
        raise UserError(f"{path}: cannot be read as plain numbers ({_reason(error)})") from error
    return []


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _read_values(path: Path, key: str) -> tuple[Tensor | dict[str, str], str]:
    """What the file holds under `key`: values in its order, or the text of each by image id; and the key."""
    if path.suffix == ".csv":
        return _read_csv(path, key)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                key = _choose_key(path, list(file.keys()), key)
                return file.get_tensor(key), key
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False)), key
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(content, dict):
                key = _choose_key(path, [str(name) for name in content], key)
                content = {str(name): value for name, value in content.items()}[key]
            return torch.as_tensor(content), key
    except UserError:
        raise
    except Exception as error:  # readers raise anything over a damaged file
        raise UserError(f"{path}: cannot be read as plain numbers ({_reason(error)})") from error
    raise UserError(f"{path}: files of assignments end in .pt, .npy, .csv or .safetensors")


def _reason(error: Exception) -> str:
    """What a reader says; of PyTorch's refusal only what is in the file, not the advice to trust it."""
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, pickle.UnpicklingError):
        return text
    found = re.search(r"Unsupported global: GLOBAL (\S+)", text)
    return f"it holds {found[1]}, which is no tensor" if found else "no tensors of PyTorch, or damaged ones"


def _choose_key(path: Path, keys: list[str], key: str) -> str:
    """The key that was asked for, or the only one there is (true labels apart)."""
    if key in keys:
        return key
    candidates = [name for name in keys if not name.startswith(LABELS_PREFIX)]
    if not key and len(candidates) == 1:
        return candidates[0]
    problem = f"holds no {key!r}" if key else f"holds {len(candidates)} sets of assignments"
    example = (candidates or keys or ["KEY"])[0]
    raise UserError(f"{path}: {problem}. Choose one with {path}::{example}; there are: {', '.join(sorted(keys))}")


def _read_csv(path: Path, key: str) -> tuple[Tensor | dict[str, str], str]:
    """A column of numbers, with or without a heading; or, where there is a column `id`, values by image id."""
    heading, rows = _csv_rows(path)
    if not heading and not key:
        return _numbers(path, [row[0] for _, row in rows]), key
    columns = [name for name in heading if name != "id"]
    column = heading.index(_choose_key(path, columns, key or ("cluster" if "cluster" in columns else "")))
    if "id" in heading:
        by_id = _rows_by_id(path, heading, rows)
        return {image_id: row[column] for image_id, row in by_id.items()}, heading[column]
    return _numbers(path, [row[column] for _, row in rows]), heading[column]


def _csv_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The heading of a CSV file, empty where it is one column of numbers without; and the rows with their lines."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    if not rows:
        raise UserError(f"{path}: the file is empty")
    _, first = rows[0]
    heading = [] if len(first) == 1 and _is_number(first[0]) else first
    wrong = next((line for line, row in rows if len(row) != len(first)), None)
    if wrong is not None:
        raise UserError(f"{path}: line {wrong} has not {len(first)} columns, as the first line {','.join(first)} has")
    return heading, rows[1:] if heading else rows


def _rows_by_id(path: Path, heading: list[str], rows: list[tuple[int, list[str]]]) -> dict[str, list[str]]:
    """The rows by image id. Raises `UserError` where an id stands in two of them."""
    lines: dict[str, int] = {}
    column = heading.index("id")
    for line, row in rows:
        before = lines.setdefault(row[column], line)
        if before != line:
            raise UserError(f"{path}: {row[column]!r} stands in lines {before} and {line}. Keep one line per image.")
    return {row[column]: row for _, row in rows}


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def _numbers(path: Path, texts: list[str]) -> Tensor:
    for text in texts:
        if not _is_number(text):
            raise UserError(f"{path}: {text!r} is no cluster id; expected whole numbers from 0 up")
    return torch.tensor([float(text) for text in texts], dtype=torch.float64)


def _whole_numbers(path: Path, values: Tensor) -> Tensor:
    """`values` as int64 [M], if they are whole numbers from 0 up."""
    if values.ndim != 1 or values.is_complex() or values.dtype == torch.bool:
        raise UserError(
            f"{path}: expected one cluster id per image; found {values.dtype} of shape {list(values.shape)}"
        )
    if len(values) == 0:
        raise UserError(f"{path}: holds no cluster ids")
    if values.is_floating_point() and not (values.isfinite().all() and torch.equal(values, values.round())):
        raise UserError(f"{path}: holds numbers that are not whole; cluster ids are 0, 1, 2, …")
    whole = values.to(torch.int64)
    if whole.min() < 0:
        raise UserError(f"{path}: holds {int(whole.min())}; cluster ids are 0, 1, 2, …")
    if whole.max() >= MOST_CLUSTERS:
        raise UserError(f"{path}: holds {int(whole.max())}; no data set has that many clusters. Number them from 0 up")
    return whole


def is_artifact(path: Path) -> bool:
    """Whether a safetensors file is one that this project wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except SafetensorError:
        return False
