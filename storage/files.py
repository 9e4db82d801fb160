"""Files that are written whole or not at all, and JSON files with a checksum."""

import hashlib
import json
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

from storage.errors import DamagedArtifactError, UserError, disk_is_full
from storage.fingerprints import canonical_json

SEAL = "sha256"  # the key of a sealed JSON file's checksum
WORKPLACE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the folders in which files are written before they get their name
LOCK_NAME = ".lock"  # in each of them


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Path of a temporary file to write; it takes the name `path`, flushed to disk, when the block ends well.

    Whoever reads `path` sees the old file or the new one, never a part, even after a power cut. The mode is that of
    any new file (0644 under the umask). A block that raises leaves the old file as it was.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    if "=" in path.name:
        raise ValueError(f"{path.name!r}: a name with '=' in it would be an override to Hydra")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _workplace(path) as (folder, mode):
            temporary = folder / path.name
            yield temporary
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
        folder.mkdir()
        descriptor = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_WRONLY, 0o644)
        _lock(descriptor, wait=True)
        if (folder / LOCK_NAME).exists():  # else it was taken for abandoned in the moment before the lock
            break
        os.close(descriptor)
    try:
        yield folder, os.fstat(descriptor).st_mode & 0o777
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(folder: str | Path) -> None:
    """Removes what killed writers left in `folder` and below it; a living writer, on any machine, is not disturbed."""
    places = (Path(parent, name) for parent, names, _ in os.walk(folder) for name in names)  # passes over the vanished
    for workplace in (place for place in places if WORKPLACE.fullmatch(place.name)):
        with suppress(OSError), (workplace / LOCK_NAME).open("r+b") as lock:  # none: gone meanwhile, or not locked yet
            if _lock(lock.fileno(), wait=False):  # its writer lives no more
                shutil.rmtree(workplace, ignore_errors=True)


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
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    return aside


def write_json(path: str | Path, data: Any) -> None:
    """Writes `data` as indented JSON, whole or not at all; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
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
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        intact = data.pop(SEAL, None) == hashlib.sha256(canonical_json(data)).hexdigest()
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedArtifactError("JSON", Path(path), "damaged or altered; its checksum does not match its content.")
    return data


def remembered_json(path: str | Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the sealed JSON file at `path` holds; where there is none, or a damaged one, `make()` gives its content."""
    with suppress(DamagedArtifactError):
        found = read_sealed_json(path)
        if found is not None:
            return found
    data = make()
    write_sealed_json(path, data)
    return data


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
