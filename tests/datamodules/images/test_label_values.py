"""Labels from one value for each image, whatever kind of value that is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.images.image_names import same_text
from datamodules.images.label_values import labels_from_values


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        ([0, 2, 1], [0, 2, 1], None),
        ([5, 7, 5], [5, 7, 5], None),  # few, so they stay
        ([999, 0], [999, 0], None),
        ([1000, 0], [1, 0], ["0", "1000"]),
        (list(range(3000)), list(range(3000)), None),  # many, and there is an image of each
        ([2_000_000_000, 7, 2_000_000_000], [1, 0, 1], ["7", "2000000000"]),
        ([10**30, 2**64], [1, 0], ["18446744073709551616", "1000000000000000000000000000000"]),
        ([-5, -1, 3], [0, -1, 1], ["-5", "3"]),  # below 0, but not −1
        ([True, False], [1, 0], None),
        ([1.0, float("nan"), 3.0], [1, -1, 3], None),
        ([3, None, -1, -1.0], [3, -1, -1, -1], None),
        (["dog", "cat", "", " dog ", "NaN", "-1"], [1, 0, -1, 1, -1, -1], ["cat", "dog"]),
        (["10", "9", "", "-1"], [10, 9, -1, -1], None),
        (["10.0", "9", ""], [10, 9, -1], None),  # as tables with gaps write them
        (["007", "7"], [7, 7], None),
        (["3", "cat"], [0, 1], ["3", "cat"]),
        ([3, "cat", None], [0, 1, -1], ["3", "cat"]),
        (["1.5", "cat"], [0, 1], ["1.5", "cat"]),
        (["n01440764", "n01440764"], [0, 0], ["n01440764"]),
        (["9" * 5000, "1"], None, None),  # no float holds it
        ([b"cat", b"dog"], [0, 1], ["cat", "dog"]),
        (["u\u0308", "\u00fc", "null"], [0, 0, -1], ["\u00fc"]),  # one letter in two forms
        (["[0, 1]", "[1]"], None, None),  # lists, as tables write them
        (["\ud800cat", "dog"], [0, 1], ["\\ud800cat", "dog"]),  # half a character, which no file can hold
        (["0.5", "1"], None, None),
        ([0.5, 1.0], None, None),
        ([1e300, 1.0], [1, 0], ["1", str(int(1e300))]),
        ([float("inf")], None, None),
        ([[1], [2]], None, None),
        ([(1, 0)], None, None),
        ([1, [1]], None, None),
        ([None, -1, ""], None, None),
        ([1j], None, None),
    ],
)
def test_values(values: list[Any], expected: list[int] | None, names: list[str] | None) -> None:
    labels = labels_from_values(values, "here")
    assert (None if labels.values is None else labels.values.tolist(), labels.class_names) == (expected, names)
    assert bool(labels.note) == (expected is None)
    assert labels.are_ids == (names is not None and isinstance(values[0], int | float) and "cat" not in names)


NUMBERS = st.integers() | st.integers(-2, 12)


@given(st.lists(st.one_of(st.none(), NUMBERS), min_size=1) | st.lists(st.one_of(st.none(), st.text()), min_size=1))
def test_equal_values_share_a_class_and_its_order_is_theirs(values: list[Any]) -> None:
    """And a class is never far above the number of classes, so that tables of them stay small."""
    labels = labels_from_values(values, "here")
    if labels.values is None:
        assert labels.note
        return
    found = labels.values.tolist()
    assert max(found) < max(1000, 2 * len(values))
    for number, value in zip(found, values, strict=True):
        if value is None or value == -1:
            assert number == -1
        if number >= 0 and labels.class_names:
            assert labels.class_names[number] == same_text(value.strip() if isinstance(value, str) else str(value))
    known = [(value, number) for value, number in zip(values, found, strict=True) if number >= 0]
    if all(isinstance(value, int) for value, _ in known):
        by_value, by_number = (sorted(range(len(known)), key=lambda row: known[row][side]) for side in (0, 1))
        assert by_value == by_number
