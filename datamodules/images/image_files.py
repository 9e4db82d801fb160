"""Images as files: a tree of folders, or a ZIP in EDM's format. What is not an image is left out, and counted."""

import hashlib
import io
import os
import re
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from datamodules.images.decoding import UnusableImageError, decodable_suffixes, load_image, open_image
from storage.digests import file_digest, file_digests
from storage.errors import UserError

LABELS_FILE = "dataset.json"
LOCAL_HEADER_BYTES = 30  # of a ZIP entry, before its name
# Pictures that Pillow cannot read: who has them means them as images, so they are not left out in silence.
UNREADABLE_SUFFIXES = {".heic", ".heif", ".dcm", ".svg", ".eps", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl"}


class FolderReader:
    """Images in a folder and the folders below it.

    Attributes:
        ids: sorted POSIX paths of the images below the root.
        unusable: names of files that were meant as images and cannot even be tried, each with the reason.
        left_out: how many files of which kind are no images: hidden ones, and others by their suffix.
        folders: paths of all folders in there, links to folders apart.
    """

    def __init__(self, root: Path) -> None:
        if root.is_file():
            kind = "zip" if zipfile.is_zipfile(root) else "npy" if root.suffix in (".npy", ".npz") else "folder"
            advice = "Give the folder of the images" if kind == "folder" else f"Type dataset={kind}"
            raise UserError(f"{root}: a file, where a folder is expected. {advice} with dataset.path={root}")
        if not root.is_dir():
            raise UserError(f"{root}: no such folder. Give the folder of the images with dataset.path=FOLDER")
        self.root = root
        self.unusable: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        self.folders: set[str] = set()
        self.ids = sorted(self._walk())
        if not self.ids and not self.unusable:
            raise no_images(root, self.left_out)

    def read(self, row: int) -> Image.Image:
        try:
            content = (self.root / self.ids[row]).read_bytes()
        except OSError as error:
            raise UnusableImageError(f"cannot be read ({error.strerror})") from error
        return load_image(content, self.ids[row])

    def read_header(self, row: int) -> Image.Image:
        return open_image(self.root / self.ids[row], self.ids[row])

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        try:
            return file_digests((self.root / self.ids[row] for row in rows), cache_dir)
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}). Mend that, remove the file, or type "
                "dataset.on_bad_file=skip to leave such files out."
            ) from error

    image_digests = contents

    def state(self) -> str:
        sha = hashlib.sha256()
        for image_id in self.ids:
            try:
                stat = (self.root / image_id).stat()
                sha.update(f"{image_id}\n{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}\n".encode())
            except OSError:
                sha.update(f"{image_id}\ngone\n".encode())
        return sha.hexdigest()

    def labels_text(self) -> bytes | None:
        path = self.root / LABELS_FILE
        return path.read_bytes() if path.is_file() else None

    def _walk(self) -> Iterator[str]:
        """Ids of the images; each real folder is entered once, however many links lead to it."""
        linked: list[str] = []
        entered: set[tuple[int, int]] = set()
        folders = [""]  # each with its trailing slash
        while folders or linked:
            folder = folders.pop() if folders else linked.pop(0)  # a real folder goes before links to it
            path = self.root / folder
            try:
                stat = path.stat()
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                self.unusable[printable(folder)] = f"a folder that cannot be opened ({error.strerror})"
                continue
            if (stat.st_dev, stat.st_ino) in entered:
                continue
            entered.add((stat.st_dev, stat.st_ino))
            for entry in entries:
                name = folder + entry.name
                if is_folder(entry):
                    if not is_visible(entry.name):
                        self.left_out["hidden folders"] += 1
                        continue
                    if not entry.is_symlink():
                        self.folders.add(name)
                    (linked if entry.is_symlink() else folders).append(f"{name}/")
                elif sort_out(name, self.unusable, self.left_out):
                    if is_file(entry):
                        yield name
                    else:
                        self.unusable[name] = "a link that leads nowhere, or no regular file; remove or mend it"


class ZipReader:
    """Images in a ZIP file, with the attributes of `FolderReader`.

    The archive is listed once; entries are read with `pread`, which has no position in the file that forked processes
    and threads could disturb for one another, and are checked against their CRC.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise UserError(f"{path}: a folder, where a ZIP is expected. Type dataset=folder with dataset.path={path}")
        if not path.is_file():
            raise UserError(f"{path}: no such file. Give the ZIP of the images with dataset.path=FILE.zip")
        self.path = path
        self.unusable: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        self._file: io.FileIO | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
                self._labels_text = archive.read(LABELS_FILE) if LABELS_FILE in archive.NameToInfo else None
        except Exception as error:  # a damaged directory can raise anything in there
            raise UserError(
                f"{path}: not a readable ZIP file ({error or type(error).__name__}). Copy or make it again, or give "
                "another with dataset.path=FILE.zip"
            ) from error
        self.folders = {info.filename.rstrip("/") for info in infos if info.is_dir() and is_visible(info.filename)}
        images = sorted(self._sort_out(infos), key=lambda info: info.filename)
        self.ids = [info.filename for info in images]
        self._entries = np.array(
            [(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type) for info in images],
            dtype=np.int64,
        ).reshape(-1, 5)
        if not self.ids and not self.unusable:
            raise no_images(path, self.left_out)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, row: int) -> Image.Image:
        return load_image(self._read_entry(row), self.ids[row])

    def read_header(self, row: int) -> Image.Image:
        return open_image(self._read_entry(row), self.ids[row])

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [file_digest(self.path, cache_dir)]

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """Size and CRC from the archive's listing; where several images share them, a hash of their bytes too."""
        digests = [f"{size}-{crc:08x}" for size, crc in self._entries[rows][:, 2:4].tolist()]
        counts = Counter(digests)
        return [
            f"{digest}-{hashlib.sha256(self._read_raw(row)).hexdigest()}" if counts[digest] > 1 else digest
            for row, digest in zip(rows, digests, strict=True)
        ]

    def state(self) -> str:
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"

    def labels_text(self) -> bytes | None:
        return self._labels_text

    def _sort_out(self, infos: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
        counts = Counter(info.filename for info in infos)
        for info in infos:
            name = info.filename
            if info.is_dir() or not sort_out(name, self.unusable, self.left_out):
                continue
            if counts[name] > 1:
                self.unusable[name] = f"{counts[name]} entries have this name; zip the images again"
            elif name.startswith("/") or ".." in name.split("/"):
                self.unusable[name] = "its name leads out of the archive; zip the images again from their own folder"
            elif info.flag_bits & 1:
                self.unusable[name] = "encrypted; unpack it with its password and zip it again without one"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self.unusable[name] = f"compressed by ZIP method {info.compress_type}; zip it again with `zip -r`"
            else:
                yield info

    def _read_entry(self, row: int) -> bytes:
        try:
            content = self._read_raw(row)
        except (OSError, struct.error, zlib.error) as error:
            raise UnusableImageError(f"truncated or damaged in the ZIP ({error})") from error
        if len(content) != self._entries[row, 2] or zlib.crc32(content) != self._entries[row, 3]:
            raise UnusableImageError("damaged in the ZIP: its bytes do not match their checksum")
        return content

    def _read_raw(self, row: int) -> bytes:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        offset, compressed_size, size, _, method = self._entries[row].tolist()
        header = os.pread(self._file.fileno(), LOCAL_HEADER_BYTES, offset)
        name_length, extra_length = struct.unpack("<HH", header[26:])
        start = offset + LOCAL_HEADER_BYTES + name_length + extra_length
        content = os.pread(self._file.fileno(), compressed_size, start)
        return content if method == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(content, size or 1)


# Which names are meant as images --------------------------------------------------------------------------------------


def sort_out(name: str, unusable: dict[str, str], left_out: Counter[str]) -> bool:
    """Whether a file of this name is an image to take; else it is counted, with the reason where it has one."""
    if not is_visible(name):
        left_out["hidden files like .x, ._x, __MACOSX"] += 1
        return False
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNREADABLE_SUFFIXES:
        unusable[printable(name)] = f"Pillow cannot read {suffix} files; convert it to PNG or JPEG"
        return False
    if suffix not in decodable_suffixes():
        if name != LABELS_FILE:
            left_out[f"{suffix} files" if suffix else "files without a suffix"] += 1
        return False
    if printable(name) != name:
        unusable[printable(name)] = "its name holds a line break, or bytes that are no UTF-8 text; rename it"
        return False
    return True


def is_visible(name: str) -> bool:
    """No part begins with a dot (`._x.jpg`, `.ipynb_checkpoints`), `..` apart, or is what macOS adds to ZIP files."""
    return not any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Also where the entry links to a folder; a link that goes in circles is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Also where the entry links to a file; a link that goes in circles is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def printable(name: str) -> str:
    """A file name as a terminal and JSON can show it: bytes that are no text as \\xff."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


def same_text(name: str) -> str:
    """A name in the one Unicode form that `ü` has, composed: macOS stores it as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


def no_images(path: Path, left_out: Counter[str]) -> UserError:
    """The error for a folder or ZIP without images; it says what is there instead."""
    found = ", ".join(f"{kind} ({count:,})" for kind, count in left_out.most_common(5)) or "nothing at all"
    return UserError(
        f"{path}: no images in there; found {found}. Give a folder or ZIP that holds PNG, JPEG, WebP, … files"
    )
