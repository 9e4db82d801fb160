"""SHA-256 of files, remembered in the cache so that an unchanged data set is not read twice."""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from storage.files import set_aside

SETTLED_AFTER_NS = 1_000_000_000  # a file changed this recently may change again within one tick of its time stamps

log = logging.getLogger(__name__)


def file_digest(path: str | Path, cache_dir: str | Path | None = None) -> str:
    """SHA-256 (64 hex digits) of a file's bytes; see `file_digests`."""
    return file_digests([path], cache_dir)[0]


def file_digests(paths: Iterable[str | Path], cache_dir: str | Path | None = None) -> list[str]:
    """SHA-256 (64 hex digits) of each file's bytes.

    With a `cache_dir`, digests are remembered there by (path, size, mtime, ctime, inode), so that an unchanged file is
    not read twice.
    """
    if cache_dir is None:
        return [_hash_file(Path(path)) for path in paths]
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    database = Path(cache_dir) / "file_digests.sqlite"
    try:
        return _remembered_digests(paths := list(paths), database)
    except sqlite3.OperationalError:  # locked for long, or the disk is full
        raise
    except sqlite3.DatabaseError as error:
        with suppress(FileNotFoundError):  # another process has set it aside
            log.warning("%s is damaged (%s). Set aside as %s; begun anew.", database, error, set_aside(database).name)
        return _remembered_digests(paths, database)


def file_state(path: Path) -> str:
    """Size, times of change and inode: changes when the file may have changed, and is had without reading it."""
    try:
        return " ".join(map(str, _state(path)))
    except FileNotFoundError:
        return "gone"


def _remembered_digests(paths: Iterable[str | Path], database: Path) -> list[str]:
    """Digests from the database where the files are unchanged; the others are read, and remembered."""
    with closing(sqlite3.connect(database, timeout=60)) as memory:
        memory.execute(
            "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
            "ctime_ns INTEGER, inode INTEGER, digest TEXT)"
        )
        memory.commit()
        digests, fresh = [], []
        for path in map(Path, paths):
            key, state = str(path.absolute()), _state(path)
            row = memory.execute("SELECT * FROM digests WHERE path = ?", (key,)).fetchone()
            if row is not None and row[1:5] == state:
                digests.append(row[5])
                continue
            digests.append(_hash_file(path))
            if time.time_ns() - state[2] > SETTLED_AFTER_NS and _state(path) == state:
                fresh.append((key, *state, digests[-1]))
        memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", fresh)
        memory.commit()
    return digests


def _state(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
