"""Formats that only libraries write: HEIC, JPEG XL, JPEG 2000 and JPEG."""

import struct
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from datamodules.images.decoding import UnusableImageError
from storage.errors import UserError

from .bad_files import encoded
from .handmade import shown
from .test_formats import check, decoded, inked, random


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("WEBP", {"lossless": True, "exact": True}), ("JPEG2000", {}), ("AVIF", {"quality": 100, "subsampling": "4:4:4"})],
)
def test_formats_that_only_libraries_write(image_format: str, options: dict[str, Any]) -> None:
    if not features.check({"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}[image_format]):
        pytest.skip("not in this build of Pillow")
    for channels in (3, 4):
        samples = random(8, channels)
        content = encoded(Image.fromarray(samples.astype(np.uint8)), image_format, **options)
        check(content, shown(samples), 3 if image_format == "AVIF" else 1)
    grey = random()
    if image_format != "WEBP":
        check(encoded(Image.fromarray(grey.astype(np.uint8)), image_format, **options), shown(grey), 3)


def test_heic() -> None:
    """Written by the plugin, as no other does; nearly lossless, since its colours are rounded."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    ramp = np.tile(np.arange(0, 192, 3, dtype=np.uint8)[None, :], (48, 1))
    rgb = np.stack([ramp, ramp[:, ::-1], ramp // 2], axis=2)
    lossless = {"quality": -1, "chroma": 444}
    check(encoded(ramp, "HEIF", **lossless), shown(ramp), 1, "x.heic")
    check(encoded(rgb, "HEIF", **lossless), rgb, 2, "x.jpg")
    rgba = np.concatenate([rgb, ramp[..., None] + 60], axis=2)
    check(encoded(rgba, "HEIF", **lossless), shown(rgba), 3)
    turned = Image.Exif()
    turned[0x0112] = 6
    check(encoded(rgb, "HEIF", exif=turned.tobytes(), **lossless), np.rot90(rgb, -1), 2)
    content = encoded(rgb, "HEIF", save_all=True, append_images=[Image.fromarray(rgb)])
    with pytest.raises(UnusableImageError, match="2 frames"):
        decoded(content)
    with pytest.raises(UnusableImageError, match="truncated or damaged"):
        decoded(encoded(rgb, "HEIF")[:-200])


def test_jpeg_xl() -> None:
    """Written by the plugin, as no other does."""
    pytest.importorskip("pillow_jxl")
    for channels in (None, 2, 3, 4):
        samples = random(8, channels)
        image = Image.fromarray(samples.astype(np.uint8), {None: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])
        turned = Image.Exif()
        turned[0x0112] = 6  # which means nothing: the codestream is upright
        for options in ({}, {"use_container": True}, {"exif": turned.tobytes()}):
            check(encoded(image, "JXL", lossless=True, **options), shown(samples), 1)
    grey = Image.fromarray(random(16).astype(np.uint16))
    with pytest.raises(UnusableImageError, match="mode I;16"):
        decoded(encoded(grey, "JXL", lossless=True))


def jxl_header(*fields: tuple[int, int]) -> bytes:
    """The start of a codestream from (value, bits), lowest bits first."""
    number = place = 0
    for value, bits in fields:
        number, place = number | value << place, place + bits
    return b"\xff\x0a" + number.to_bytes(40, "little")


SMALL_JXL = [(1, 1), (7, 5), (1, 3)]  # a multiple of 8, 64 high, as wide


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([*SMALL_JXL, (0, 1), (1, 1), (5, 3)], "its header turns"),
        ([*SMALL_JXL, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1)], "preview or several frames"),
        ([*SMALL_JXL, (0, 1), (1, 1), (0, 3), (1, 1), *SMALL_JXL, (0, 1), (1, 1)], "preview or several frames"),
        ([(0, 1), (3, 2), (2**20, 30), (7, 3)], "2097154×1048577 pixels, more than 89 megapixels"),
        ([(0, 1), (1, 2), (8000, 13), (0, 3), (2, 2), (99_999, 18)], "100000×8001 pixels"),
    ],
)
def test_what_the_header_of_a_jpeg_xl_says(fields: list[tuple[int, int]], reason: str) -> None:
    pytest.importorskip("pillow_jxl")
    bare = jxl_header(*fields)
    signature = b"\0\0\0\x0cJXL \r\n\x87\n"
    box = struct.pack(">I4s", 8 + len(bare), b"jxlc") + bare
    part = struct.pack(">I4sQI", 1, b"jxlp", 20 + len(bare), 0) + bare
    for content in (bare, signature + struct.pack(">I4s", 16, b"ftyp") + b"jxl jxl " + box, signature + part):
        with pytest.raises(UnusableImageError) as error:
            decoded(content)
        assert reason in str(error.value)


@pytest.mark.parametrize(
    ("content", "module", "package"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "pillow_heif", "pillow-heif"),
        (jxl_header(*SMALL_JXL), "pillow_jxl", "pillow-jxl-plugin"),
    ],
)
def test_a_plugin_that_is_missing(content: bytes, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"needs the package {package}. Run: pip install {package}") as error:
        decoded(content)
    assert not isinstance(error.value, UnusableImageError)  # so that it is not skipped


def test_jpeg2000_grey() -> None:
    for bits in (8, 16):
        grey = random(bits)
        image = Image.fromarray(grey.astype({8: np.uint8, 16: np.uint16}[bits]))
        content = encoded(image, "JPEG2000")
        check(content, shown(grey, bits), 0.51)
        signed = bytearray(content)
        signed[signed.find(b"\xff\x4f\xff\x51") + 42] |= 128
        with pytest.raises(UnusableImageError, match="signed"):
            decoded(bytes(signed))
    grey = random(12) + 30720  # less than 16 bits: the middle of 16 is the middle of 12, and so on
    content = bytearray(encoded(Image.fromarray(grey.astype(np.uint16)), "JPEG2000"))
    content[content.find(b"\xff\x4f\xff\x51") + 42] = 11
    content[content.find(b"ihdr") + 14] = 11
    check(bytes(content), shown(grey - 30720, 12), 1)


def test_jpeg2000_in_colour_is_8_bits_and_says_what_is_alpha() -> None:
    content = bytearray(encoded(Image.fromarray(random(8, 3).astype(np.uint8)), "JPEG2000"))
    start = content.find(b"\xff\x4f\xff\x51") + 42
    content[start : start + 9 : 3] = b"\x0f\x0f\x0f"
    with pytest.raises(UnusableImageError, match="in colour with 16 bits"):  # Pillow would turn white into black
        decoded(bytes(content))
    rgba = encoded(Image.fromarray(random(8, 4).astype(np.uint8)), "JPEG2000")
    with pytest.raises(UnusableImageError, match="nothing says that the last is alpha"):
        decoded(rgba.replace(b"cdef", b"free"))


def without_marker(jpeg: bytes) -> bytes:
    """A JPEG without Adobe's segment APP14."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + struct.unpack(">H", jpeg[start + 2 : start + 4])[0] :]


def test_jpeg() -> None:
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :], (32, 1))
    check(encoded(ramp, "JPEG", quality=100), shown(ramp), 2)
    rgb = np.stack([ramp, ramp[:, ::-1], ramp // 2], axis=2)
    check(encoded(rgb, "JPEG", quality=100, subsampling=0, progressive=True), rgb, 4)
    cmyk = np.concatenate([rgb, ramp[..., None] // 4], axis=2)
    content = encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    check(content, inked(cmyk, 8), 5)
    with pytest.raises(UnusableImageError, match="nothing says whether it is inverted"):
        decoded(without_marker(content))
