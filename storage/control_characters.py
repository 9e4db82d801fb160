"""Characters that a terminal obeys instead of showing them, in names that other people gave."""

import re

# C0, DEL, C1, the line ends of Unicode, and what turns the direction of writing until it is turned back.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What tqdm writes to move between its bars. It comes alone, so no name can be taken for it.
BAR_MOVES = re.compile("(\n|\x1b\\[A)*")


def escaped(text: str) -> str:
    """The text with every control character as `\\x1b` or `\\u202e`, a line break as `\\n`."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1] if found[0].isascii() else ascii(found[0])[1:-1], text)


def shown(text: str) -> str:
    """A text for people, of one or several lines, with all control characters escaped that are not line ends or tabs.

    Carriage returns at its two ends stay: with them a progress bar writes over itself.
    """
    if CONTROL.search(text) is None or BAR_MOVES.fullmatch(text):
        return text
    body = text.strip("\r")
    start, end = (text[: len(text) - len(text.lstrip("\r"))], text[len(text.rstrip("\r")) :]) if body else (text, "")
    return start + CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else escaped(found[0]), body) + end
