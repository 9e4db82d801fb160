"""From the bytes of one image file to a Pillow image; what Pillow would read wrongly without a word is refused.

Refused: animations and files of several pages, floating-point and 32-bit values (nothing says their range), more
channels than Pillow reads, more pixels than its limit against decompression bombs, and PNG files whose checksums do
not match. Formats with a signature are told by content, not by the file's name: a PNG may be called `.jpg`.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from tqdm import tqdm

from storage.cores import available_cores
from storage.errors import UserError

T = TypeVar("T")
CHUNK = 64  # images that one thread works on at a stretch

# Formats that Pillow registers but cannot decode by itself (it hands them to other programs, or to none).
UNDECODABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats with a signature of their own, taken whatever the file is called; others only under their own suffix.
SIGNED_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
# Modes whose every value has an agreed meaning; 16-bit grey begins with I;16.
KNOWN_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"}
TIFF_SAMPLES_PER_PIXEL = 277
NO_RANGE = "whose range nothing says; save 8 or 16 bits per channel, or an array for dataset=npy"

# What files begin with that are no images, and what they are.
NO_IMAGES = (
    (rb"\Z", "an empty file of 0 bytes"),
    (rb"\0+\Z", "nothing but zero bytes, as a broken copy or download leaves"),
    (rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<html)", "a web page (HTML), as a failed download leaves"),
    (rb"\s*(<svg|<\?xml)", "an SVG or XML text, not pixels; export it as PNG"),
    (rb"version https://git-lfs", "a Git LFS pointer in place of the file; run: git lfs pull"),
    (rb".{4}ftyp(heic|heix|mif1|msf1)", "a HEIC picture, which Pillow cannot read; convert it to JPEG or PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6|%PDF", "PostScript or PDF, not pixels; export it as PNG"),
    (rb".{128}DICM", "a DICOM file, which Pillow cannot read; make it a 16-bit PNG, or an array for dataset=npy"),
)

# Pillow only warns up to twice its limit; `open_image` refuses above the limit itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read", UserWarning, "PIL")  # taken as stored


class UnusableImageError(UserError):
    """The file is no image, is damaged, or holds what this project cannot take. The text says which, and the cure."""


def open_image(file: Path | bytes, name: str) -> Image.Image:
    """The image called `name` with its header read and its pixels not yet decoded.

    Raises:
        UnusableImageError: what the header tells already.
    """
    try:
        image = Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=formats_of(name))
    except UnidentifiedImageError as error:
        raise UnusableImageError(describe_content(bytes_of(file)[:512])) from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"{error}; shrink it or cut it into tiles") from error
    except Exception as error:  # bytes of any content can raise anything in one of Pillow's many readers
        if isinstance(error, OSError) and error.strerror:
            raise UnusableImageError(f"cannot be read ({error.strerror})") from error
        raise UnusableImageError(f"truncated or damaged ({error})") from error
    check_header(image)
    return image


def load_image(file: Path | bytes, name: str) -> Image.Image:
    """The image called `name`, decoded, in the mode in which it is stored.

    Raises:
        UnusableImageError: truncated, damaged, or refused.
    """
    content = bytes_of(file)
    image = open_image(content, name)
    try:
        if image.format == "PNG":  # Pillow compares the checksums of the pixels only when asked to
            open_image(content, name).verify()
        image.load()
    except Exception as error:  # see above
        raise UnusableImageError(f"truncated or damaged ({error})") from error
    return image


def bytes_of(file: Path | bytes) -> bytes:
    """The bytes of a file, which may be at hand already. Raises `UnusableImageError`."""
    try:
        return file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"{error.filename} cannot be read ({error.strerror})") from error


def check_header(image: Image.Image) -> None:
    """Refuse what Pillow would decode to something else than the file holds.

    Raises:
        UnusableImageError: says what the file holds instead of one plain image.
    """
    problem = header_problem(image)
    if problem:
        raise UnusableImageError(problem)


def header_problem(image: Image.Image) -> str | None:
    """What the file holds instead of one plain image; None where it is one."""
    limit, bands = Image.MAX_IMAGE_PIXELS or 0, len(image.getbands())
    if image.width * image.height > limit:
        size = f"{image.width}×{image.height} pixels are more than Pillow's limit of {limit / 1e6:.0f} megapixels"
        return f"{size} against decompression bombs; shrink it or cut it into tiles"
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with a preview behind it
        return f"{getattr(image, 'n_frames', 'several')} frames or pages in one file; save each as a file of its own"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # 16 bits, scaled by Pillow
        return None
    if image.mode in ("F", "I"):
        return f"{'floating-point' if image.mode == 'F' else '32-bit'} values, {NO_RANGE}"
    if image.mode not in KNOWN_MODES:
        return f"colours of Pillow's mode {image.mode}, which cannot be converted; save it as RGB"
    samples = image.tag_v2.get(TIFF_SAMPLES_PER_PIXEL, 1) if isinstance(image, TiffImageFile) else 1
    if samples > bands:
        return f"{samples} channels, of which Pillow reads {bands}; save an array for dataset=npy"
    return None


@functools.cache
def decodable_suffixes() -> dict[str, str]:
    """Format by suffix (`.png`), of those that Pillow itself decodes; others would start programs like Ghostscript."""
    Image.init()
    formats = Image.registered_extensions().items()
    return {suffix: name for suffix, name in formats if name in Image.OPEN and name not in UNDECODABLE_FORMATS}


def formats_of(name: str) -> list[str]:
    """What a file of this name may hold."""
    own = decodable_suffixes().get(PurePosixPath(name).suffix.lower())
    return [*SIGNED_FORMATS, *([own] if own and own not in SIGNED_FORMATS else [])]


def describe_content(start: bytes) -> str:
    """What a file is that is no image, told from its first bytes."""
    unknown = f"no image that Pillow can read, or one whose header is damaged; it begins with {start[:8]!r}"
    return next((words for pattern, words in NO_IMAGES if re.match(pattern, start, re.I | re.S)), unknown)


def each_row(work: Callable[[int], T], count: int, description: str) -> Iterator[T]:
    """`work` of each of the rows 0…count−1, in order, by all cores: Pillow lets go of the interpreter lock."""
    chunks = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    bar = tqdm(total=count, desc=description, unit=" images", delay=2)
    with bar, ThreadPoolExecutor(len(available_cores())) as threads:
        for results in threads.map(lambda rows: [work(row) for row in rows], chunks):
            yield from results
            bar.update(len(results))
