"""SHA-256 of files, remembered in the cache so that an unchanged data set is not read twice."""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from storage.files import set_aside

DATABASE = "file_digests.sqlite"  # in the cache
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
    database = Path(cache_dir) / DATABASE
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
        stat = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _remembered_digests(paths: Iterable[str | Path], database: Path) -> list[str]:
    """Digests from the database where the files are unchanged; the others are read, and remembered."""
    with closing(sqlite3.connect(database, timeout=60)) as memory:
        memory.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, digest TEXT)")
        memory.commit()
        digests, fresh = [], []
        for path in map(Path, paths):
            key, state = str(path.absolute()), file_state(path)
            found = memory.execute("SELECT digest FROM files WHERE path = ? AND state = ?", (key, state)).fetchone()
            digests.append(found[0] if found else _hash_file(path))
            settled = not found and time.time_ns() - path.stat().st_ctime_ns > SETTLED_AFTER_NS
            if settled and file_state(path) == state:
                fresh.append((key, state, digests[-1]))
        memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", fresh)
        memory.commit()
    return digests


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
