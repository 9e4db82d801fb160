"""Typed settings: a config group is a frozen dataclass whose fields say what they mean and which values they take.

A subclass of `Settings` names its group and describes each field in one line:

    @dataclass(frozen=True)
    class TrainerSettings(Settings):
        group = "trainer"
        num_nodes: int = setting(1, "machines that take part", low=1)

Values outside a field's range are refused when the object is made. This module needs the standard library alone, so
that a mistake is told before anything large is imported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from storage.additions import addition
from storage.errors import UserError

REQUIRED: Any = "???"  # OmegaConf's mark of a value that has to be given


@dataclass(frozen=True)
class About:
    """What is known of a setting beside its type and default.

    Attributes:
        meaning: in a few words, with the unit where the name does not tell.
        low, high: limits that are allowed themselves.
        above, below: limits that are not.
        choices: the allowed values; empty: any.
        additions: the group of entry points whose names are allowed beside them.
        identifies: whether it tells one run from another. Where things lie and how many devices work does not.
        path: whether it is a path, in which `~` stands for the home folder.
    """

    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    additions: str = ""
    identifies: bool = True
    path: bool = False

    def expects(self) -> str:
        """`a number from 0 up to 1`, `a number above 0`, `one of a, b`; empty where any value will do."""
        if self.choices:
            return f"one of {', '.join(self.choices)}" + f", or of {self.additions} of a package" * bool(self.additions)
        limits = {"from": self.low, "above": self.above, "up to": self.high, "and below": self.below}
        parts = [f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None]
        return f"a number {' '.join(parts)}" if parts else ""

    def allows(self, value: Any) -> bool:
        """Whether a value lies in the range; each one of a list by itself, and None and text are no numbers."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(self.allows(item) for item in value)
        if self.choices:
            if value is None or value in self.choices:
                return True
            return bool(self.additions) and isinstance(value, str) and addition(self.additions, value) is not None
        if not isinstance(value, Real) or isinstance(value, bool):
            return True
        number = float(value)
        return not math.isnan(number) and (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    additions: str = "",
    identifies: bool = True,
    path: bool = False,
) -> Any:
    """A field of a settings class; see `About` for the arguments. A list or dictionary is copied for each object."""
    about = {"about": About(meaning, low, high, above, below, tuple(choices), additions, identifies, path)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """Base of all settings. Subclasses that check more than ranges call `super().__post_init__()` first.

    Raises:
        UserError: a value is outside its range.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for own in fields(self):
            about, value = own.metadata.get("about"), getattr(self, own.name)
            if about is not None and not about.allows(value):
                self.refuse(own.name, f"{about.expects() or 'a number'} is expected")
            if about is not None and about.path and isinstance(value, str):
                object.__setattr__(self, own.name, str(Path(value).expanduser()))

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise a `UserError` about the value of one field: `training.lr=-1: a number above 0 is expected.`"""
        value = getattr(self, name)
        raise UserError(f"{self.key(name)}={str(value).lower() if isinstance(value, bool) else value}: {expected}.")

    @classmethod
    def key(cls, name: str) -> str:
        """The setting as it is typed: `training.lr`."""
        return f"{cls.group}.{name}" if cls.group else name

    def identity(self) -> dict[str, Any]:
        """The values that tell one run from another, as JSON can hold them."""
        return {own.name: plain(getattr(self, own.name)) for own in fields(self) if identifies(own.metadata)}


def names_in(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of a setting that takes a list, or one alone."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def identifies(metadata: Any) -> bool:
    """Whether a field of this metadata tells one run from another."""
    about = metadata.get("about")
    return about is None or about.identifies


def plain(value: Any) -> Any:
    """A value as JSON can hold it: nested settings as dictionaries, infinity as text."""
    if isinstance(value, Settings):
        return value.identity()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
