"""The options of a command line that are Hydra's: an exact list. One of the others runs what a pickle holds."""

from collections.abc import Sequence

from pipeline.settings.allowed import NO_CODE
from storage.errors import UserError

SHORT = {"-m": "--multirun", "-h": "--help", "-c": "--cfg", "-cd": "--config-dir"}
FLAGS = ("--multirun", "--help", "--resolve")
WITH_VALUE = {"--cfg": ("job", "hydra", "all"), "--config-dir": ("FOLDER",)}  # its values, or an example


def options_and_settings(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options among the words by their long names, with their values ('' where they take none), and the settings.

    Raises:
        UserError: an option that is not on the list or not written in full, or two that exclude one another.
    """
    options: dict[str, str] = {}
    settings: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            settings.append(word)
            continue
        typed, equals, value = word.partition("=")
        name = SHORT.get(typed, typed)
        if name not in (*FLAGS, *WITH_VALUE) or (equals and name in FLAGS):
            known = ", ".join(sorted((*SHORT, *FLAGS, *WITH_VALUE)))
            told = f"there is no such option here, as {NO_CODE}. There are, in full: {known}. All else is key=value."
            raise UserError(f"{word}: {told}")
        if name in WITH_VALUE and not equals and left and not left[0].startswith("-"):
            value = left.pop(0)
        if name in WITH_VALUE and (not value or (name == "--cfg" and value not in WITH_VALUE[name])):
            raise UserError(f"{name}={value}: expected {' or '.join(f'{name}={one}' for one in WITH_VALUE[name])}.")
        options[name] = value
    if {"--multirun", "--cfg"} <= options.keys():
        raise UserError("--multirun and --cfg exclude one another. Give one of them.")
    if "--resolve" in options and "--cfg" not in options:
        raise UserError("--resolve goes with --cfg=job. Give both.")
    return options, settings


def spelled_out(options: dict[str, str]) -> list[str]:
    """The options as one word each, which can be read in one way only."""
    return [f"{name}={value}" if name in WITH_VALUE else name for name, value in options.items()]
