"""Hydra's `key=value` words, to read and to write."""

import re


def word(key: str, value: object) -> str:
    """`key=value` as Hydra reads it, quoted where it has to be."""
    return f"{key}={quoted(value)}"


def quoted(value: object) -> str:
    """A text for Hydra's command line, in quotes unless it is a plain path, which nothing but a text can be."""
    text = str(value)
    if "/" in text and re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return text
    # Hydra takes a backslash for itself, unless a quote or the end follows.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").split("=", 1)[0]
