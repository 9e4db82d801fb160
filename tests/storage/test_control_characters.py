"""Names of other people's files, as a terminal, a log and JSON show them."""

import io
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from pipeline.settings.machine import unbreakable
from storage.control_characters import escaped, shown
from storage.files import write_json

OBEYED = [*map(chr, (*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))]


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    for character in OBEYED:
        assert escaped(f"a{character}b").isprintable(), ascii(character)
        assert character in "\n\t" or shown(f"a{character}b\n") == f"a{escaped(character)}b\n", ascii(character)


@given(st.text())
def test_other_text_stays(text: str) -> None:
    plain = "".join(letter for letter in text if letter not in OBEYED and letter not in "\u2028\u2029")
    assert shown(plain) == escaped(plain) == plain


def test_values() -> None:
    assert escaped("a\x1b]0;x\x07\x9b\u202eé图\n") == "a\\x1b]0;x\\x07\\x9b\\u202eé图\\n"
    assert shown("\r\x1b[31m 5%\r") == "\r\\x1b[31m 5%\r"
    assert shown("a\rb") == "a\\rb"


def test_progress_bars_move() -> None:
    stream = io.StringIO()
    unbreakable(stream)
    with tqdm(total=2, desc="out\x1b[31mer", file=stream), tqdm(total=2, position=1, file=stream, ncols=60):
        pass
    written = stream.getvalue()
    assert "\r" in written
    assert "\x1b[A" in written
    assert "out\\x1b[31mer" in written


def test_json_keeps_the_text(tmp_path: Path) -> None:
    text = "".join(OBEYED) + "é\\"
    write_json(tmp_path / "a.json", {text: [text]})
    raw = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert raw.replace("\n", "").isprintable()
    assert json.loads(raw) == {text: [text]}
