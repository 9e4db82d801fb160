"""What is read of files whose headers say how large they are."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from storage.bounds import MOST_HEADER, Entry, read_npy_header


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = {"a": b"", "b": rng.bytes(100_000), "c": b"text" * 1000, "d": bytes(1000)}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        with zipfile.ZipFile(tmp_path / "a.zip") as archive, (tmp_path / "a.zip").open("rb") as file:
            assert {info.filename: Entry.of(info).read(file) for info in archive.infolist()} == contents


class Endless(io.RawIOBase):
    """Spaces, and how many of them were asked for."""

    asked = 0

    def read(self, size: int = -1) -> bytes:
        self.asked += size
        start, self.start = getattr(self, "start", b"\x93NUMPY\x02\0" + (2**32 - 1).to_bytes(4, "little")), b""
        return start + b" " * (size - len(start))


def test_no_more_of_a_header_is_read_than_numpy_writes() -> None:
    """Where a ZIP entry of a few megabytes inflates to four gigabytes of header."""
    file = Endless()
    with pytest.raises(ValueError, match="EOF"):
        read_npy_header(file)  # type: ignore[arg-type]
    assert file.asked == MOST_HEADER


@pytest.mark.parametrize(
    "header", [b"{" + b"(" * 9000, b"\xff", b"{'descr': '|u1'}", b"1" * 9000, b"[" * 9000 + b"]" * 9000]
)
def test_headers_that_are_none(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_npy_header(io.BytesIO(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_headers_of_all_versions(version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((3, 2), "<i4"), version)
    file.seek(0)
    assert read_npy_header(file) == ((3, 2), np.dtype("<i4"))
