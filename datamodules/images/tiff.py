"""Which TIFF files are taken: a TIFF can hold anything, and Pillow reads some of it as something else.

Source: TIFF 6.0 (Adobe, 1992), sections 4 to 8 and 18 to 21.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datamodules.file_kinds import TIFF, png_line

SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION = 254, 258, 259, 262, 266, 270
SAMPLES, PLANAR, COLOUR_MAP, INK_SET, EXTRA, SAMPLE_FORMAT, DEPTH = 277, 284, 320, 332, 338, 339, 32997
GDAL_METADATA, NODATA = 42112, 42113
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
ALPHA = {(1,), (2,)}  # of an extra channel: colours multiplied by it, or not
JPEG = 7
LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, deflate again, LZMA, Zstandard
READ = LOSSLESS | {2, 3, 4, JPEG}  # by Pillow wherever it is installed; 2 to 4 are fax
NUMBERS = {(kind, bits) for kind in (1, 2, 3) for bits in (8, 16, 32, 64)} - {(3, 8)}  # sample format and bits

# Bits per channel by what the channels are: photometric interpretation, number of channels, meaning of extra ones.
LAYOUTS: dict[tuple[int, int, tuple[int, ...]], set[int]] = {
    (WHITE_IS_ZERO, 1, ()): {1, 2, 4, 8, 16},
    (BLACK_IS_ZERO, 1, ()): {1, 2, 4, 8, 16},
    (BLACK_IS_ZERO, 2, (2,)): {8},
    (RGB, 3, ()): {8, 16},
    (RGB, 4, (1,)): {8, 16},
    (RGB, 4, (2,)): {8, 16},
    (PALETTE, 1, ()): {1, 2, 4, 8},
    (CMYK, 4, ()): {8, 16},
    (YCBCR, 3, ()): {8},
}
PHOTOMETRICS = {
    -1: "colours that it does not name",
    0: "grey with white as zero", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE L*a*b*",
    9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "raw",
}  # fmt: skip
FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point", 4: "untyped", 5: "complex", 6: "complex"}
COMPRESSIONS = {
    6: "JPEG of the old kind", 34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR", 50001: "WebP",
    50002: "JPEG XL",
}  # fmt: skip
# Planes that ImageJ and tifffile store behind the one that the directory names.
PLANES = re.compile(r"ImageJ=.*^images=(\d+)|\{.*\"shape\": \[(\d+), .*\"truncated\": true", re.S | re.M)
TO_PNG = png_line(".tif")
TO_ARRAY = f"if they are measurements, {TIFF}"


def read_tags(file: Path | bytes) -> dict[int, Any]:
    """The tags of the first image in a TIFF file. Raises whatever Pillow raises for a damaged one."""
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        start = opened.read(8)
        directory = ImageFileDirectory_v2(start + opened.read(8) if 43 in start[2:4] else start)
        opened.seek(directory.next)
        directory.load(opened)  # which ends where the file does
        return dict(directory)


def values_of(tags: Mapping[int, Any], tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """All values of a tag."""
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def describe_tiff(tags: Mapping[int, Any]) -> str:
    """What the pixels are: `a TIFF of 13 channels, 16-bit unsigned integers, grey`."""
    samples, bits, photometric = tags.get(SAMPLES, 1), values_of(tags, BITS, (1,)), tags.get(PHOTOMETRIC, -1)
    kinds = {FORMATS.get(kind, f"sample format {kind}") for kind in values_of(tags, SAMPLE_FORMAT, (1,))}
    colours = PHOTOMETRICS.get(photometric, f"colours of unknown kind {photometric}")
    return f"a TIFF of {samples} channel{'s' * (samples != 1)}, {bits[0]}-bit {' and '.join(sorted(kinds))}, {colours}"


def tiff_problem(tags: Mapping[int, Any]) -> str | None:
    """Why a TIFF with these tags is not taken, and what to do; None where it is."""
    what, photometric, samples = describe_tiff(tags), tags.get(PHOTOMETRIC, -1), tags.get(SAMPLES, 1)
    bits, extra = values_of(tags, BITS, (1,)), values_of(tags, EXTRA, ())
    expected = LAYOUTS.get((photometric, samples, extra))
    if set(values_of(tags, SAMPLE_FORMAT, (1,))) != {1}:
        return f"{what}, whose range nothing says; {TIFF}"
    if expected is None:
        return f"{what}, for which there is no agreed way to show it as RGB; {TO_ARRAY}"
    if not set(bits) <= expected or len(set(bits)) > 1:
        return f"{what}; {' or '.join(map(str, sorted(expected)))} bits per channel are expected; {TO_ARRAY}"
    if (compression := tags.get(COMPRESSION, 1)) not in READ:
        return f"{what}, compressed as {COMPRESSIONS.get(compression, f'number {compression}')}; {TO_PNG}"
    if tags.get(PLANAR, 1) != 1 and (extra or bits[0] != 8 or photometric == WHITE_IS_ZERO):
        return f"{what}, with one plane per channel; {TO_PNG}"
    if photometric == YCBCR and tags.get(COMPRESSION) != JPEG:
        return f"{what}, not compressed as JPEG; {TO_PNG}"
    if photometric == CMYK and tags.get(INK_SET, 1) != 1:
        return f"{what}, of inks other than CMYK; {TO_PNG}"
    if photometric == PALETTE and max(tags.get(COLOUR_MAP, (0,))) < 256:
        return f"{what}, whose colours are stored in 8 bits where 16 belong; {TO_PNG}"
    if tags.get(FILL_ORDER, 1) != 1 and bits[0] != 1:
        return f"{what}, with its bits in reverse order (FillOrder 2); {TO_PNG}"
    return volume_problem(tags) or scale_problem(tags)


def is_measurement(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF holds numbers, floats, wide ones or bands, that are no picture and can be read as they are."""
    photometric, samples = tags.get(PHOTOMETRIC, -1), tags.get(SAMPLES, 1)
    bits, extra = set(values_of(tags, BITS, (1,))), values_of(tags, EXTRA, ())
    formats = set(values_of(tags, SAMPLE_FORMAT, (1,)))
    if formats == {1} and bits <= LAYOUTS.get((photometric, samples, extra), set()):
        return False
    return (
        photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
        and not {*extra} & {1, 2}  # alpha
        and len(bits) == len(formats) == 1
        and (*formats, *bits) in NUMBERS
        and tags.get(COMPRESSION, 1) in LOSSLESS
        and tags.get(FILL_ORDER, 1) == 1
        and volume_problem(tags) is None
    )


def volume_problem(tags: Mapping[int, Any]) -> str | None:
    """Why a file of one directory holds more than one image, or a preview of one; None where it does not."""
    stack = PLANES.match(str(tags.get(DESCRIPTION, "")))
    planes = max(int(stack[1] or stack[2]) if stack else 1, tags.get(DEPTH, 1))
    if planes > 1:
        return f"{planes} frames or planes in one file, of which Pillow reads the first; save each as a file of its own"
    if tags.get(SUBFILE, 0) & 1:
        return "a preview in reduced size, as camera raw files hold; develop the picture and save it as TIFF or PNG"
    return None


def scale_problem(tags: Mapping[int, Any]) -> str | None:
    """Why a file whose numbers GDAL is to scale is not taken; None where it is."""
    scaled = re.search('role="(scale|offset)"', str(tags.get(GDAL_METADATA, "")))
    return "a TIFF with a scale in GDAL's metadata; apply it: gdal_translate -unscale" if scaled else None


def empty_problem(tags: Mapping[int, Any], values: np.ndarray) -> str | None:
    """Why an image with these values [H, W] or [H, W, channels] is not taken: GDAL calls some no value; else None.

    In a picture of 8 bits per channel that are the pixels of which all channels have this value.
    """
    text = str(tags.get(NODATA, "")).strip("\0 ")
    if not text:
        return None
    empty = np.atleast_3d(values) == float(text)
    if not (empty.all(2) if values.dtype == np.uint8 else empty).any():
        return None
    return f"holds pixels without a value (GDAL's nodata, {text}). To take them: gdal_edit.py -unsetnodata FILE"
