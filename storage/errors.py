"""What can be wrong through no fault of the program. `str(error)` says what is wrong, with the value and the file."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL_WORDS = re.compile(
    "No space left|quota exceeded|File too large|disk is full"
    + "".join(rf"|\(os error {code}\)" for code in DISK_FULL),
    re.IGNORECASE,
)


class UserError(Exception):
    """A mistake that the user can correct: what is wrong, what was expected, what to set instead."""


class WrongPathError(UserError):
    """What a setting leads to is not what is needed there; `named_by` adds which setting that is.

    Attributes:
        expected: what to set instead, such as `FOLDER`.
    """

    def __init__(self, problem: str, expected: str) -> None:
        super().__init__(problem)
        self.expected = expected


@contextmanager
def named_by(setting: str, instead: str = "") -> Iterator[None]:
    """Turns a `WrongPathError` into a `UserError` that says what to set: `evaluation.weights.dinov2_vitl14=FOLDER`.

    `instead` is what else can be done.
    """
    try:
        yield
    except WrongPathError as error:
        raise UserError(f"{error} Set {setting}={error.expected}.{instead}") from error


class ArtifactError(UserError):
    """Something is wrong with a file that this project makes; whoever knows the command that makes it adds it.

    Attributes:
        kind: of the artifact, such as `pseudo-labels`.
        path: of the file.
    """

    def __init__(self, kind: str, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.kind, self.path = kind, path


class MissingArtifactError(ArtifactError):
    """The artifact has not been made yet."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__(kind, path, f"no such file ({kind}).")


class DamagedArtifactError(ArtifactError):
    """The artifact's file is truncated, altered, or no artifact at all."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: BaseException) -> bool:
    """Whether a full disk or a quota is behind an error of Python, safetensors, SQLite or PyTorch."""
    return any(getattr(one, "errno", None) in DISK_FULL or DISK_FULL_WORDS.search(str(one)) for one in causes(error))
