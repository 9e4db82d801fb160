"""Labels of images from one value for each: a number, an id or a name; some may be missing."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from datamodules.images.image_names import same_text
from datamodules.images.reader import UNLABELLED, Labels
from datamodules.plain_files import is_number

FEW = 1000  # numbers below it stay as they are
MISSING = ("", "nan", "null")  # texts, in whatever capitals, that stand for none
SHOWN = 60  # characters of a value in a message


def labels_from_values(values: Sequence[Any], where: str) -> Labels:
    """Labels from numbers or names; −1, NaN, None and an empty text mean that the image has none.

    Names are numbered in their order. So are numbers, where they are ids (2,000,000,000) rather than 0, 1, 2, …: what
    counts images of each class would be as long as the highest. Where a value is no label, there are none at all, and
    the note says why.

    Args:
        values: one for each image; Python's own objects.
        where: what holds them, for the note.
    """
    try:
        found = [plain_value(value) for value in values]
    except ValueError as error:
        return Labels(None, note=f"{where}: {error}; one number or name for each image is expected")
    texts = [value for value in found if isinstance(value, str)]
    if texts and (len(texts) < sum(value is not None for value in found) or not all(map(is_number, texts))):
        return numbered([None if value is None else str(value) for value in found], where)
    try:
        return numbered([number_in(value) if isinstance(value, str) else value for value in found], where)
    except ValueError as error:
        return Labels(None, note=f"{where}: {error}; one number or name for each image is expected")


def plain_value(value: Any) -> int | str | None:
    """A whole number, a text, or None for no label. Raises ValueError: it is none of these."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, str):
        text = same_text(value.encode(errors="backslashreplace").decode().strip())  # JSON can hold halves of characters
        if text.startswith("[") and text.endswith("]"):  # as tables write lists
            raise ValueError(f"holds several values for an image, {text[:SHOWN]}")
        is_missing = text.lower() in MISSING or (is_number(text) and float(text) == UNLABELLED)
        return None if is_missing else text
    if isinstance(value, float):
        return None if math.isnan(value) else whole(value, value)
    if isinstance(value, int):  # True and False among them
        return None if value == UNLABELLED else int(value)
    if value is None:
        return None
    shown = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}…"
    kind = "several values for an image" if isinstance(value, list | tuple | dict) else type(value).__name__
    raise ValueError(f"holds {kind}, {shown}")


def number_in(text: str) -> int:
    """The whole number that a text holds: `3`, and `3.0` as tables with gaps write it. Raises ValueError."""
    return int(text) if re.fullmatch(r"[+-]?\d{1,4000}", text) else whole(float(text), text)


def whole(number: float, given: Any) -> int:
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"holds numbers that are not whole, such as {str(given)[:SHOWN]}")
    return int(number)


def numbered(values: Sequence[Any], where: str) -> Labels:
    """Classes from values of one kind, None for no label, by their order."""
    classes = sorted({value for value in values if value not in (None, UNLABELLED)})
    if not classes:
        return Labels(None, note=f"{where}: no image has a label")
    numbers, names = {value: number for number, value in enumerate(classes)}, [str(value) for value in classes]
    are_ids = isinstance(classes[0], int)
    if are_ids and classes[0] >= 0 and classes[-1] < max(FEW, 2 * len(classes)):
        numbers, names, are_ids = {value: value for value in classes}, [], False
    found = [numbers.get(value, UNLABELLED) for value in values]
    return Labels(torch.tensor(found, dtype=torch.int64), names or None, are_ids=are_ids)
