"""From the bytes of one image file to a Pillow image; what Pillow would read wrongly without a word is refused.

`formats` says what is taken. Formats with a signature are told by content, not by the file's name: a PNG may be called
`.jpg`. The checksums of PNG files are compared.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from tqdm import tqdm

from datamodules.file_kinds import START, kind_of, png_line, start_of
from datamodules.images.formats import SIGNED, formats_of, header_problem, plugin_for, png_rawmode
from datamodules.images.jpeg_xl import jxl_problem
from datamodules.images.tiff import describe_tiff, empty_problem, read_tags, tiff_problem
from storage.cores import available_cores
from storage.errors import UserError

T = TypeVar("T")
GREY_STEPS = {"L;2": 85, "L;4": 17}  # from samples of 2 and 4 bits to 8
MOST_IMAGE = 1 << 30  # bytes of one file: Pillow's limit of 89 megapixels, at 12 bytes each
CHUNK = 64  # images that one thread works on at a stretch

# Pillow only warns up to twice its limit; `open_image` refuses above the limit itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read", UserWarning, "PIL")  # taken as stored
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # its errors are raised as well, and told by image


class UnusableImageError(UserError):
    """The file is no image, is damaged, or holds what this project cannot take. The text says which, and the cure."""


def open_image(file: Path | bytes, name: str) -> ImageFile.ImageFile:
    """The image called `name` with its header read and its pixels not yet decoded.

    Raises:
        UnusableImageError: what the header tells already.
        UserError: a plugin of Pillow that it needs is not installed.
    """
    try:
        plugin = plugin_for(file[:START] if isinstance(file, bytes) else start_of(file))
        if plugin == "JXL" and (problem := jxl_problem(bytes_of(file))):
            raise UnusableImageError(problem)
        formats = formats_of(name) if plugin is None else [plugin]
        image = Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=formats)
        if plugin == "JXL":  # whose codestream says how it is turned
            image.info.pop("exif", None)
        problem = header_problem(image)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        problem = describe_unreadable(bytes_of(file), name) if plugin is None else f"{plugin}: truncated or damaged"
        raise UnusableImageError(problem) from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"{error}; shrink it or cut it into tiles") from error
    except Exception as error:  # bytes of any content can raise anything in one of Pillow's many readers
        if isinstance(error, OSError) and error.strerror:
            raise UnusableImageError(f"cannot be read ({error.strerror})") from error
        raise UnusableImageError(f"truncated or damaged ({error})") from error
    if problem:
        raise UnusableImageError(problem)
    return image


def load_image(file: Path | bytes, name: str) -> Image.Image:
    """The image called `name`, decoded, in the mode in which it is stored.

    Raises:
        UnusableImageError: truncated, damaged, or refused.
    """
    content = bytes_of(file)
    image = open_image(content, name)
    step = GREY_STEPS.get(png_rawmode(image) if image.format == "PNG" else "")
    if step and "transparency" in image.info:  # stored as a sample of 2 or 4 bits, where the pixels have 8
        image.info["transparency"] *= step
    try:
        if image.format == "PNG":  # Pillow compares the checksums of the pixels only when asked to
            open_image(content, name).verify()
        image.load()
    except Exception as error:  # see above
        raise UnusableImageError(f"truncated or damaged ({error})") from error
    if isinstance(image, TiffImageFile) and (problem := empty_problem(image.tag_v2, np.asarray(image))):
        raise UnusableImageError(problem)
    return image


def upright(picture: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF data say; as stored where they are damaged, as viewers do."""
    with suppress(Exception):  # which they can raise in any way
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def bytes_of(file: Path | bytes) -> bytes:
    """The bytes of a file, which may be at hand already. Raises `UnusableImageError`."""
    try:
        if isinstance(file, bytes):
            return file
        if (size := file.stat().st_size) > MOST_IMAGE:
            raise UnusableImageError(f"{size:,} bytes, more than the {MOST_IMAGE:,} that an image here can have")
        return file.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"{error.filename} cannot be read ({error.strerror})") from error


def describe_unreadable(content: bytes, file_name: str) -> str:
    """What a file is that Pillow does not open, and why it does not."""
    if kind := kind_of(content[:START]):
        return kind
    openers = {name: Image.OPEN[name] for name in SIGNED}
    name = next((name for name, (_, accepts) in openers.items() if accepts and accepts(content[:16]) is True), None)
    if name is None:
        return f"no image that Pillow can read, or one whose header is damaged; it begins with {content[:8]!r}"
    kind = name
    try:
        if name == "TIFF" and (tags := read_tags(content)):
            kind = describe_tiff(tags)
            if problem := tiff_problem(tags):
                return problem
        openers[name][0](io.BytesIO(content), "")
    except Exception as error:  # see above
        advice = png_line(PurePosixPath(file_name).suffix)
        return f"{kind}: Pillow cannot read this kind, or the file is damaged ({error}); {advice}"
    return f"{kind}: Pillow cannot read this kind"


def each_row(work: Callable[[int], T], count: int, description: str) -> Iterator[T]:
    """`work` of each of the rows 0…count−1, in order, by all cores: Pillow lets go of the interpreter lock."""
    chunks = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    bar = tqdm(total=count, desc=description, unit=" images", delay=2)
    with bar, ThreadPoolExecutor(len(available_cores())) as threads:
        for results in threads.map(lambda rows: [work(row) for row in rows], chunks):
            yield from results
            bar.update(len(results))
