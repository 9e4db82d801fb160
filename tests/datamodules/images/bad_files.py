"""A corpus of files that users have: damaged, mistaken and unusual ones, each with what must become of it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .handmade import fits, png, tiff

Pixels = np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True)
class Refused:
    """A file that must not become an image; the message says the reason."""

    name: str
    make: bytes | Callable[[Path], object]
    reason: str

    def write(self, folder: Path) -> None:
        path = folder / self.name
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)


@dataclass(frozen=True)
class Taken:
    """A file that must be read, with the pixels that a person would see."""

    name: str
    content: bytes
    pixels: Pixels
    tolerance: int = 0


def random_pixels(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [H, W] or [H, W, C]."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, image_format: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, image_format, **options)
    return file.getvalue()


def half(content: bytes) -> bytes:
    """As an interrupted copy leaves a file."""
    return content[: len(content) // 2]


def flipped(content: bytes, place: int) -> bytes:
    """One bit wrong."""
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def claiming(png_file: bytes, width: int, height: int) -> bytes:
    """A PNG whose header claims another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png_file[24:29]
    return png_file[:12] + header + struct.pack(">I", zlib.crc32(header)) + png_file[33:]


RGB = random_pixels()
PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")
TWO_FRAMES = [Image.fromarray(random_pixels(seed=1)), Image.fromarray(random_pixels(seed=2))]
ANIMATED = {"save_all": True, "append_images": TWO_FRAMES[1:]}
EMPTY_MEGAPIXELS = claiming(PNG, 10_000, 9_000)  # its header alone claims 90 megapixels

REFUSED = [
    Refused("zero-bytes.jpg", b"", "an empty file of 0 bytes"),
    Refused("hole.png", b"\0" * 5000, "nothing but zero bytes"),
    Refused("page.jpg", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "a web page"),
    Refused("page.png", b"\r\n <HTML><head></head></html>", "a web page"),
    Refused("marked.jpg", b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
    Refused("denied.jpg", b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "a server's error"),
    Refused("missing.jpg", b'{"error": "not found"}', "a JSON text, such as the error of a server"),
    Refused(".away.jpg.icloud", b"bplist00", "an image in iCloud that is not on this machine"),
    Refused("headless.dcm", b"\2\0\0\0UL\4\0\xc8\0\0\0", "a DICOM file without its first 132 bytes"),
    Refused("xhtml.jpg", b'<?xml version="1.0"?>\n<html xmlns="x"></html>', "a web page"),
    Refused("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    Refused("words.png", b"this is not an image", "no image that Pillow can read"),
    Refused("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    Refused("noise.jpg", np.random.default_rng(5).bytes(3000), "no image that Pillow can read"),
    Refused("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    Refused("paper.jpg", b"%PDF-1.7\n%", "PDF"),
    Refused("phone.jpg", b"\0\0\0\x18ftypheic" + b"\0" * 40, "truncated or damaged"),
    Refused("scan.png", b"\0" * 128 + b"DICM" + b"\1" * 40, "truncated or damaged"),
    Refused("sound.webp", b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 30, "no image that Pillow can read"),
    Refused("zipped.png", b"\x1f\x8b\x08\0" + PNG, "a compressed file (gzip"),
    Refused("targa.png", encoded(RGB, "TGA"), "no image that Pillow can read"),  # TGA has no signature to trust
    Refused("half.png", half(PNG), "truncated or damaged"),
    Refused("half.jpg", half(JPEG), "truncated or damaged"),
    Refused("half-progressive.jpg", half(encoded(RGB, "JPEG", progressive=True)), "truncated or damaged"),
    Refused("half.gif", half(encoded(RGB, "GIF")), "truncated or damaged"),
    Refused("half.bmp", half(encoded(RGB, "BMP")), "truncated or damaged"),
    Refused("half.webp", half(encoded(RGB, "WEBP", lossless=True)), "damaged"),
    Refused("half.tiff", half(encoded(RGB, "TIFF", compression="tiff_lzw")), "damaged"),
    Refused("half.jp2", half(encoded(RGB, "JPEG2000")), "damaged"),
    Refused("half.ppm", half(encoded(RGB, "PPM")), "truncated or damaged"),
    Refused("start.jpg", JPEG[:2], "no image that Pillow can read"),
    Refused("header.png", PNG[:33], "damaged"),
    Refused("flipped-pixel-bit.png", flipped(PNG, len(PNG) // 2), "truncated or damaged"),
    Refused("flipped-header-bit.png", flipped(PNG, 19), "damaged"),
    Refused("moving.gif", encoded(TWO_FRAMES[0], "GIF", **ANIMATED), "2 frames"),
    Refused("moving.png", encoded(TWO_FRAMES[0], "PNG", **ANIMATED), "2 frames"),
    Refused("moving.webp", encoded(TWO_FRAMES[0], "WEBP", **ANIMATED), "2 frames"),
    Refused("pages.tiff", encoded(TWO_FRAMES[0], "TIFF", **ANIMATED), "2 frames or pages"),
    Refused("float.tiff", encoded(np.full((8, 8), np.nan, np.float32), "TIFF"), "NaN or infinite"),
    Refused("complex.tiff", tiff(np.ones((8, 8, 1), np.complex64), 64, 1, sample_format=6), "64-bit complex"),
    Refused("lab.tiff", encoded(Image.new("LAB", (8, 8)), "TIFF"), "CIE L*a*b*"),
    Refused("four-bands.tiff", tiff(random_pixels(8, 8, 4), 8, 2, [0]), "4 bands, where dataset.channels="),
    Refused("five-bands.tiff", tiff(random_pixels(8, 8, 5), 8, 2, [0, 0]), "5 bands, where dataset.channels="),
    Refused("bomb.png", EMPTY_MEGAPIXELS, "decompression bombs"),
    Refused("huge-bomb.png", claiming(PNG, 60_000, 60_000), "decompression bomb"),
    Refused("photo.heic", b"\0\0\0\x18ftypheic" + b"\0" * 40, "truncated or damaged"),
    Refused("picture.jxl", b"\xff\x0a" + b"\0" * 40, "truncated or damaged"),
    Refused("boxes.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40, "truncated or damaged"),
    Refused("SCAN.DCM", b"\0" * 128 + b"DICM", "truncated or damaged"),
    Refused("sky.fits", fits(np.zeros((2, 2), np.int16))[:2884], "truncated or damaged"),
    Refused("brain.nii", b"\0" * 344 + b"n+1\0", ".nii files are not supported; save its array"),
    Refused("layers.psd", b"8BPS", ".psd files are not supported; convert them"),
]

# These need a file system, and cannot lie in a ZIP.
REFUSED_IN_FOLDERS = [
    Refused("broken-link.png", lambda path: path.symlink_to("nowhere.png"), "a link that leads nowhere"),
    Refused("circle.png", lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
    Refused("pipe.png", os.mkfifo, "no regular file"),
    Refused("line\nbreak.png", PNG, "control characters"),
    Refused(os.fsdecode(b"caf\xe9.png"), PNG, "no UTF-8 text"),
]


def on_white(rgba: np.ndarray) -> Pixels:
    """RGBA laid over white, in float."""
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def grey(values: np.ndarray) -> Pixels:
    return np.repeat(values[..., None], 3, axis=2)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def palette(image_format: str, **options: object) -> bytes:
    image = Image.fromarray(random_pixels(channels=1) % 3, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(PALETTE.tobytes())
    return encoded(image, image_format, **options)


PALETTE = np.array([[9, 200, 30], [250, 0, 7], [0, 0, 255]], dtype=np.uint8)
INDICES = random_pixels(channels=1) % 3
GREY, RGBA, LA = random_pixels(channels=1), random_pixels(channels=4, seed=4), random_pixels(channels=2, seed=5)
GREY_16 = np.random.default_rng(6).integers(0, 65536, (24, 32), dtype=np.uint16)
RGB_16 = np.random.default_rng(7).integers(0, 65536, (24, 32, 3), dtype=np.uint16)
SCALED_16 = grey(np.rint(GREY_16 / 257).astype(np.uint8))
CMYK = np.tile(np.array([[[0, 255, 255, 0], [255, 0, 0, 0], [0, 0, 0, 128], [0, 0, 0, 0]]], np.uint8), (8, 2, 1))
CMYK_SEEN = np.tile(np.array([[[255, 0, 0], [0, 255, 255], [127, 127, 127], [255, 255, 255]]], np.uint8), (8, 2, 1))
SMOOTH = np.tile(np.arange(0, 192, 6, dtype=np.uint8)[None, :, None], (24, 1, 3))  # survives JPEG nearly unchanged
HOLED = GREY_16.copy()
HOLED[:12] = 1000  # declared transparent in the file

TAKEN = [
    Taken("rgb.png", PNG, RGB),
    Taken("upper.PNG", PNG, RGB),
    Taken("png-inside.jpg", PNG, RGB),
    Taken("odd.jfif", encoded(SMOOTH, "JPEG", quality=100), SMOOTH, 3),
    Taken("ünï 日本.png", PNG, RGB),
    Taken("rgb.webp", encoded(RGB, "WEBP", lossless=True), RGB),
    Taken("rgb.bmp", encoded(RGB, "BMP"), RGB),
    Taken("targa.tga", encoded(RGB, "TGA"), RGB),
    Taken("grey.png", encoded(GREY, "PNG"), grey(GREY)),
    Taken(
        "black-and-white.png", encoded(Image.fromarray(GREY > 127), "PNG"), grey((GREY > 127).astype(np.uint8) * 255)
    ),
    Taken("palette.png", palette("PNG"), PALETTE[INDICES]),
    Taken("palette.gif", palette("GIF"), PALETTE[INDICES]),
    Taken(
        "palette-with-hole.png",
        palette("PNG", transparency=1),
        np.where(INDICES[..., None] == 1, 255, PALETTE[INDICES]),
    ),
    Taken("rgba.png", encoded(RGBA, "PNG"), on_white(RGBA), 1),
    Taken("grey-alpha.png", encoded(LA, "PNG"), on_white(LA[..., [0, 0, 0, 1]]), 1),
    Taken("cmyk.tiff", encoded(Image.fromarray(CMYK, "CMYK"), "TIFF"), CMYK_SEEN),
    Taken(
        "cmyk.jpg",
        encoded(Image.fromarray(CMYK, "CMYK").resize((64, 64), 0), "JPEG", quality=100, subsampling=0),
        np.asarray(Image.fromarray(CMYK_SEEN).resize((64, 64), 0)),
        4,
    ),
    Taken("grey-16.png", encoded(GREY_16, "PNG"), SCALED_16),
    Taken("grey-16.tiff", encoded(GREY_16, "TIFF"), SCALED_16),
    Taken("grey-16.pgm", encoded(GREY_16, "PPM"), SCALED_16),
    Taken(
        "grey-16-with-hole.png",
        png(HOLED, 16, 0, (b"tRNS", struct.pack(">H", 1000))),
        np.where((HOLED == 1000)[..., None], 255, SCALED_16),
    ),
    Taken("rgb-16.png", png(RGB_16, 16, 2), np.rint(RGB_16 / 257).astype(np.uint8), 1),
    Taken("turned.jpg", encoded(SMOOTH, "JPEG", quality=100, exif=exif(6)), np.rot90(SMOOTH, -1), 3),
    Taken("turned.png", encoded(RGB, "PNG", exif=exif(8)), np.rot90(RGB)),
    Taken("mirrored.tiff", encoded(RGB, "TIFF", tiffinfo={0x0112: 2}), RGB[:, ::-1]),
    Taken("damaged-exif.jpg", encoded(SMOOTH, "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), SMOOTH, 3),
    Taken(
        "camera-with-preview.jpg",
        encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=TWO_FRAMES[1:], quality=100),
        SMOOTH,
        3,
    ),
    Taken("one-pixel.png", encoded(RGB[:1, :1], "PNG"), RGB[:1, :1]),
    Taken("strip.png", encoded(RGB[:1], "PNG"), RGB[:1]),
]

# Names that are no image's: counted and left out.
LEFT_OUT = {
    "._x.jpg": "hidden files like .x, ._x, __MACOSX",
    ".DS_Store": "hidden files like .x, ._x, __MACOSX",
    "Thumbs.db": ".db files",
    "readme.txt": ".txt files",
    "photo.jpg_large": ".jpg_large files",
    "IMG_0001": "files without a suffix",
}  # fmt: skip
