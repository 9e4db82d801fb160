"""Files that are written whole or not at all, and JSON files with a checksum."""

import errno
import hashlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from storage.bounds import refuse_large
from storage.control_characters import CONTROL
from storage.errors import DamagedArtifactError, UserError, disk_is_full
from storage.fingerprints import canonical_json

MADE_FROM, CONTENT = "made_from", "content"  # keys of a remembered JSON file
MOST_JSON = 1 << 28  # bytes of a JSON file that this project writes: a survey of millions of bad files is the largest
SEAL = "sha256"  # the key of a sealed JSON file's checksum
WORKPLACE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the folders in which files are written before they get their name
WRITER = ".cedm-writer"  # in each of them: what its writer holds locked, and nobody else's folder has
CACHE_FOLDERS = (
    "surveys",
    "packed-images",
    "embeddings",
    "neighbours",
    "maps",
    "pseudo-labels",
    "statistics",
    "features",
)
TOLD_AFTER, LONGEST_WAIT = 10.0, 3600.0  # seconds that a process waits for the work of another
MARK = ".cedm"  # in folders that this project made for files which are never a user's

log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Path of a temporary file (or folder) to write; it takes the name `path`, flushed to disk, when all went well.

    Whoever reads `path` sees the old file or the new one, never a part, even after a power cut. The mode is that of
    any new file (0644 under the umask). A block that raises leaves the old file as it was.

    Raises:
        UserError: the disk is full.
        PermissionError: nothing can be written there.
    """
    path = Path(path)
    if "=" in path.name:
        raise ValueError(f"{path.name!r}: a name with '=' in it would be an override to Hydra")
    make_folder(path.parent)
    try:
        with _workplace(path) as (folder, mode):
            temporary = folder / path.name
            yield temporary
            if not temporary.is_dir():
                temporary.chmod(mode)  # safetensors makes its files 0600
            _flush_to_disk(temporary)
            temporary.replace(path)
            _flush_to_disk(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not disk_is_full(error):
            raise
        raise UserError(
            f"{path}: the disk or your quota is full. What lay there before is untouched. "
            "Make room, then run the same command again."
        ) from error


@contextmanager
def _workplace(path: Path) -> Iterator[tuple[Path, int]]:
    """A folder beside `path` for one write (libraries leave temporary files of their own), and a new file's mode.

    Its lock is held as long as this process lives, which is how `remove_abandoned` knows whose time is over.
    """
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        make_folder(folder)
        descriptor = os.open(folder / WRITER, os.O_CREAT | os.O_WRONLY, 0o644)
        _lock(descriptor, wait=True)
        if (folder / WRITER).exists():  # else it was taken for abandoned in the moment before the lock
            break
        os.close(descriptor)
    try:
        yield folder, os.fstat(descriptor).st_mode & 0o777
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        PermissionError: there can be none, as where the file system is read-only, or none of files, such as /proc.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOENT):
            raise PermissionError(error.errno, error.strerror, str(folder)) from error
        raise


def remove_abandoned(folder: str | Path) -> None:
    """Removes what killed writers left in `folder` and below it; a living writer, on any machine, is not disturbed.

    A folder is taken for theirs by its name and by what they put into it, which is opened and never made: whatever
    else is called `.x.tmp` stays. `folder` should be one that this project made.
    """
    places = (Path(parent, name) for parent, names, _ in os.walk(folder) for name in names)  # passes over the vanished
    for workplace in (place for place in places if WORKPLACE.fullmatch(place.name) and not place.is_symlink()):
        with suppress(OSError), (workplace / WRITER).open("r+b") as lock:  # none: somebody else's, or gone meanwhile
            if _lock(lock.fileno(), wait=False):  # its writer lives no more
                shutil.rmtree(workplace, ignore_errors=True)


def own_folder(folder: Path) -> Path:
    """`folder`, made and marked as this project's, or `folder-2`, … where somebody else's has that name.

    What lies in such a folder may be cleared, and is never taken for a user's images. Where it cannot be made, whoever
    writes there will hear why.
    """
    while True:
        candidate = next(place for place in numbered(folder) if is_own(place) or not os.path.lexists(place))
        if is_own(candidate):
            return candidate
        made = candidate.with_name(f".{candidate.name}.{secrets.token_hex(4)}.tmp")
        try:
            made.mkdir(parents=True)
        except OSError:
            return candidate
        (made / MARK).write_text(
            "Made by cluster-conditioned-diffusion. What lies here is made again where it is gone.\n"
        )
        with suppress(OSError):  # another process was faster
            made.rename(candidate)
            return candidate
        shutil.rmtree(made)


def is_own(folder: Path) -> bool:
    """Whether `own_folder` made it."""
    return (folder / MARK).is_file()


def numbered(path: Path) -> Iterator[Path]:
    """`a.png`, `a-2.png`, `a-3.png`, …"""
    yield path
    yield from (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file as long as it is open. False where another process has it, or where there are no locks.

    Without locks (on Windows, on some file systems) what killed writers leave has to be removed by a person.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def set_aside(path: Path) -> Path:
    """Renames a damaged file to `NAME.damaged`, so that nobody reads it and its owner can look at it."""
    aside = next(name for name in numbered(path.with_name(f"{path.name}.damaged")) if not os.path.lexists(name))
    path.rename(aside)
    return aside


def write_json(path: str | Path, data: Any) -> None:
    """Writes `data` as indented JSON, whole or not at all; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
    text = CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)  # in its texts
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_sealed_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file that a later command relies on, with a checksum of its content beside the other keys."""
    plain = json.loads(json.dumps(without_nan(data)))
    write_json(path, {**plain, SEAL: hashlib.sha256(canonical_json(plain)).hexdigest()})


def read_sealed_json(path: str | Path) -> dict[str, Any] | None:
    """What `write_sealed_json` wrote; None where there is no file.

    Raises:
        DamagedArtifactError: the file is not what was written.
    """
    try:
        refuse_large(Path(path), MOST_JSON, "a file of this kind")
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        intact = data.pop(SEAL, None) == hashlib.sha256(canonical_json(data)).hexdigest()
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError, RecursionError, UserError):
        intact = False
    if not intact:
        raise DamagedArtifactError("JSON", Path(path), "damaged or altered; its checksum does not match its content.")
    return data


@contextmanager
def lock_of(path: Path) -> Iterator[None]:
    """Holds the lock beside a file, for work that one process is to do, of the many that start at the same time.

    Where there can be none, as in another user's cache, or it is not had within an hour, work may be done twice.
    """
    from filelock import FileLock, Timeout  # a tenth of what `--help` takes

    lock = FileLock(f"{path}.lock")
    try:
        try:
            lock.acquire(timeout=TOLD_AFTER)
        except Timeout:
            log.warning("%s is being made by another process, which this one waits for.", path)
            lock.acquire(timeout=LONGEST_WAIT)
    except Timeout:
        log.warning("%s: the other process is not done after an hour, so this one does the same work.", path)
    except (OSError, NotImplementedError):  # another user's, or a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def remembered_json(path: str | Path, made_from: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make()` gives, from a sealed JSON file that says that it was made from this, or made now and kept there.

    The file is `path`, or `NAME-2`, … where that holds something else, which is left as it is. A damaged one is set
    aside. Where none can be written, as in another user's cache, what was made is not kept.
    """
    content, _ = _kept(Path(path), made_from)
    if content is not None:
        return content
    with lock_of(Path(path)):
        content, place = _kept(Path(path), made_from)  # another process may have made it while this one waited
        if content is not None:
            return content
        data = make()
        with suppress(OSError):
            if place.is_file():
                log.warning("%s is damaged. Set aside as %s; made again.", place, set_aside(place).name)
            write_sealed_json(place, {MADE_FROM: made_from, CONTENT: data})
    return data


def _kept(path: Path, made_from: Any) -> tuple[dict[str, Any] | None, Path]:
    """What is remembered as made from this, if anything, and the file that holds it or is to hold it."""
    for candidate in numbered(path):
        try:
            found = read_sealed_json(candidate)
        except (DamagedArtifactError, OSError):
            found = None
        if found is not None and found.get(MADE_FROM) == made_from and CONTENT in found:
            return found[CONTENT], candidate
        if found is None and (candidate.is_file() or not os.path.lexists(candidate)):
            break
        log.warning("%s: holds something else. It is left as it is, and not used.", candidate)
    return None, candidate


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return data
