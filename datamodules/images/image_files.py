"""Images as files: a tree of folders, or a ZIP in EDM's format. What is not an image is left out, and counted."""

import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError, decodable_suffixes, load_image, open_image
from datamodules.images.label_files import LABELS_FILE, parse_dataset_json
from datamodules.images.reader import Labels, Reader
from storage.digests import file_digest, file_digests, file_state
from storage.errors import WrongPathError

LOCAL_HEADER_BYTES = 30  # of a ZIP entry, before its name
# Pictures that Pillow cannot read: who has them means them as images, so they are not left out in silence.
UNREADABLE_SUFFIXES = {".heic", ".heif", ".dcm", ".svg", ".eps", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl"}


class FolderReader(Reader):
    """Images in a folder and the folders below it; the ids are their sorted POSIX paths."""

    def __init__(self, root: Path) -> None:
        super().__init__("folder")
        if root.is_file():
            problem = "a file, where a folder is expected (dataset=zip and dataset=npy are for files)"
            raise WrongPathError(f"{root}: {problem}.", "FOLDER")
        if not root.is_dir():
            raise WrongPathError(f"{root}: no such folder.", "FOLDER")
        self.root = root
        self.folders: set[str] = set()
        self.ids = sorted(self._walk())
        refuse_no_images(root, self)

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
            raise UnusableImageError(f"{error.filename} cannot be read ({error.strerror})") from error

    image_digests = contents

    def state(self) -> str:
        sha = hashlib.sha256()
        for image_id in self.ids:
            try:
                sha.update(f"{image_id}\n{file_state(self.root / image_id)}\n".encode())
            except OSError:
                sha.update(f"{image_id}\ngone\n".encode())
        return sha.hexdigest()

    def own_labels(self) -> Labels | None:
        path = self.root / LABELS_FILE
        return parse_dataset_json(path, path.read_bytes(), self.ids) if path.is_file() else None

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
                if leads_to(entry.is_dir):
                    if not is_visible(entry.name):
                        self.left_out["hidden folders"] += 1
                        continue
                    if not entry.is_symlink():
                        self.folders.add(name)
                    (linked if entry.is_symlink() else folders).append(f"{name}/")
                elif sort_out(name, self):
                    if leads_to(entry.is_file):
                        yield name
                    else:
                        self.unusable[name] = "a link that leads nowhere, or no regular file; remove or fix it"


class ZipReader(Reader):
    """Images in a ZIP file; the ids are their sorted names in it.

    The archive is listed once; entries are read with `pread`, which has no position in the file that forked processes
    and threads could disturb for one another, and are checked against their CRC.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("zip")
        if path.is_dir():
            raise WrongPathError(f"{path}: a folder, where a ZIP is expected (see dataset=folder).", "FILE.zip")
        if not path.is_file():
            raise WrongPathError(f"{path}: no such file.", "FILE.zip")
        self.path = path
        self._file: io.FileIO | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
                self._labels_text = archive.read(LABELS_FILE) if LABELS_FILE in archive.NameToInfo else None
        except Exception as error:  # a damaged directory can raise anything in there
            problem = f"not a readable ZIP file ({error or type(error).__name__}). Copy or make it again"
            raise WrongPathError(f"{path}: {problem}.", "FILE.zip") from error
        self.folders = {info.filename.rstrip("/") for info in infos if info.is_dir() and is_visible(info.filename)}
        images = sorted(self._sort_out(infos), key=lambda info: info.filename)
        self.ids = [info.filename for info in images]
        self._entries = np.array(
            [(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type) for info in images],
            dtype=np.int64,
        ).reshape(-1, 5)
        refuse_no_images(path, self)

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
        return file_state(self.path)

    def own_labels(self) -> Labels | None:
        text = self._labels_text
        return None if text is None else parse_dataset_json(self.path / LABELS_FILE, text, self.ids)

    def _sort_out(self, infos: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
        counts = Counter(info.filename for info in infos)
        for info in infos:
            name = info.filename
            if info.is_dir() or not sort_out(name, self):
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


def sort_out(name: str, reader: Reader) -> bool:
    """Whether a file of this name is an image to take; else it is counted, with the reason where it has one."""
    if not is_visible(name):
        reader.left_out["hidden files like .x, ._x, __MACOSX"] += 1
        return False
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNREADABLE_SUFFIXES:
        reader.unusable[printable(name)] = f"Pillow cannot read {suffix} files; convert it to PNG or JPEG"
        return False
    if suffix not in decodable_suffixes():
        if name != LABELS_FILE:
            reader.left_out[f"{suffix} files" if suffix else "files without a suffix"] += 1
        return False
    if printable(name) != name:
        reader.unusable[printable(name)] = "its name holds a line break, or bytes that are no UTF-8 text; rename it"
        return False
    return True


def is_visible(name: str) -> bool:
    """No part begins with a dot (`._x.jpg`, `.ipynb_checkpoints`), `..` apart, or is what macOS adds to ZIP files."""
    return not any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def leads_to(test: Callable[[], bool]) -> bool:
    """Whether an entry is, or links to, what `test` asks; a link that goes in circles leads nowhere."""
    try:
        return test()
    except OSError:
        return False


def printable(name: str) -> str:
    """A file name as a terminal and JSON can show it: bytes that are no text as \\xff."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


def refuse_no_images(path: Path, reader: Reader) -> None:
    """Raise a `WrongPathError` for a folder or ZIP without images; it says what is there instead."""
    if not reader.ids and not reader.unusable:
        found = ", ".join(f"{kind} ({count:,})" for kind, count in reader.left_out.most_common(5)) or "nothing at all"
        problem = f"no images in there; found {found}. PNG, JPEG, WebP, … files are expected"
        raise WrongPathError(f"{path}: {problem}.", "FOLDER or FILE.zip")


def open_folder(settings: DatasetSettings) -> FolderReader:
    return FolderReader(Path(str(settings.path)))


def open_zip(settings: DatasetSettings) -> ZipReader:
    return ZipReader(Path(str(settings.path)))


def open_files(settings: DatasetSettings) -> FolderReader | ZipReader:
    """A ZIP where the path says so, else a folder."""
    return open_zip(settings) if str(settings.path).lower().endswith(".zip") else open_folder(settings)
