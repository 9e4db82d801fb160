"""Images by the names that other people's tables give them: without the suffix, or without the folders."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from storage.errors import UserError


def same_text(name: str) -> str:
    """A name in the one Unicode form that `ü` has, composed: macOS stores it as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


SPELLINGS: tuple[Callable[[str], str], ...] = (  # in the order of trying
    str,
    lambda name: str(PurePosixPath(name).with_suffix("")),
    lambda name: PurePosixPath(name).name,
    lambda name: PurePosixPath(name).stem,
)


def spelled_as(known: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The ids of images as a table spells them that has `known`, the first of `SPELLINGS` in which one is known.

    Where none is in any, they stay as they are.

    Raises:
        UserError: so spelled, two images have a name that the table has.
    """
    names, ids = {*map(same_text, known)}, list(map(same_text, ids))
    for spelling in SPELLINGS:
        spelled = list(map(spelling, ids))
        if names.isdisjoint(spelled):
            continue
        first: dict[str, str] = {}
        for name, image_id in zip(spelled, ids, strict=True):
            if first.setdefault(name, image_id) != image_id and name in names:
                raise UserError(f"{name!r} may be {first[name]!r} or {image_id!r}; give ids with folders and suffixes")
        return spelled
    return ids
