"""Artifacts: the files that the stages hand to one another, written whole or not at all and verified before use.

An artifact is one safetensors file. Its header holds, under the key `cedm`, a JSON text with the artifact's kind, the
version of this format, free metadata, the versions of the libraries that made it, and a SHA-256 checksum over all of
that and every tensor's name, dtype, shape and bytes. safetensors alone notices a truncated file but no flipped bit.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import atomic_path, lock_of, make_folder, numbered, set_aside, without_nan
from storage.fingerprints import canonical_json

FORMAT_VERSION = 1
HEADER_KEY = "cedm"
LIBRARIES = ("cluster-conditioned-diffusion", "torch", "lightning", "torchmetrics", "transformers", "safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: CPU tensors by name, and the JSON metadata that says what made them."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def write_artifact(path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes one artifact atomically. `meta` is anything JSON can hold; tensors may live on any device."""
    payload = _independent_cpu_tensors(tensors)
    header = {
        "kind": kind,
        "format": FORMAT_VERSION,
        "meta": plain_json(meta),  # the form that a reader will see
        "versions": library_versions(),
    }
    header["sha256"] = _checksum(header, payload)
    with atomic_path(path) as temporary:
        save_file(payload, temporary, metadata={HEADER_KEY: json.dumps(header, ensure_ascii=False, allow_nan=False)})


def read_artifact(path: str | Path, kind: str, mapped: bool = False) -> Artifact:
    """Reads and verifies the artifact at `path`, which must be of this `kind`.

    Where `mapped`, its tensors stay in the file, so that processes share their memory, and are not to be written to.

    Raises `MissingArtifactError` where there is no file, `DamagedArtifactError` where its content is not what was
    written, and `UserError` where it is of another kind or a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingArtifactError(kind, path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not mapped:  # verify and hand out a copy, which nobody can change behind our back
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        intact = header.pop("sha256", None) == _checksum(header, tensors)
        found, meta = str(header["kind"]), header["meta"]
        if not isinstance(meta, dict):
            raise TypeError(f"metadata of type {type(meta).__name__}")
    except PermissionError:
        raise
    except Exception as error:  # a damaged or made-up file can raise anything
        problem = f"truncated, damaged, or no artifact of this project ({type(error).__name__}: {error})."
        raise DamagedArtifactError(kind, path, problem) from error
    if isinstance(header.get("format"), int) and header["format"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: written in format {header['format']} by a newer version of this project; "
            f"this one reads up to {FORMAT_VERSION}. Update the project, or make the file again."
        )
    if not intact:
        raise DamagedArtifactError(kind, path, "damaged or altered; its checksum does not match its content.")
    if found != kind:
        raise UserError(f"{path}: this file holds {found!r}; expected {kind!r}")
    return Artifact(tensors=tensors, meta=meta)


def entry_path(path: str | Path, kind: str, made_from: Mapping[str, Any]) -> Path:
    """The file of a cache entry: `path`, or `NAME-2`, `NAME-3`, … where that name is taken by something else.

    A name is taken by an intact artifact of another kind, or one whose metadata say something else than `made_from`;
    by what is no artifact; and by a file that cannot be read. It is named in a warning and left as it is. A damaged
    artifact, which begins as one does, takes no name: whoever reads it says so and sets it aside.

    Args:
        made_from: keys of the metadata, with what they say; a dictionary in there may say more. A key that is not
            there is not held against an entry, as earlier versions wrote fewer, but one of them has to be.
    """
    for candidate in numbered(Path(path)):
        problem = _taken_by(candidate, kind, plain_json(made_from))
        if problem is None:
            return candidate
        _warn_once(f"{candidate}: {problem}. It is left as it is, and not used.")
    raise AssertionError


def _taken_by(path: Path, kind: str, made_from: Mapping[str, Any]) -> str | None:
    """What a file is instead of the entry that is looked for; None where it may be that, or there is none."""
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        return "no regular file"
    try:
        with path.open("rb") as file:
            length, brace = file.read(8), file.read(1)
        if any(length[3:]) or brace not in (b"", b"{"):  # headers of artifacts are shorter than 16 MB
            return "not written by this project"
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
        if text is None:
            return "not written by this project"
        header = json.loads(text)
        if header["kind"] == kind and not _others(header["meta"], made_from):
            return None
        artifact = read_artifact(path, header["kind"])  # a flipped bit in the header is damage
    except PermissionError:
        return "cannot be read by this user"
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError):
        return None
    others = ["settings" if key == "made_from" else key for key in _others(artifact.meta, made_from)]
    return f"holds {header['kind']}" + ("" if header["kind"] != kind else f" made from other {', '.join(others)}")


def _others(meta: Mapping[str, Any], made_from: Mapping[str, Any]) -> list[str]:
    """The keys of `made_from` of which the metadata of an artifact say something else; all where they say nothing."""
    known = meta.keys() & made_from.keys()
    return sorted(key for key in known or made_from if key not in known or not _says(meta[key], made_from[key]))


def _says(found: Any, expected: Any) -> bool:
    """Whether JSON data say what is expected; a dictionary may hold more."""
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(key in found and _says(found[key], expected[key]) for key in expected)
    return bool(found == expected)


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def plain_json(data: Any) -> Any:
    """`data` as it is when it was written as JSON and read again."""
    return json.loads(json.dumps(without_nan(data)))


def is_whole(path: str | Path, kind: str) -> bool:
    """Whether a file is there and holds what was written."""
    try:
        read_artifact(path, kind)
    except (MissingArtifactError, DamagedArtifactError):
        return False
    return True


def make_once(
    path: str | Path, kind: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]], mapped: bool = False
) -> Artifact:
    """The artifact at `path`; where there is none, `make()` gives its tensors and metadata and it is written first.

    Processes that want the same artifact at the same time make it once: the others wait on a lock beside the file. A
    damaged file is set aside as `NAME.damaged` and made again. `mapped`: see `read_artifact`.
    """
    path = Path(path)
    try:
        return read_artifact(path, kind, mapped)
    except (MissingArtifactError, DamagedArtifactError):
        make_folder(path.parent)
    with lock_of(path):
        try:
            return read_artifact(path, kind, mapped)  # another process may have made it while this one waited
        except MissingArtifactError:
            pass
        except DamagedArtifactError as error:
            log.warning("%s Set aside as %s; making it again.", error, set_aside(path).name)
        tensors, meta = make()
        write_artifact(path, kind, tensors, meta)
        return read_artifact(path, kind, mapped)


@functools.cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what an artifact holds."""
    versions = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):  # the project itself, run from its folder without installing
            versions[library] = version(library)
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
