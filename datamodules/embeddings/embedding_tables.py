"""Embeddings in the columns of a CSV or Parquet file, with ids and labels beside them."""

import itertools
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.packages import needed
from datamodules.plain_files import is_number, lines_of_table
from storage.bounds import inflated
from storage.errors import UserError

IDS, LABELS = ("id", "ids"), ("label", "labels")  # names of columns and arrays that are no features
LEFT_OUT = "\0left out"  # key of a text about columns, which no column can have for its name
SHOWN = 100  # characters of a heading in a message
INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # columns in which pandas counts the rows
NO_TEXT = ("", "nan", "inf", "-inf", "+inf")  # of a column of numbers that lacks some


def load_csv(path: Path) -> dict[str, Any]:
    """The features of a CSV file as one array under '', and its columns of texts; the first line may be a heading."""
    lines = lines_of_table(path)
    first = next(lines)
    headless = is_data(first)
    heading = [str(place) for place in range(len(first))] if headless else [name.strip() for name in first]
    if headless and not is_number(first[0]):
        heading[0] = IDS[0]
    rows = itertools.chain([first], lines) if headless else lines
    example = next(rows, None)
    if example is None:
        raise UserError(f"{path}: there is no line below the heading.")
    is_text = [not is_number(text) and text.strip().lower() not in NO_TEXT for text in example]
    if len({*heading} - {""}) < len(heading) - heading.count(""):
        raise UserError(f"{path}: the first line {','.join(heading)[:SHOWN]} names a column twice.")
    places = feature_places(heading, is_text)
    if not places:
        raise UserError(f"{path}: no column of numbers, separated by commas, semicolons or tabs, but ids and labels.")
    beside = [place for place, name in enumerate(heading) if is_text[place] or name.lower() in (*IDS, *LABELS)]
    features, texts = [], []
    for row in itertools.chain([example], rows):
        try:
            cells = [row[place].strip() or "nan" for place in places]
            if any("_" in cell for cell in cells):  # which Python reads over
                raise ValueError(f"{next(cell for cell in cells if '_' in cell)!r} is no number")
            features.append(np.array(cells, dtype=np.float64).astype(np.float32))
        except ValueError as error:
            raise UserError(f"{path}: row {len(features):,}: {error}. Write numbers with a decimal point.") from error
        texts.append([row[place] for place in beside])
    columns = {heading[place]: [row[number] for row in texts] for number, place in enumerate(beside)}
    return {"": np.stack(features), **columns, **left_out(heading, {*places, *beside})}


def left_out(heading: Sequence[str], taken: Set[int]) -> dict[str, str]:
    """The names of the columns that are no features, for `LEFT_OUT`; an index that pandas wrote needs no word."""
    names = [name for place, name in enumerate(heading) if place not in taken and not INDEX.fullmatch(name)]
    return {LEFT_OUT: ", ".join(names)[:SHOWN]} if names else {}


def is_data(line: Sequence[str]) -> bool:
    """Whether the first line is no heading: numbers, behind an id or not, that do not count the columns."""
    counts = [str(number) for number in range(len(line))]
    return all(map(is_number, line[1:] or line)) and list(line[1:]) not in (counts[:-1], counts[1:])


def feature_places(heading: Sequence[str], is_text: Sequence[bool]) -> list[int]:
    """The columns that are features: those of numbers whose headings end in a number, else all of numbers."""
    names = (*IDS, *LABELS)
    numbers = [
        place
        for place, (name, text) in enumerate(zip(heading, is_text, strict=True))
        if not text and name.lower() not in names and not INDEX.fullmatch(name)
    ]
    return [place for place in numbers if heading[place][-1:].isdigit()] or numbers


def load_parquet(path: Path) -> dict[str, Any]:
    """Each column of lists as an array, or those of numbers as one under ''; and the columns of texts."""
    needed("pyarrow", f"{path}: a Parquet file", '"cluster-conditioned-diffusion[hf]"')
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        parts = [group.column(place) for group in groups for place in range(group.num_columns)]
        promised = sum(max(part.total_uncompressed_size, 8 * part.num_values) for part in parts)
        limit = inflated(path.stat().st_size)
        if promised > limit:
            raise UserError(f"{path}: it would inflate to {promised:,} bytes, and {limit:,} are believed.")
        table = file.read()
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file ({error}).") from error
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    lists = {name: column for name, column in columns.items() if is_list(column)}
    if lists:
        found: dict[str, Any] = {name: matrix_of(path, name, column) for name, column in lists.items()}
        beside = [name for name in columns if name.lower() in (*IDS, *LABELS)]
    else:
        is_text = [not (types.is_floating(one.type) or types.is_integer(one.type)) for one in columns.values()]
        names = [list(columns)[place] for place in feature_places(list(columns), is_text)]
        arrays = [columns[name].to_numpy(zero_copy_only=False) for name in names]
        found = {"": np.stack(arrays, axis=1)} if arrays else {}
        beside = [name for name in columns if name not in names and name.lower() in (*IDS, *LABELS)]
    texts = [name for name, one in columns.items() if types.is_string(one.type) or types.is_large_string(one.type)]
    found |= {name: columns[name].to_pylist() for name in {*beside, *texts} - lists.keys()}
    if not lists:
        taken = {place for place, name in enumerate(columns) if name in {*names, *beside, *texts}}
        found |= left_out(list(columns), taken)
    return found


def is_list(column: Any) -> bool:
    """Whether a column of Arrow's holds a list of numbers in each row."""
    from pyarrow import types

    kind = column.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def matrix_of(path: Path, name: str, column: Any) -> np.ndarray:
    """A column of lists as an array [N, D]. Raises `UserError` where they differ in length."""
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
    if len(lengths) > 1 or None in lengths:
        shown = ", ".join("none" if length is None else str(length) for length in lengths[:3])
        raise UserError(f"{path}: column {name!r} has lists of {shown} numbers; as many in each row are expected.")
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1))
