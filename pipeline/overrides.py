"""Hydra's `key=value` words, to read and to write."""

import re


def word(key: str, value: object) -> str:
    """`key=value` as Hydra reads it, quoted where it has to be."""
    return f"{key}={quoted(value)}"


def quoted(value: object) -> str:
    """A value for Hydra's command line, in quotes where it needs them."""
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").split("=", 1)[0]
