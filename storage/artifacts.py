"""Artifacts: the files that the stages hand to one another, written whole or not at all and verified before use.

An artifact is one safetensors file. Its header holds, under the key `cedm`, a JSON text with the artifact's kind, the
version of this format, free metadata, the versions of the libraries that made it, and a SHA-256 checksum over all of
that and every tensor's name, dtype, shape and bytes. safetensors alone notices a truncated file but no flipped bit.

This module imports nothing else of the project, and everything else may import it.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 1
HEADER_KEY = "cedm"
SEAL = "sha256"  # the key of a sealed JSON file's checksum
LIBRARIES = ("cluster-conditioned-diffusion", "torch", "lightning", "torchmetrics", "transformers", "safetensors")
WORKPLACE_SUFFIX, LOCK_NAME = ".tmp", ".lock"  # of the folders in which files are written before they get their name
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
DISK_FULL_WORDS = re.compile(
    "No space left|quota exceeded|File too large|Read-only file system|disk is full"
    + "".join(rf"|\(os error {code}\)" for code in DISK_FULL),
    re.IGNORECASE,
)

log = logging.getLogger(__name__)


class UserError(Exception):
    """A mistake that the user can mend. `str(error)` is the whole message: what is wrong, and what to do instead."""


class MissingArtifactError(UserError):
    """The artifact has not been made yet."""


class DamagedArtifactError(UserError):
    """The artifact's file is truncated, altered, or no artifact at all."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: CPU tensors by name, and the JSON metadata that says what made them."""

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


# Fingerprints ---------------------------------------------------------------------------------------------------------


def fingerprint(description: Any) -> str:
    """First 16 hex digits of the SHA-256 of `description` as canonical JSON (sorted keys, no NaN)."""
    return hashlib.sha256(canonical_json(description)).hexdigest()[:16]


def canonical_json(description: Any) -> bytes:
    """`description` as JSON bytes that depend on its content alone, not on the order of its keys."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def file_stem(*parts: str) -> str:
    """A file name's stem: `parts` joined by `-`, with anything but letters, digits and `._-` replaced."""
    return re.sub(r"[^\w.-]+", "_", "-".join(parts)).lstrip(".")


# Writing whole files --------------------------------------------------------------------------------------------------


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
        raise ValueError(
            f"{path.name!r}: file names that this project writes hold no '=' (Hydra reads it as an override)"
        )
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
            "Make room, then type the same command again."
        ) from error


@contextmanager
def _workplace(path: Path) -> Iterator[tuple[Path, int]]:
    """A folder beside `path` for one write (libraries leave temporary files of their own), and a new file's mode.

    Its lock is held as long as this process lives, which is how `remove_abandoned` knows whose time is over.
    """
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}{WORKPLACE_SUFFIX}")
        folder.mkdir()
        descriptor = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_WRONLY, 0o644)
        with suppress(OSError):  # a file system without locks: what is left there, a person has to remove
            fcntl.flock(descriptor, fcntl.LOCK_EX)
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
    for workplace in places:
        if not (workplace.name.startswith(".") and workplace.name.endswith(WORKPLACE_SUFFIX)):
            continue
        try:
            descriptor = os.open(workplace / LOCK_NAME, os.O_CREAT | os.O_WRONLY, 0o644)
        except OSError:  # gone meanwhile
            continue
        with suppress(OSError):  # its writer lives, or the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(workplace, ignore_errors=True)
        os.close(descriptor)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full or read-only disk, or a quota, is behind an error of Python, safetensors, SQLite or PyTorch."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or DISK_FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def set_aside(path: Path) -> Path:
    """Renames a damaged file to `NAME.damaged`, so that nobody reads it and its owner can look at it."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    return aside


def write_json(path: str | Path, data: Any) -> None:
    """Writes `data` as indented JSON, whole or not at all; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_sealed_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file that a later command relies on, with a checksum of its content beside the other keys."""
    plain = json.loads(json.dumps(_without_nan(data)))
    write_json(path, {**plain, SEAL: hashlib.sha256(canonical_json(plain)).hexdigest()})


def read_sealed_json(path: str | Path) -> dict[str, Any] | None:
    """What `write_sealed_json` wrote; None where there is no file.

    Raises:
        DamagedArtifactError: the file is not what was written.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        seal = data.pop(SEAL, None)  # earlier versions wrote none
        intact = seal is None or seal == hashlib.sha256(canonical_json(data)).hexdigest()
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedArtifactError(f"{path}: damaged or altered; its checksum does not match its content.")
    return data


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return data


# Artifacts ------------------------------------------------------------------------------------------------------------


def write_artifact(path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes one artifact atomically. `meta` is anything JSON can hold; tensors may live on any device."""
    payload = _independent_cpu_tensors(tensors)
    header = {
        "kind": kind,
        "format": FORMAT_VERSION,
        "meta": json.loads(json.dumps(_without_nan(meta))),  # the form that a reader will see
        "versions": library_versions(),
    }
    header["sha256"] = _checksum(header, payload)
    with atomic_path(path) as temporary:
        save_file(payload, temporary, metadata={HEADER_KEY: json.dumps(header, ensure_ascii=False, allow_nan=False)})


def read_artifact(path: str | Path, kind: str, remake: str) -> Artifact:
    """Reads and verifies the artifact at `path`, which must be of this `kind`.

    `remake` is the command that makes the file again; the messages name it. Raises `MissingArtifactError` where there
    is no file, `DamagedArtifactError` where its content is not what was written, and `UserError` where it is of another
    kind or a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingArtifactError(f"{path}: no such file ({kind}). Make it with: {remake}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            # The file is memory-mapped: verify and hand out a copy, which nobody can change behind our back.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        intact = header.pop("sha256", None) == _checksum(header, tensors)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedArtifactError(
            f"{path}: truncated, damaged, or no artifact of this project ({type(error).__name__}: {error}). "
            f"Make it again with: {remake}"
        ) from error
    if isinstance(header.get("format"), int) and header["format"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: written in format {header['format']} by a newer version of this project; "
            f"this one reads up to {FORMAT_VERSION}. Update the project, or make the file again with: {remake}"
        )
    if not intact:
        raise DamagedArtifactError(
            f"{path}: its checksum does not match its content; the file was damaged or altered. "
            f"Make it again with: {remake}"
        )
    if header["kind"] != kind:
        raise UserError(f"{path}: this file holds {header['kind']!r}; expected {kind!r}, which {remake} makes")
    return Artifact(path=path, kind=kind, tensors=tensors, meta=header["meta"])


def make_once(
    path: str | Path, kind: str, remake: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
) -> Artifact:
    """The artifact at `path`; where there is none, `make()` gives its tensors and metadata and it is written first.

    Processes that want the same artifact at the same time make it once: the others wait on a lock beside the file. A
    damaged file is set aside as `NAME.damaged` and made again.
    """
    path = Path(path)
    try:
        return read_artifact(path, kind, remake)
    except (MissingArtifactError, DamagedArtifactError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            return read_artifact(path, kind, remake)  # another process may have made it while this one waited
        except MissingArtifactError:
            pass
        except DamagedArtifactError as error:
            log.warning("%s Set aside as %s; making it again.", error, set_aside(path).name)
        tensors, meta = make()
        write_artifact(path, kind, tensors, meta)
        return read_artifact(path, kind, remake)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what an artifact holds."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # the project itself, run from its folder without installing
            continue
    return versions


def _independent_cpu_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors in sorted order, none sharing memory with another (safetensors refuses that)."""
    independent: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        independent[name] = tensor
    return independent


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(canonical_json(header))
    for name, tensor in sorted(tensors.items()):
        sha.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
