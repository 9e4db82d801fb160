"""Arrays and tables in files of other programs, read without running code from them."""

import csv
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from torch import Tensor

from datamodules.file_kinds import kind_of, start_of
from storage.bounds import MOST_TEXT, check_npy_header, refuse_inflating, refuse_large
from storage.control_characters import CONTROL, escaped
from storage.errors import UserError

NPY, ZIP = b"\x93NUMPY", b"PK"  # what files begin with
MOST_LINE = 1 << 20  # characters of a line of a table
MOST = 10_000_000  # tables as long as the highest number are made


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
        if isinstance(error, pickle.UnpicklingError):  # PyTorch adds the advice to trust the file
            code = re.search(r"Unsupported global: GLOBAL (\S+)", reason)
            reason = f"it holds {code[1]}, which is no tensor" if code else "no tensors of PyTorch, or damaged ones"
        raise UserError(f"{path}: refused, it cannot be read as plain tensors ({reason}).") from error


def read_csv(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file by their heading; one column of numbers may have none, and is then called ''.

    Raises:
        UserError: the file is empty or no CSV file in UTF-8, a heading occurs twice, or lines differ in length.
    """
    refuse_large(path, MOST_TEXT, "a CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(short_lines(path, file))
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}).") from error
    if not lines:
        raise UserError(f"{path}: the file is empty.")
    first = lines[0][1]
    wrong = next((number for number, row in lines if len(row) != len(first)), None)
    if wrong is not None:
        raise UserError(f"{path}: line {wrong} has not {len(first)} columns, as the first line {','.join(first)} has.")
    headless = len(first) == 1 and is_number(first[0])
    heading = [""] if headless else [name.strip() for name in first]
    if unclean := next((text for _, row in lines for text in row if CONTROL.search(text.replace("\t", ""))), None):
        raise UserError(f"{path}: '{escaped(unclean)}' holds a control character. Remove it.")
    if len(set(heading)) < len(heading):
        raise UserError(f"{path}: the first line {','.join(heading)} names a column twice.")
    rows = [row for _, row in lines[not headless :]]
    return {name: [row[place] for row in rows] for place, name in enumerate(heading)}


def short_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises `UserError` where one is longer than a line of a table can be."""
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), ""), 1):
        if len(line) == MOST_LINE:
            raise UserError(f"{path}: line {number} is longer than {MOST_LINE:,} characters. One image per line.")
        yield line


def is_number(text: str) -> bool:
    """Whether a text is a decimal number; `float` would take 1_0 for 10."""
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", text, re.ASCII) is not None


def whole_numbers(path: Path, values: Any, what: str) -> Tensor:
    """`values` [N] as int64, if they are whole numbers from 0 up. `what` they are is for messages.

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
    if not numbers.is_floating_point():
        numbers = numbers.long()  # unsigned ones can't be compared
    elif not torch.equal(numbers, numbers.round()):  # NaN among them
        raise UserError(f"{path}: {what} are not whole; expected 0, 1, 2, …")
    wrong = next((limit.item() for limit in numbers.aminmax() if not 0 <= limit < MOST), None)
    if wrong is not None:
        raise UserError(f"{path}: holds {wrong}; expected {what} from 0 up, below {MOST:,}.")
    return numbers.long()
