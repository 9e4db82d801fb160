"""Images as files: a tree of folders, or a ZIP in EDM's format. What is not an image is left out, and counted."""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.file_kinds import ARRAYS, MATLAB, kind_of, start_of
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import MOST_IMAGE, UnusableImageError
from datamodules.images.formats import refused_suffixes, suffix_of, suffixes
from datamodules.images.label_files import LABELS_FILE, labels_in_dataset_json, most_labels, read_labels
from datamodules.images.own_output import around, is_own_output, is_run, outermost
from datamodules.images.reader import EncodedReader, Labels, Reader
from datamodules.images.unchanged import refuse_changed, state_of
from datamodules.plain_files import ZIP, refuse_other_kinds
from storage.bounds import Entry
from storage.control_characters import escaped
from storage.digests import file_digest, file_digests, file_state
from storage.errors import UserError, WrongPathError
from storage.files import is_own
from storage.fingerprints import fingerprint

# What to do with a folder or ZIP that holds such files and no images.
OTHER_KINDS = {
    ".npy files": f"For one array set dataset=npy; for many {ARRAYS}",
    ".npz files": "Set dataset=npy and dataset.path to one of them",
    ".zip files": "Set dataset=zip and dataset.path to one of them",
    ".parquet files": "Set dataset=hf",
    ".arrow files": "Set dataset=hf",
    ".h5 files": "Set dataset=hdf5 and dataset.path to one of them",
    ".hdf5 files": "Set dataset=hdf5 and dataset.path to one of them",
    ".mat files": f"MATLAB: {MATLAB}",
    ".tar files": "Unpack them",
    "files without a suffix": "If they are DICOM, call them .dcm",
}


class FolderReader(EncodedReader):
    """Images in a folder and the folders below it; the ids are their sorted POSIX paths."""

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__("folder")
        self.root = root = Path(str(settings.path))
        if not root.is_dir():
            if root.is_file() and (kind := kind_of(start_of(root))):
                raise UserError(f"{root}: a folder is expected, and this is {kind}.")
            file = "a file; give the folder that holds the images, or set dataset=zip or dataset=npy for it"
            problem = file if root.is_file() else "no such folder"
            raise WrongPathError(f"{root}: {problem}.", "FOLDER")
        if is_own(root) or is_run(root):
            problem = "holds a run or a part of the cache, whose pictures are no images of a data set"
            inside = f"{root}/images" if (root / "images").is_dir() else "FOLDER, another one"
            raise WrongPathError(f"{root}: {problem}.", inside)
        self.folders: set[str] = set()
        self.ids = sorted(self._walk())
        self._states = np.array([state_of(root / image_id) for image_id in self.ids], dtype=np.int64)  # [N, 2]
        self.own_output = outermost(self.own_output, self.ids)
        self.folders = {name for name in self.folders if not {*around(name)} & {*self.own_output}}
        refuse_no_images(root, self)

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._states = self._states[rows]

    def file(self, row: int) -> tuple[Path, str]:
        return self.root / self.ids[row], self.ids[row]

    def refuse_changed(self, row: int) -> None:
        size, time = self._states[row].tolist()
        refuse_changed(self.root / self.ids[row], (size, time), str(self.root / self.ids[row]))

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        try:
            return file_digests((self.root / self.ids[row] for row in rows), cache_dir)
        except OSError as error:
            raise UnusableImageError(f"{error.filename} cannot be read ({error.strerror})") from error

    image_digests = contents

    def state(self) -> str:
        states = (file_state(self.root / image_id) for image_id in self.ids)
        return fingerprint([self.ids, list(states)])

    def own_labels(self) -> Labels | None:
        path = self.root / LABELS_FILE
        if not path.is_file():
            return None
        return labels_in_dataset_json(path, read_labels(path, len(self.ids)), self.ids)

    def _walk(self) -> Iterator[str]:
        """Ids of the images; each real folder is entered once, however many links lead to it, and none of a run."""

        def note(error: OSError) -> None:
            name = Path(error.filename).relative_to(self.root).as_posix()
            self.unusable[printable(name)] = f"a folder that cannot be opened ({error.strerror})"

        entered: set[tuple[int, int]] = set()
        starts = [self.root]
        for start in starts:  # which grows: real folders go before links to them
            for path, folders, files in os.walk(start, onerror=note):
                folder, stat = Path(path), Path(path).stat()
                if (stat.st_dev, stat.st_ino) in entered:
                    folders.clear()
                    continue
                entered.add((stat.st_dev, stat.st_ino))
                if folder != self.root and is_own_output(folder, files):
                    self.own_output.append(folder.relative_to(self.root).as_posix())
                    folders.clear()
                    continue
                self.left_out.update("hidden folders" for name in folders if not is_visible(name))
                folders[:] = sorted(filter(is_visible, folders))
                links = [folder / name for name in folders if os.path.islink(folder / name)]  # noqa: PTH114 (see below)
                starts += links
                prefix = "" if folder == self.root else f"{folder.relative_to(self.root).as_posix()}/"
                self.folders.update(prefix + name for name in folders if folder / name not in links)
                for name in files:
                    if not sort_out(prefix + name, self):
                        continue
                    if os.path.isfile(folder / name):  # noqa: PTH113 (False, where pathlib raises without permission)
                        yield prefix + name
                    else:
                        self.unusable[prefix + name] = "a link that leads nowhere, no regular file, or not to be read"


class ZipReader(EncodedReader):
    """Images in a ZIP file; the ids are their sorted names in it.

    The archive is listed once; entries are read with `pread`, which has no position in the file that forked processes
    and threads could disturb for one another, and are checked against their CRC.
    """

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__("zip")
        self.path = path = Path(str(settings.path))
        if not path.is_file():
            problem = "a folder; for one, set dataset=folder" if path.is_dir() else "no such file"
            raise WrongPathError(f"{path}: {problem}.", "FILE.zip")
        self._file: io.FileIO | None = None
        self._state = state_of(path)
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except PermissionError:
            raise
        except Exception as error:  # a damaged directory can raise anything in there
            refuse_other_kinds(path, ZIP, "a ZIP file")
            problem = f"not a readable ZIP file ({error or type(error).__name__}). Copy or make it again"
            raise WrongPathError(f"{path}: {problem}.", "FILE.zip") from error
        self.folders = {info.filename.rstrip("/") for info in infos if info.is_dir() and is_visible(info.filename)}
        labels = next((info for info in infos if info.filename == LABELS_FILE), None)
        self._labels_entry = None if labels is None else Entry.of(labels)
        images = sorted(self._sort_out(infos), key=lambda info: info.filename)
        self.ids = [info.filename for info in images]
        self._entries = np.array([astuple(Entry.of(info)) for info in images], dtype=np.int64).reshape(-1, 5)
        refuse_no_images(path, self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def file(self, row: int) -> tuple[bytes, str]:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        try:
            return Entry(*self._entries[row].tolist()).read(self._file, MOST_IMAGE), self.ids[row]
        except (OSError, ValueError) as error:
            raise UnusableImageError(str(error)) from error

    def refuse_changed(self, row: int) -> None:
        refuse_changed(self._file.fileno() if self._file else self.path, self._state, str(self.path))

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [file_digest(self.path, cache_dir)]

    def state(self) -> str:
        state = file_state(self.path)
        return state if self.splits is None else fingerprint([state, self.splits.taken])

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._entries = self._entries[rows]

    def own_labels(self) -> Labels | None:
        if self._labels_entry is None:
            return None
        path = self.path / LABELS_FILE
        try:
            with self.path.open("rb") as file:
                text = self._labels_entry.read(file, most_labels(len(self.ids)))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Set dataset.labels=none to leave it out.") from error
        return labels_in_dataset_json(path, text, self.ids)

    def _sort_out(self, infos: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
        infos = [info for info in infos if not info.is_dir() and sort_out(info.filename, self)]
        counts = Counter(info.filename for info in infos)
        for info in infos:
            name = info.filename
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


# Which names are meant as images --------------------------------------------------------------------------------------


def sort_out(name: str, reader: Reader) -> bool:
    """Whether a file of this name is an image to take; else it is counted, with the reason where it has one."""
    if name.endswith(".icloud") and suffix_of(name.removesuffix(".icloud")) in suffixes():
        reader.unusable[printable(name)] = "an image in iCloud that is not on this machine; download it"
        return False
    if not is_visible(name):
        reader.left_out["hidden files like .x, ._x, __MACOSX"] += 1
        return False
    suffix = suffix_of(name)
    if suffix in refused_suffixes():
        reader.unusable[printable(name)] = f"{suffix} files are not supported; {refused_suffixes()[suffix]}"
        return False
    if suffix not in suffixes():
        if name != LABELS_FILE:
            reader.left_out[f"{suffix} files" if suffix else "files without a suffix"] += 1
        return False
    if printable(name) != name:
        reader.unusable[printable(name)] = (
            "its name holds control characters or bytes that are no UTF-8 text; rename it"
        )
        return False
    return True


def is_visible(name: str) -> bool:
    """No part begins with a dot (`._x.jpg`, `.ipynb_checkpoints`), `..` apart, or is what macOS adds to ZIP files."""
    return not any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def printable(name: str) -> str:
    """A file name as a terminal and JSON can show it: bytes that are no text as \\xff."""
    return escaped(os.fsencode(name).decode(errors="backslashreplace"))


def refuse_no_images(path: Path, reader: Reader) -> None:
    """Raise a `WrongPathError` for a folder or ZIP without images; it says what is there instead."""
    if not reader.ids and not reader.unusable:
        kinds = [f"{kind} ({count:,})" for kind, count in reader.left_out.most_common(5)]
        kinds += [f"this project's own folders ({', '.join(reader.own_output)})"] if reader.own_output else []
        found = ", ".join(kinds) or "nothing at all"
        problem = f"no images in there; found {found}. PNG, JPEG, WebP, … files are expected"
        if advice := next((words for kind, words in OTHER_KINDS.items() if kind in reader.left_out), None):
            raise UserError(f"{path}: {problem}. {advice}.")
        raise WrongPathError(f"{path}: {problem}.", "FOLDER or FILE.zip")


def open_files(settings: DatasetSettings) -> FolderReader | ZipReader:
    """A ZIP where the path says so, else a folder."""
    return (ZipReader if str(settings.path).lower().endswith(".zip") else FolderReader)(settings)
