"""Arrays and tables in files of other programs, read without running code from them."""

import csv
import itertools
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from datamodules.file_kinds import kind_of, start_of
from storage.bounds import MOST_TEXT, check_npy_header, refuse_inflating, refuse_large
from storage.control_characters import CONTROL, escaped
from storage.errors import UserError

NPY, ZIP = b"\x93NUMPY", b"PK"  # what files begin with
TABLES = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")
SHOWN = 20  # keys that a message names
LOOKED_AT = 100  # lines that tell which of them it is
MOST_LINE = 1 << 20  # characters of a line of a table
MOST = 10_000_000  # tables as long as the highest number are made


def file_and_key(setting: str, value: str) -> tuple[Path, str]:
    """The file and the key of `setting=FILE[::key]`. Raises `UserError` where there is no such file."""
    name, _, key = value.partition("::")
    if not Path(name).is_file():
        what = "a folder" if Path(name).is_dir() else "no such file"
        raise UserError(f"{setting}={value}: {what}. Give FILE or FILE::key.")
    return Path(name), key


def chosen(where: object, names: Sequence[str], key: str | None, usual: Sequence[str], what: str, advice: str) -> str:
    """The one of these names that was asked for, else the only one, else the first of the usual ones.

    Raises:
        UserError: there is no such `what`, or nothing says which is meant; `advice` is what to do.
    """
    found = key or (names[0] if len(names) == 1 else next((name for name in usual if name in names), None))
    if found is None or found not in names:
        problem = f"no {what} {key!r}" if key else f"{len(names)} {what}s"
        known = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
        raise UserError(f"{where}: holds {problem}; there are {known or 'none'}. {advice}")
    return found


def load_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array of an `.npy` file; mapped into memory and not read with `mmap_mode="r"`."""
    refuse_other_kinds(path, NPY, "an .npy file")
    with told_of_arrays(path):
        with path.open("rb") as file:
            check_npy_header(file, path.stat().st_size)
        array: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        return array


def refuse_other_kinds(path: Path, signature: bytes, expected: str) -> None:
    """Raise a `UserError` that says what the file is, unless it begins with the signature of what is expected."""
    start = start_of(path)
    if not start.startswith(signature):
        kind = kind_of(start) or f"a file that begins with {start[:8]!r}"
        raise UserError(f"{path}: {expected} is expected, and this is {kind}.")


@contextmanager
def told_of_arrays(path: Path) -> Iterator[None]:
    """Turns what NumPy raises over a file's content into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:  # it cannot be opened, whatever its content
            raise
        raise UserError(f"{path}: cannot be read as a plain array ({error}). Copy or make it again.") from error
    except Exception as error:  # NumPy reads the header as Python, so it can raise what a parser raises
        objects = re.search("Object arrays|Python objects", str(error))
        problem = "it holds Python objects, which are not unpickled" if objects else str(error)
        advice = "Save numbers, all images of one shape, with numpy.save" if objects else "Copy or make it again"
        raise UserError(f"{path}: cannot be read as a plain array ({problem}). {advice}.") from error


def load_pt(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, text, and containers of them, on the CPU."""
    try:
        refuse_inflating(path, path.stat().st_size)
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a file of any content can raise anything here
        reason = f"{type(error).__name__}: {error}"
        if (
            isinstance(error, pickle.UnpicklingError) or "weights_only" in reason
        ):  # PyTorch adds the advice to trust the file
            code = re.search(r"Unsupported global: GLOBAL (\S+)", reason)
            reason = f"it holds {code[1]}, which is no tensor" if code else "no tensors of PyTorch, or damaged ones"
        raise UserError(f"{path}: refused, it cannot be read as plain tensors ({reason}).") from error


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises `UserError` where it is damaged."""
    try:
        return load_file(path)
    except Exception as error:  # readers raise anything over a damaged file
        raise UserError(f"{path}: cannot be read as plain tensors ({error}).") from error


def contents_of(path: Path) -> dict[str, Any]:
    """What a file holds by its keys: arrays, or the texts of a table's columns; '' is one thing without a key.

    Raises:
        UserError: it ends in no suffix of `READERS`, or cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: a file that ends in {', '.join(READERS)} is expected.")
    content = reader(path)
    named = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {"": content}
    return {key: checked(path, key or "the tensor", value) for key, value in named.items()}


def checked(path: Path, name: str, value: Any) -> Any:
    """What a file holds under a name; floats of 8 bits and fewer, of which PyTorch has no arithmetic, as float32.

    Raises:
        UserError: a tensor without numbers, of more than the file can hold, or of a type that is only for storage.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() > path.stat().st_size:  # one value under many indices
        raise UserError(f"{path}: {name} has {value.numel():,} values, more than the file has bytes.")
    try:
        if value.is_meta:
            raise NotImplementedError("a shape without numbers")
        return value.float() if value.is_floating_point() and value.itemsize < 2 else value
    except NotImplementedError as error:
        raise UserError(f"{path}: {name} is of {value.dtype}, which cannot be read ({error}). Save float32.") from error


def read_csv(path: Path) -> dict[str, list[str]]:
    """The columns of a table by their heading; one column of numbers may have none, and is then called ''.

    Raises:
        UserError: the file is empty or no table in UTF-8, a heading occurs twice, or lines differ in length.
    """
    refuse_large(path, MOST_TEXT, "a CSV file")
    first, *others = lines = list(lines_of_table(path))
    headless = len(first) == 1 and is_number(first[0])
    heading = [""] if headless else [name.strip() for name in first]
    if unclean := next((text for row in lines for text in row if CONTROL.search(text.replace("\t", ""))), None):
        raise UserError(f"{path}: '{escaped(unclean)}' holds a control character. Remove it.")
    if len(set(heading)) < len(heading):
        raise UserError(f"{path}: the first line {','.join(heading)} names a column twice.")
    rows = lines if headless else others
    return {name: [row[place] for row in rows] for place, name in enumerate(heading)}


def lines_of_table(path: Path) -> Iterator[list[str]]:
    """The fields of each line of a table that are separated by commas, semicolons or tabs; empty lines are left out.

    Raises:
        UserError: the file is empty or no table in UTF-8, or lines differ in length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = delimiter_of(path, list(itertools.islice(short_lines(path, file), LOOKED_AT)))
            file.seek(0)
            first: list[str] = []
            reader = csv.reader(short_lines(path, file), delimiter=delimiter)
            for row in filter(None, reader):
                first = first or row
                if len(row) != len(first):
                    shown = delimiter.join(first)
                    raise UserError(f"{path}: line {reader.line_num} has not {len(first)} columns, as {shown!r} has.")
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}).") from error
    if not first:
        raise UserError(f"{path}: the file is empty.")


def delimiter_of(path: Path, lines: list[str]) -> str:
    """What separates the fields of a table's first lines: of commas, semicolons and tabs those that all of them hold.

    Raises:
        UserError: two of them divide all lines alike.
    """
    found = []
    for delimiter in DELIMITERS:
        counts = {len(row) for row in csv.reader(lines, delimiter=delimiter) if row}
        if len(counts) == 1 and counts != {1}:
            found.append(delimiter)
    if len(found) > 1:
        both = " and by ".join(map(repr, found))
        raise UserError(f"{path}: its lines can be divided by {both}. Save it with one of them, and quote the other.")
    return found[0] if found else next((one for one in DELIMITERS if lines and one in lines[0]), ",")


def column_of(columns: Iterable[str], name: str) -> str | None:
    """The heading `name`, or the only one that differs from it by capitals alone."""
    alike = [name] if name in columns else [one for one in columns if one.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else None


def short_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises `UserError` where one is longer than a line of a table can be."""
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), ""), 1):
        if len(line) == MOST_LINE:
            raise UserError(f"{path}: line {number} is longer than {MOST_LINE:,} characters. One image per line.")
        yield line


def is_number(text: str) -> bool:
    """Whether a text is a decimal number; `float` would take 1_0 for 10."""
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", text, re.ASCII) is not None


def whole_numbers(path: Path, values: Any, what: str, none: int = 0) -> Tensor:
    """`values` [N] as int64, if they are whole numbers from 0 up.

    Args:
        what: they are, for messages.
        none: −1 where that and NaN are allowed and stand for none, as −1.

    Raises:
        UserError: there are none, or they are no such numbers.
    """
    try:
        numbers = torch.as_tensor(values)
    except Exception as error:  # text, objects, lists of different lengths
        raise UserError(f"{path}: {what} cannot be read as plain numbers ({type(error).__name__}: {error}).") from error
    if numbers.ndim != 1 or numbers.is_complex() or len(numbers) == 0:
        raise UserError(
            f"{path}: {what} of shape {list(numbers.shape)} ({numbers.dtype}), expected one number per image."
        )
    if none < 0 and numbers.is_floating_point():
        numbers = numbers.nan_to_num(nan=none, posinf=torch.inf, neginf=-torch.inf)
    if not numbers.is_floating_point():
        numbers = numbers.long()  # unsigned ones can't be compared
    elif not torch.equal(numbers, numbers.round()):  # NaN among them
        raise UserError(f"{path}: {what} are not whole; expected 0, 1, 2, …")
    wrong = next((limit.item() for limit in numbers.aminmax() if not none <= limit < MOST), None)
    if wrong is not None:
        raise UserError(f"{path}: holds {wrong}; expected {what} from 0 up, below {MOST:,}.")
    return numbers.long()


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": load_pt,
    ".npy": load_npy,
    ".safetensors": load_safetensors,
    **dict.fromkeys(TABLES, read_csv),
}
