"""What is read of files whose headers say how large they are."""

import zipfile
from pathlib import Path

import numpy as np

from storage.bounds import Entry


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = {"a": b"", "b": rng.bytes(100_000), "c": b"text" * 1000, "d": bytes(1000)}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        with zipfile.ZipFile(tmp_path / "a.zip") as archive, (tmp_path / "a.zip").open("rb") as file:
            assert {info.filename: Entry.of(info).read(file) for info in archive.infolist()} == contents
