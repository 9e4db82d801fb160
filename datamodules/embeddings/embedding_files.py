"""Embeddings that another program computed: a row of numbers for each image, with the images' ids or without."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.embeddings.embedding_tables import IDS, LABELS, LEFT_OUT, load_csv, load_parquet
from datamodules.images.image_names import same_text, spelled_as
from datamodules.images.sources import ImageSource
from datamodules.plain_files import TABLES, ZIP, chosen, contents_of, file_and_key, refuse_other_kinds, told_of_arrays
from storage.bounds import inflated, refuse_npz
from storage.control_characters import CONTROL, escaped
from storage.errors import UserError


@dataclass(frozen=True)
class EmbeddingFile:
    """What a file of embeddings holds.

    Attributes:
        name: of the file, with the key.
        values: float32 [N, D].
        ids: of the N images; None where the file has none.
        labels: one for each image, in whatever form; None without.
        note: what was made of the file: of numbers of other types, and columns that are left out.
    """

    name: str
    values: Tensor
    ids: list[str] | None
    labels: list[Any] | None
    note: str = ""

    def rows_of(self, source: ImageSource) -> Tensor:
        """The row of each image of a source, int64 [len(source)]: by id, or in the data set's order without ids.

        Raises:
            UserError: there is no embedding for an image, or there are as many as for other images.
        """
        count = len(self.values)
        if self.ids is None:
            if count == source.total:
                return source.positions
            if count == len(source):
                return torch.arange(count)
            whole = f", {source.total:,} in the whole data set" if source.total != len(source) else ""
            turned = " Its axes seem to be [features, images]: save array.T." * (
                self.values.shape[1] in (len(source), source.total)
            )
            raise UserError(
                f"{self.name}: {count:,} embeddings for {len(source):,} images of {source.name}{whole}.{turned} Give "
                "one row for each image, in the order of the images' ids, or ids in the file."
            )
        try:
            spelled = spelled_as(self.ids, source.ids)
        except UserError as error:
            raise UserError(f"{self.name}: {error}.") from error
        places = {same_text(image_id): row for row, image_id in enumerate(self.ids)}
        lacking = [image_id for image_id, name in zip(source.ids, spelled, strict=True) if name not in places]
        if lacking:
            raise UserError(
                f"{self.name}: {len(lacking):,} of {len(source):,} images of {source.name} have no embedding, the "
                f"first is {lacking[0]!r}; the file has {self.ids[0]!r} and {count - 1:,} more. An id is the image's "
                "path below the folder, or its name in the ZIP."
            )
        return torch.tensor([places[name] for name in spelled], dtype=torch.int64)


def read_embedding_file(specification: str) -> EmbeddingFile:
    """Embeddings from `FILE[::key]`, a `.npy`, `.npz`, `.pt`, `.safetensors`, `.csv` or `.parquet` file.

    Ids are an array, list or column `ids` or `id` beside them, labels one `labels` or `label`. In a table the features
    are a column of lists, else the columns whose headings end in a number, else all that remain.

    Raises:
        UserError: the file cannot be read, or holds no finite floating-point numbers [images, features].
    """
    path, key = file_and_key("embeddings", specification)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"embeddings={specification}: a file that ends in {', '.join(READERS)} is expected.")
    contents = reader(path)
    others = contents.pop(LEFT_OUT, "")
    beside = {}
    for what, names in (("ids", IDS), ("labels", LABELS)):
        found = next((name for name in contents if name.lower() in names and name != key), None)
        beside[what] = None if found is None else listed(path, found, contents.pop(found))
    texts = [name for name, value in contents.items() if isinstance(value, list) and isinstance(value[0], str)]
    if texts and beside["ids"] is None:
        raise UserError(f"{path}: are the images' ids in {texts[0]!r}? Call it id, or leave it out.")
    key, values = choose(path, contents, key)
    name = f"{path}::{key}" if key else str(path)
    values, note = as_float32(name, values)
    ids = None if beside["ids"] is None else checked_ids(path, beside["ids"])
    for what, one in (("ids", ids), ("labels", beside["labels"])):
        if one is not None and len(one) != len(values):
            raise UserError(f"{path}: {len(one):,} {what} for {len(values):,} embeddings; one for each is expected.")
    bad = values.isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
    if bad:
        first = f"row {bad[0]}" + ("" if ids is None else f", {ids[bad[0]]!r},")
        raise UserError(
            f"{name}: {first} holds NaN, infinity or a number that float32 cannot hold ({len(bad):,} such rows of "
            f"{len(values):,}). Leave these images out of both files, or embed them again."
        )
    notes = [note, f"columns left out: {others}" if others else ""]
    return EmbeddingFile(name, values, ids, beside["labels"], ", ".join(filter(None, notes)))


def listed(path: Path, name: str, values: Any) -> list[Any]:
    """Ids or labels as a list. A safetensors file, which has no texts, holds them as UTF-8 with a line for each."""
    if isinstance(values, Tensor):
        is_text = path.suffix.lower() == ".safetensors" and name.lower() in IDS
        if is_text and values.dtype == torch.uint8 and values.ndim == 1:
            return values.numpy().tobytes().decode(errors="backslashreplace").split("\n")
        values = values.tolist()
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise UserError(f"{path}: {name} holds {type(values).__name__}; one for each embedding is expected.")
    if any(isinstance(value, list | tuple | dict) for value in values):
        raise UserError(f"{path}: {name} holds several values for an embedding; one for each is expected.")
    return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in values]


def checked_ids(path: Path, values: list[Any]) -> list[str]:
    """The ids as texts. Raises `UserError` where one is empty, holds control characters, or stands in two rows."""
    ids = ["" if value is None else str(value) for value in values]
    for row, image_id in enumerate(ids):
        if not image_id or CONTROL.search(image_id):
            raise UserError(f"{path}: row {row}: the id '{escaped(image_id)}' is empty or holds a control character.")
    counts = Counter(map(same_text, ids))
    if len(counts) < len(ids):
        ((first, _),) = counts.most_common(1)
        rows = [row for row, image_id in enumerate(ids) if same_text(image_id) == first]
        raise UserError(
            f"{path}: the id {first!r} stands in rows {rows[0]} and {rows[1]} ({len(ids) - len(counts):,} ids too "
            "many). Keep one row for each image."
        )
    return ids


def choose(path: Path, contents: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """The key that was asked for, or the only one with as many axes as embeddings have; and what it leads to."""
    if not contents:
        raise UserError(f"{path}: holds nothing that may be embeddings, an array [images, features].")
    fitting = [name for name, value in contents.items() if getattr(value, "ndim", 0) == 2] or list(contents)
    names = list(contents) if key else fitting
    found = chosen(path, names, key, (), "array", f"Choose one with embeddings={path}::KEY.")
    return found, contents[found]


def as_float32(name: str, values: Any) -> tuple[Tensor, str]:
    """Embeddings as float32 [N, D], and what was done for that.

    Raises:
        UserError: they are no floating-point numbers, or of another shape.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise UserError(f"{name}: holds {type(values).__name__}; an array [images, features] is expected.")
    kind = str(values.dtype).removeprefix("torch.")
    shape = list(values.shape)
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    if len(shape) != 2 or 0 in shape:
        flat = ""
        if len(shape) > 2:
            flat = " Save one vector for each image: array.reshape(len(array), -1), or array.mean(1) of tokens."
        raise UserError(f"{name}: an array {shape} of {kind}; embeddings are [images, features].{flat}")
    if not floating:
        raise UserError(
            f"{name}: an array {shape} of {kind}; embeddings are floating-point numbers. If it holds embeddings, save "
            "array.astype('float32'); cluster ids go into assignments=FILE, images into dataset=npy."
        )
    note = "" if kind == "float32" else f"{kind}, taken as float32"
    if isinstance(values, Tensor):
        return values.detach().to_dense().float(), note
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is told of
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"])), note


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file."""
    refuse_other_kinds(path, ZIP, "an .npz file")
    with told_of_arrays(path), np.load(path, allow_pickle=False) as archive:
        size = path.stat().st_size
        if sum(info.file_size for info in archive.zip.infolist()) > (most := inflated(size)):
            raise ValueError(f"its arrays, or one of them by many names, would have more than {most:,} bytes")
        for key in archive.files:
            refuse_npz(archive, key, size)
        return {key: archive[key] for key in archive.files}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **dict.fromkeys((".npy", ".pt", ".safetensors"), contents_of),
    ".npz": load_npz,
    **dict.fromkeys(TABLES, load_csv),
    ".parquet": load_parquet,
}
