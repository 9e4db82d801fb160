"""Hydra's words, to read and to write."""

import re
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig


def word(key: str, value: object) -> str:
    """`key=value` as Hydra reads it, quoted where it has to be."""
    return f"{key}={quoted(value)}"


def quoted(value: object) -> str:
    """A text for Hydra's command line, in quotes unless it is a plain path, which nothing but a text can be."""
    text = str(value)
    if "/" in text and re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return text
    # OmegaConf takes ${ for a reference, and Hydra a backslash for itself where a quote or the end follows.
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def readable(words: Sequence[str]) -> list[str]:
    """The settings in Hydra's grammar: values that begin with `~` in quotes; and the choices that go with them."""
    quoted_words = (re.sub(r"^(\+{0,2}[\w./@]+)=(~.*)", lambda found: word(found[1], found[2]), one) for one in words)
    return [*implied(words), *quoted_words]


def implied(words: Sequence[str]) -> list[str]:
    """What `embeddings=FILE` chooses: its backbone and, where no data set is named, its rows in place of images."""
    typed = {key_of(text): text for text in words}
    if typed.get("embeddings", "=null").partition("=")[2] in ("null", ""):
        return []
    groups = ["backbone"] if "experiment" in typed else ["backbone", "dataset"]
    return [f"{group}=embeddings" for group in groups if group not in typed]


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").split("=", 1)[0]


def config_folders() -> list[str]:
    """`--config-dir=FOLDER` and `hydra.searchpath=[…]` as typed: what another command needs to know the same files."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    own = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    others = [quoted(source.path) for source in sources if source.provider == "hydra.searchpath in command-line"]
    return [*own, f"hydra.searchpath=[{','.join(others)}]"] if others else own
