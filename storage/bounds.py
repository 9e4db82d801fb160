"""Files of other people, read up to what their size can hold: a few bytes can promise, or inflate to, any number."""

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from storage.errors import UserError

LOCAL_HEADER_BYTES = 30  # of a ZIP entry, before its name
SMALL = 1 << 26  # bytes that anything may inflate to
MOST_INFLATION = 100  # of more than that; zeros reach 1,032
MOST_HEADER = 1 << 14  # bytes of an .npy file's header; numpy believes 10,000
MOST_TEXT = 1 << 28  # bytes of a CSV file: five million lines of 50


def refuse_large(path: Path, most: int, what: str) -> None:
    """Raise a `UserError` for a file of more than `most` bytes, which `what` never is."""
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path}: {size:,} bytes, more than the {most:,} that {what} can have.")


def inflated(compressed: int) -> int:
    """Bytes that so many compressed ones may become."""
    return max(SMALL, MOST_INFLATION * compressed)


@dataclass(frozen=True)
class Entry:
    """An entry of a ZIP file, as its directory says."""

    offset: int
    compressed_size: int
    size: int
    crc: int
    method: int

    @classmethod
    def of(cls, info: zipfile.ZipInfo) -> "Entry":
        known = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
        return cls(*(max(-1, min(value, 2**62)) for value in known))  # a ZIP64 directory can say anything

    def read(self, file: IO[bytes] | io.FileIO, most: int | None = None) -> bytes:
        """Its content, read with `pread`, and never more than the directory promises.

        Args:
            file: the open ZIP file.
            most: bytes that it may have.

        Raises:
            ValueError: it is damaged, or the directory does not tell the truth about it.
            OSError: it cannot be read.
        """
        end, descriptor = os.fstat(file.fileno()).st_size, file.fileno()
        if self.offset < 0 or self.offset + self.compressed_size > end:
            raise ValueError("the ZIP's directory tells of more bytes than the file has")
        limit = inflated(self.compressed_size) if most is None else min(most, inflated(self.compressed_size))
        if self.size > limit or (self.method == zipfile.ZIP_STORED and self.size != self.compressed_size):
            promised = f"{self.size:,} bytes from {self.compressed_size:,}"
            raise ValueError(f"the ZIP's directory promises {promised}, and {limit:,} are believed")
        try:
            header = os.pread(descriptor, LOCAL_HEADER_BYTES, self.offset)
            start = self.offset + LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", header[26:]))  # after name and extra
            content = os.pread(descriptor, self.compressed_size, start)
            if self.method == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-15).decompress(content, self.size or 1)
        except (struct.error, zlib.error) as error:
            raise ValueError(f"truncated or damaged in the ZIP ({error})") from error
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("damaged in the ZIP: its bytes do not match their checksum")
        return content


def refuse_inflating(file: Path | IO[bytes], size: int) -> None:
    """Raise a ValueError for a ZIP of tensors that holds compressed entries: PyTorch writes none.

    `size` is that of the file in bytes. What is no ZIP at all is left to whoever reads it.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    for info in entries:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise ValueError(f"its part {info.filename!r} would inflate to {info.file_size:,} bytes")
    if sum(info.file_size for info in entries) > size:
        raise ValueError("its parts lie one upon the other")


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in an `.npy` file, from its first bytes: a header says itself how long it is.

    Raises:
        ValueError: it is longer than numpy writes one, or is no header.
    """
    start = io.BytesIO(file.read(MOST_HEADER))
    first, others = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = first(start) if np.lib.format.read_magic(start) == (1, 0) else others(start)
    except Exception as error:  # NumPy reads the header as Python, so it can raise what a parser raises
        raise ValueError(str(error)) from error
    return shape, dtype


def check_npy_header(file: IO[bytes], most: int) -> None:
    """Read the header of an `.npy` file, and check that it promises an array of at most `most` bytes.

    Raises:
        ValueError: it promises more, has a negative or an empty size, or is no header.
    """
    shape, dtype = read_npy_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if any(length < 0 for length in shape) or dtype.itemsize == 0 or (0 in shape and max(shape) > most):
        raise ValueError(f"its header tells of an array {list(shape)} of {dtype}")
    promised = prod(shape) * dtype.itemsize
    if promised > most:
        raise ValueError(f"its header promises {promised:,} bytes, an array {list(shape)} of {dtype}; at most {most:,}")


def refuse_npz(archive: Any, key: str, size: int) -> None:
    """Check the header of an array in an open `.npz` file of `size` bytes before the array is made.

    Raises:
        ValueError: it promises more than the file can hold.
    """
    name = key if key in archive.zip.namelist() else f"{key}.npy"
    info = archive.zip.getinfo(name)
    held = min(info.compress_size, size)
    most = held if info.compress_type == zipfile.ZIP_STORED else inflated(held)
    with archive.zip.open(info) as file:
        check_npy_header(file, min(most, info.file_size))
