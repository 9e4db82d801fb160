"""Files that have to stay as they were when they were listed: what is read later would be of another data set."""

import os
from pathlib import Path

from storage.errors import UserError

State = tuple[int, int]  # size in bytes, time of the last change in ns
GONE: State = (-1, -1)


def state_of(file: str | Path | int) -> State:
    """Size and time of change of a file, or of a descriptor; `GONE` where there is none."""
    try:
        stat = os.stat(file)  # noqa: PTH116 (of a descriptor, too)
    except OSError:
        return GONE
    return stat.st_size, stat.st_mtime_ns


def refuse_changed(file: str | Path | int, before: State, name: str) -> None:
    """Raise a `UserError` where a file is not in the state any more that it was in `before`."""
    now = state_of(file)
    if now != before:
        how = "is gone" if now == GONE else f"has changed ({before[0]:,} bytes then, {now[0]:,} now)"
        if now[0] == before[0]:
            how = "has changed (its time stamp is another one)"
        raise UserError(
            f"{name} {how} since the images were listed. What is computed from it would be of another data set. Put it "
            "back as it was, or run the same command again, which takes the images as they are then."
        )
