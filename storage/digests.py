"""SHA-256 of files, remembered in the cache so that an unchanged data set is not read twice."""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from storage.errors import UserError, disk_is_full
from storage.files import lock_of, set_aside

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

    Raises:
        OSError: a file cannot be read.
        UserError: there can be no folder `cache_dir`.
    """
    files = [*map(Path, paths)]
    if cache_dir is None:
        return [*map(_hash_file, files)]
    database = Path(cache_dir) / DATABASE
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        return _remembered_digests(files, database)
    except (sqlite3.OperationalError, PermissionError) as error:  # another user's, locked for long, or the disk is full
        if disk_is_full(error):
            raise
        log.warning("%s cannot be used (%s): all files are read.", database, error)
    except OSError as error:
        if database.parent.is_dir():  # it is one of the files
            raise
        raise UserError(f"cache_dir={cache_dir}: no folder can be made there ({error.strerror}).") from error
    except sqlite3.DatabaseError as error:
        with suppress(OSError):  # another process has done so; or it is another user's
            log.warning("%s is damaged (%s). Set aside as %s; begun anew.", database, error, set_aside(database).name)
            return _remembered_digests(files, database)
    return [*map(_hash_file, files)]


def file_state(path: Path) -> str:
    """Size, times of change and inode: changes when the file may have changed, and is had without reading it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _remembered_digests(paths: Sequence[Path], database: Path) -> list[str]:
    """Digests from the database where the files are unchanged; the others are read, and remembered.

    Of processes that start together, as torchrun's do, one reads the files and the others what it remembers.
    """
    with closing(_connect(database)) as memory:
        digests = {path: digest for path in paths if (digest := _look_up(memory, path, file_state(path)))}
        if missing := [path for path in paths if path not in digests]:
            with lock_of(database):
                digests |= _read_files(missing, memory, database)
    return [digests[path] for path in paths]


def _read_files(paths: Iterable[Path], memory: sqlite3.Connection, database: Path) -> dict[Path, str]:
    """The digest of each file, read unless another process has meanwhile remembered it, and remembered."""
    digests, fresh = {}, []
    for path in paths:
        state = file_state(path)
        found = _look_up(memory, path, state)
        digests[path] = found or _hash_file(path)
        settled = not found and time.time_ns() - path.stat().st_ctime_ns > SETTLED_AFTER_NS
        if settled and file_state(path) == state:
            fresh.append((str(path.absolute()), state, digests[path]))
    try:
        memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", fresh)
        memory.commit()
    except sqlite3.OperationalError as error:
        if disk_is_full(error):
            raise
        log.warning("%s cannot be written (%s): what was read now is not remembered.", database, error)
    return digests


def _look_up(memory: sqlite3.Connection, path: Path, state: str) -> str | None:
    query = "SELECT digest FROM files WHERE path = ? AND state = ?"
    found = memory.execute(query, (str(path.absolute()), state)).fetchone()
    return None if found is None else found[0]


def _connect(database: Path) -> sqlite3.Connection:
    """The database, made where there is none; one that cannot be written is opened for reading."""
    if database.exists() and not (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    memory = sqlite3.connect(database, timeout=60)
    memory.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, digest TEXT)")
    memory.commit()
    return memory


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
