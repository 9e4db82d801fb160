"""Cluster ids in files of other programs (`.pt`, `.npy`, `.csv`, `.safetensors`), read without running their code."""

import csv
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.artifacts import HEADER_KEY, UserError

MOST_CLUSTERS = 10_000_000  # tables as long as the highest id are made
LABELS_PREFIX = "labels."  # keys of true labels that may lie beside the cluster ids


def read_cluster_ids(path: Path, key: str, ids: list[str] | None) -> tuple[Tensor, str]:
    """Cluster ids from a `.pt`, `.npy`, `.csv` or `.safetensors` file: int64 [M], and the key they were found under.

    A CSV file with a column `id` gives them in the order of `ids`; everything else, or without `ids`, gives all it
    holds in its order. An empty `key` takes the only tensor or column there is. Raises `UserError` where the content is
    not what it should be.
    """
    values, key = _read_values(path, key)
    if isinstance(values, dict):
        values = _by_id(path, values, list(values) if ids is None else ids)
    return _whole_numbers(path, values), key


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
        raise UserError(f"{path}: cannot be read as plain numbers ({type(error).__name__}: {error})") from error
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
        raise UserError(f"{path}: cannot be read as plain numbers ({type(error).__name__}: {error})") from error
    raise UserError(f"{path}: files of assignments end in .pt, .npy, .csv or .safetensors")


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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    if not rows:
        raise UserError(f"{path}: the file is empty")
    if len(rows[0]) == 1 and not key and _is_number(rows[0][0]):
        return _numbers(path, [row[0] for row in rows]), key
    heading, rows = rows[0], rows[1:]
    if any(len(row) != len(heading) for row in rows):
        raise UserError(f"{path}: some lines have not {len(heading)} columns, as the heading {','.join(heading)} has")
    columns = [name for name in heading if name != "id"]
    column = heading.index(_choose_key(path, columns, key or ("cluster" if "cluster" in columns else "")))
    values = [row[column] for row in rows]
    if "id" not in heading:
        return _numbers(path, values), heading[column]
    return dict(zip((row[heading.index("id")] for row in rows), values, strict=True)), heading[column]


def _by_id(path: Path, values_by_id: dict[str, str], ids: list[str]) -> Tensor:
    absent = [image_id for image_id in ids if image_id not in values_by_id]
    if absent:
        raise UserError(f"{path}: {len(absent)} of {len(ids)} images are not in it, the first is {absent[0]!r}")
    return _numbers(path, [values_by_id[image_id] for image_id in ids])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
