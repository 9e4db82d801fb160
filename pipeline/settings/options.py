"""The options of a command line that are Hydra's: an exact list. One of the others runs what a pickle holds."""

from collections.abc import Sequence

from pipeline.settings.allowed import NO_CODE
from storage.errors import UserError

SHORT = {"-m": "--multirun", "-r": "--run", "-h": "--help", "-c": "--cfg", "-p": "--package", "-cd": "--config-dir",
         "-i": "--info"}  # fmt: skip
FLAGS = ("--multirun", "--run", "--help", "--resolve")
WITH_VALUE = {"--cfg": "job", "--package": "training", "--config-dir": "FOLDER", "--info": "all"}  # and an example
CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
MODES = ("--run", "--multirun", "--cfg", "--info")  # of which there can be one


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
            raise UserError(refused(word))
        if name in WITH_VALUE and not equals:
            value = value_behind(name, left)
        if value not in CHOICES.get(name, (value,)):
            raise UserError(f"{name}={value}: one of {', '.join(CHOICES[name])} is expected.")
        options[name] = value
    modes = [name for name in options if name in MODES]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude one another. Give one of them.")
    if "--resolve" in options and "--cfg" not in options:
        raise UserError("--resolve goes with --cfg=job. Give both.")
    return options, settings


def value_behind(name: str, left: list[str]) -> str:
    """The value of an option, taken from the words behind it."""
    if name == "--info" and (not left or left[0] not in CHOICES[name]):
        return WITH_VALUE[name]
    if not left or left[0].startswith("-"):
        raise UserError(f"{name}: a value is expected, such as {name}={WITH_VALUE[name]}.")
    return left.pop(0)


def refused(word: str) -> str:
    """The message about an option that is not on the list."""
    known = ", ".join(sorted((*SHORT, *FLAGS, *WITH_VALUE)))
    return f"{word}: there is no such option here, as {NO_CODE}. There are, in full: {known}. All else is key=value."


def spelled_out(options: dict[str, str]) -> list[str]:
    """The options as one word each, which can be read in one way only."""
    return [f"{name}={value}" if name in WITH_VALUE else name for name, value in options.items()]
