"""Images of measurements: FITS, DICOM, and TIFF of floats, of wide integers or of other bands than pictures have.

Each reader returns the numbers that the file means, in the order in which a person sees them: rows from the top, bands
last, with the file's own scale and offset applied. What becomes black and white is said elsewhere (`window`).
"""

import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datamodules.file_kinds import START, array_line, start_of
from datamodules.images.decoding import UnusableImageError, bytes_of
from datamodules.images.tiff import PHOTOMETRIC, WHITE_IS_ZERO, empty_problem, is_measurement, read_tags, scale_problem
from datamodules.packages import needed
from storage.errors import UserError

ORIENTATION = 274
FRAMES = array_line("pydicom", "pydicom.dcmread('FILE').pixel_array")
DEFLATED = b"1.2.840.10008.1.2.1.99"
SYNTAXES = {  # of DICOM, as its values are stored: implicit and explicit little endian, big endian; RLE; JPEG 2000
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90",
}  # fmt: skip

for library in ("pydicom", "tifffile"):
    logging.getLogger(library).setLevel(logging.CRITICAL)  # what they log is raised as well, and told by image
warnings.filterwarnings("ignore", module=r"astropy|pydicom")


class Measured(NamedTuple):
    """The numbers of an image.

    Attributes:
        values: [H, W, bands], of any type.
        bytes_as_they_are: whether 0 is black and 255 white, or the other way round.
        inverted: whether the lowest is white.
    """

    values: np.ndarray
    bytes_as_they_are: bool = False
    inverted: bool = False


def read_fits(content: bytes) -> Measured:
    """The only image of a FITS file, its axes [H, W] or [bands, H, W], which stands on its head in the file.

    Source: the FITS standard 4.0 (IAU, 2018), 4.4.2: value = BZERO + BSCALE × stored; stored BLANK: no value.
    """
    fits = needed("astropy.io.fits", "a FITS file")
    with fits.open(io.BytesIO(content), memmap=False, do_not_scale_image_data=True, uint=False) as file:
        if any(isinstance(part, fits.CompImageHDU) for part in file):
            raise UnusableImageError("a FITS file that holds a compressed image; unpack it: funpack FILE")
        images = [part for part in file if type(part) in (fits.PrimaryHDU, fits.ImageHDU) and part.header["NAXIS"]]
        if len(images) != 1:
            names = ", ".join(part.name or "without a name" for part in images)
            raise UnusableImageError(f"{len(images)} images in a FITS file ({names}); save each as a file of its own")
        header, stored = images[0].header, np.asarray(images[0].data)
    values = stored[(0,) * max(0, stored.ndim - 3)] if all(size == 1 for size in stored.shape[:-3]) else stored
    if values.ndim not in (2, 3):
        raise UnusableImageError(f"a FITS image of axes {list(stored.shape)}; [H, W] or [bands, H, W] are expected")
    scale, zero, blank = header.get("BSCALE", 1), header.get("BZERO", 0), header.get("BLANK")
    as_stored, missing = (scale, zero) == (1, 0), values == (None if values.dtype.kind == "f" else blank)
    own = as_stored and header["BITPIX"] == 8
    if (scale, zero) == (1, 2**63):  # unsigned integers of 64 bits, which no float holds
        values = values.astype(np.uint64) ^ np.uint64(2**63)
    elif not as_stored:
        values = values * float(scale) + float(zero)
    if np.any(missing):
        values = np.where(missing, np.nan, values)
    values = values if values.ndim == 3 else values[np.newaxis]
    return Measured(values[:, ::-1].transpose(1, 2, 0), own)


def read_dicom(content: bytes) -> Measured:
    """The frame of a DICOM file after its modality transform, such as Hounsfield units, or its RGB of 8 bits.

    Source: DICOM PS3.3, C.7.6.3.1 and C.11.1; PS3.5, 8.1.1 (bits above BitsStored mean nothing).
    """
    pydicom = needed("pydicom", "a DICOM file")
    if DEFLATED in content[128:2048]:  # before it is inflated
        raise UnusableImageError("a deflated DICOM file; inflate it: gdcmconv --raw FILE.dcm RAW.dcm")
    data = pydicom.dcmread(io.BytesIO(content))
    problem = dicom_problem(data)
    if problem:
        raise UnusableImageError(problem)
    refuse_bomb(data.Columns, data.Rows)
    spare, scale, zero = data.BitsAllocated - data.BitsStored, data.get("RescaleSlope"), data.get("RescaleIntercept")
    values = data.pixel_array
    values = (values << spare) >> spare if spare else values
    own = data.BitsStored == 8 and data.PixelRepresentation == 0
    if "ModalityLUTSequence" in data:
        values, own = needed("pydicom.pixels", "a DICOM file").apply_modality_lut(values, data), False
    elif (scale, zero) not in ((None, None), (1, 0)):
        values, own = values * float(1 if scale is None else scale) + float(zero or 0), False
    return Measured(np.atleast_3d(values), own, data.PhotometricInterpretation == "MONOCHROME1")


def dicom_problem(data: Any) -> str | None:
    """Why a DICOM file is not taken; None where it is."""
    frames, syntax = int(data.get("NumberOfFrames") or 1), data.file_meta.TransferSyntaxUID
    kind = (data.get("SamplesPerPixel"), data.get("PhotometricInterpretation"))
    if "PixelData" not in data:
        return "a DICOM file without an image; leave such files out"
    if "SharedFunctionalGroupsSequence" in data or "PerFrameFunctionalGroupsSequence" in data:
        return "an enhanced DICOM file, whose frames have scales of their own; split it: emf2sf (of dcm4che)"
    if frames > 1:
        return f"a DICOM file of {frames} frames; {FRAMES}"
    if syntax not in SYNTAXES:
        return f"a DICOM file compressed as {syntax.name}; uncompress it: gdcmconv --raw FILE.dcm RAW.dcm"
    if kind not in ((1, "MONOCHROME1"), (1, "MONOCHROME2")) and (*kind, data.BitsStored) != (3, "RGB", 8):
        return f"a DICOM file of {kind[0]} channels, {kind[1]}; save it as PNG: dcmj2pnm +Wn FILE.dcm FILE.png"
    if data.BitsAllocated not in (8, 16, 32) or data.HighBit != data.BitsStored - 1:
        bits = f"{data.BitsStored} of {data.BitsAllocated} bits, of which {data.HighBit} is the highest"
        return f"a DICOM file of {bits}; convert it: gdcmconv --raw FILE.dcm RAW.dcm"
    return None


def read_tiff(content: bytes) -> Measured:
    """The bands of a TIFF file that is no picture."""
    tifffile = needed("tifffile", "a TIFF file of measurements")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page, others = file.pages[0], file.pages[1:]
        if not all(other.is_reduced for other in others):
            raise UnusableImageError(f"{len(file.pages)} pages in one file; save each as a file of its own")
        if 0 in (*page.dataoffsets, *page.databytecounts):  # which tifffile would fill with zeros
            raise UnusableImageError("a sparse TIFF, of which a part is not stored; fill it: gdal_translate")
        refuse_bomb(page.imagewidth, page.imagelength * max(1, page.samplesperpixel // 4))
        try:
            values = page.asarray()
        except KeyError as error:  # a codec
            raise UserError(f"a TIFF file of measurements: {error.args[0]}. Run: pip install imagecodecs") from error
        values = np.moveaxis(values, page.axes.index("S"), -1) if "S" in page.axes else values[..., np.newaxis]
    tags = read_tags(content)
    if problem := scale_problem(tags) or empty_problem(tags, values):
        raise UnusableImageError(problem)
    values = turned(values, tags.get(ORIENTATION, 1))
    return Measured(values, values.dtype == np.uint8, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Values [H, W, bands] as they are to be seen, upright. Source: TIFF 6.0, the tag Orientation."""
    values = values.swapaxes(0, 1) if 4 < orientation < 9 else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


READERS: tuple[tuple[bytes, Callable[[bytes], Measured]], ...] = (  # by how the bytes begin
    (rb"SIMPLE  =", read_fits),
    (rb".{128}DICM", read_dicom),
    (rb"II[*+]\0|MM\0[*+]", read_tiff),
)


def reader_of(file: Path | bytes) -> Callable[[bytes], Measured] | None:
    """What reads a file of measurements; None where it is a picture, or unknown."""
    try:
        start = file[:START] if isinstance(file, bytes) else start_of(file)
        reader = next((read for starts, read in READERS if re.match(starts, start, re.S)), None)
        return None if reader is read_tiff and not is_measurement(read_tags(file)) else reader
    except Exception:  # damaged, or not to be opened; told by who decodes it
        return None


def refuse_bomb(width: int, height: int) -> None:
    """Raise `UnusableImageError` for more pixels than Pillow's limit."""
    if width * height > (limit := Image.MAX_IMAGE_PIXELS or 0):
        raise UnusableImageError(f"{width}×{height} pixels, more than {limit / 1e6:.0f} megapixels; cut it into tiles")


def load_measured(file: Path | bytes) -> Measured | None:
    """The numbers of an image file that holds measurements; None where it holds a picture.

    Raises:
        UnusableImageError: it is damaged, or nothing says what its numbers mean.
        UserError: the package that reads it is not installed.
    """
    read = reader_of(file)
    if read is None:
        return None
    content = bytes_of(file)
    try:
        measured = read(content)
    except UserError:
        raise
    except Exception as error:  # bytes of any content can raise anything in these libraries
        raise UnusableImageError(f"truncated or damaged ({type(error).__name__}: {error})") from error
    if measured.values.dtype.kind not in "iuf" or 0 in measured.values.shape:
        raise UnusableImageError(f"holds {measured.values.dtype}, {list(measured.values.shape)}; an image is expected")
    return measured
