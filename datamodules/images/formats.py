"""Which image files are taken: an allow-list of formats, and of the modes in which Pillow opens them.

Each entry of `MODES` is held to pixels that were computed without Pillow. Whatever else Pillow opens is refused by its
name, with the line that converts it.
"""

import functools
import re
import struct
from pathlib import PurePosixPath

from PIL import Image, ImageFile

from datamodules.file_kinds import DRAWING, GUNZIP, NIFTI, START, kind_of, png_line
from datamodules.images.tiff import tiff_problem
from datamodules.packages import needed

# Modes by format. 16-bit grey begins with I;16; PPM's I is 16 bits, scaled by Pillow.
MODES = {
    "AVIF": {"L", "RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB", "RGBA"},
    "GIF": {"L", "P"},
    "HEIF": {"L", "RGB", "RGBA"},
    "JPEG": {"L", "RGB", "CMYK"},
    "JPEG2000": {"L", "LA", "RGB", "RGBA", "I;16"},
    "JXL": {"L", "LA", "RGB", "RGBA"},
    "MPO": {"L", "RGB", "CMYK"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "PPM": {"1", "L", "RGB", "I"},
    "QOI": {"RGB", "RGBA"},
    "TGA": {"L", "RGB", "RGBA"},
    "TIFF": {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"},
    "WEBP": {"RGB", "RGBA"},
}
PLUGINS = {  # how the bytes begin, module, package
    "HEIF": (rb".{4}ftyp(hei[cfmsx]|hev[cx]|mif1|msf1)(?!.{0,64}avif)", "pillow_heif", "pillow-heif"),
    "JXL": (rb"\xff\x0a|\0\0\0\x0cJXL ", "pillow_jxl", "pillow-jxl-plugin"),
}
SIGNED = [
    name for name in MODES if name not in ("MPO", "TGA", *PLUGINS)
]  # taken whatever the file is called; MPO opens as JPEG
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}  # registered by Pillow, and not meant as pictures
FLOATING = ".pfm"  # a suffix of PPM, for pictures that are not in its modes
DRAWINGS = {".svg", ".eps", ".ps", ".wmf", ".emf"}
OTHERS = {  # that Pillow does not know: of cameras, and others
    ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef",
    ".x3f", ".3fr", ".iiq", ".erf", ".dcr", ".kdc", ".mrw",
    ".exr", ".hdr", ".jxr", ".wdp", ".hdp", ".jls", ".xcf", ".kra", ".psb", ".pam", ".dpx", ".svgz",
}  # fmt: skip
LINES = {".nii": NIFTI, ".nii.gz": NIFTI, ".fits.gz": GUNZIP, ".fits.fz": "run: funpack"}
BY_PLUGIN = dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF") | {".jxl": "JXL"}
MEASUREMENTS = {".fits": "FITS", ".fit": "FITS", ".fts": "FITS", ".dcm": "DICOM", ".dicom": "DICOM"}  # see `measured`


@functools.cache
def suffixes() -> dict[str, str]:
    """Format by suffix (`.png`), of those that are taken."""
    Image.init()
    registered = Image.registered_extensions().items()
    taken = {suffix: name for suffix, name in registered if name in (*SIGNED, "MPO", "TGA") and suffix != FLOATING}
    return taken | BY_PLUGIN | MEASUREMENTS


@functools.cache
def refused_suffixes() -> dict[str, str]:
    """What to do with pictures of other formats, by suffix: who has them means them as images."""
    registered = {suffix for suffix, name in Image.registered_extensions().items() if name not in NO_PICTURES}
    others = (registered | DRAWINGS | OTHERS | LINES.keys()) - suffixes().keys()
    return {suffix: LINES.get(suffix, DRAWING if suffix in DRAWINGS else png_line(suffix)) for suffix in others}


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, such as `.png`, or `.nii.gz`."""
    suffixes = PurePosixPath(name.lower()).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] in ([".gz"], [".fz"]) else suffixes[-1:])


def formats_of(name: str) -> list[str]:
    """What a file of this name may hold."""
    own = suffixes().get(PurePosixPath(name).suffix.lower())
    return [*SIGNED, "TGA"] if own == "TGA" else SIGNED


def plugin_for(start: bytes) -> str | None:
    """The format of a picture that begins so and that a plugin of Pillow reads, which is registered; None for others.

    Raises:
        UserError: the plugin is not installed.
    """
    for name, (starts, module, package) in PLUGINS.items():
        if re.match(starts, start, re.S):
            plugin = needed(module, f"a {'HEIC' if name == 'HEIF' else 'JPEG XL'} picture", package)
            if name == "HEIF":
                plugin.register_heif_opener()
            return name
    return None


def header_problem(image: ImageFile.ImageFile) -> str | None:
    """Why a file that was opened, and whose pixels were not read yet, is not taken; None where it is.

    Pillow would decode it to something else than it holds, or nobody knows what it holds.
    """
    limit = Image.MAX_IMAGE_PIXELS or 0
    if image.width * image.height > limit:
        size = f"{image.width}×{image.height} pixels are more than Pillow's limit of {limit / 1e6:.0f} megapixels"
        return f"{size} against decompression bombs; shrink it or cut it into tiles"
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with a preview behind it
        frames = getattr(image, "n_frames", "several")
        return f"{frames} frames or pages in one file; save each as a file of its own: magick FILE FILE-%03d.png"
    problem = CHECKS[image.format](image) if image.format in CHECKS else None
    if problem is None and image.mode not in MODES.get(str(image.format), ()):
        line = png_line(f".{image.format}".lower())
        return f"a picture in {image.format} of Pillow's mode {image.mode}, which is not supported; {line}"
    return problem


def jpeg_problem(image: ImageFile.ImageFile) -> str | None:
    """Photoshop stores CMYK inverted and says so by a marker; without it nothing tells whether 0 is ink or paper."""
    if image.mode == "CMYK" and "adobe" not in image.info:
        return "a CMYK JPEG without Adobe's marker, so that nothing says whether it is inverted; save it as RGB"
    return None


def gif_problem(image: ImageFile.ImageFile) -> str | None:
    """What lies outside of the first frame has no colour, but Pillow gives it one."""
    covered = image.tile and image.tile[0][1] == (0, 0, *image.size)
    if not covered and "transparency" not in image.info:
        return f"a GIF that leaves a part of its {image.width}×{image.height} pixels without colour; save it as PNG"
    return None


def png_problem(image: ImageFile.ImageFile) -> str | None:
    """Pillow keeps 8 of 16 bits per colour, so it cannot tell which pixels have the transparent one."""
    if image.mode == "RGB" and "transparency" in image.info and png_rawmode(image).startswith("RGB;16"):
        return "16 bits per channel and one colour declared transparent; save it with an alpha channel or 8 bits"
    return None


def png_rawmode(image: ImageFile.ImageFile) -> str:
    """How Pillow unpacks the samples of a PNG, such as `L;4`; empty once it has."""
    return str(image.tile[0][3]) if image.tile else ""


def tga_problem(image: ImageFile.ImageFile) -> str | None:
    """Depths that are tested, and 4 channels only where the header says that the fourth is alpha."""
    header = content_of(image)
    depth, alpha_bits = header[16], header[17] & 15
    if (image.mode, depth, alpha_bits) in {("L", 8, 0), ("RGB", 24, 0), ("RGBA", 32, 8)}:
        return None
    return f"a TGA of {depth} bits with {alpha_bits} bits of alpha; 8 or 24 bits, or 32 with 8 of alpha are expected"


def ppm_problem(image: ImageFile.ImageFile) -> str | None:
    """Of several images in one file Pillow reads the first."""
    content, (_, _, offset, arguments) = content_of(image), image.tile[0]
    if image.mode == "F":
        return kind_of(content[:START])
    if content[1:2] in b"123":  # text, which holds one image
        return None
    wide = image.mode == "I" or (isinstance(arguments, tuple) and arguments[-1] > 255)
    row = (image.width + 7) // 8 if image.mode == "1" else image.width * len(image.getbands()) * (1 + wide)
    if re.match(rb"\s*P[1-7]\s", content[offset + row * image.height :]):
        return "several images in one file; save each as a file of its own"
    return None


def jpeg2000_problem(image: ImageFile.ImageFile) -> str | None:
    """Channels that are signed, too wide, of different depths or sizes, or of which nothing says that one is alpha.

    Source: ISO/IEC 15444-1, A.5.1 (the marker SIZ) and I.5.3.6 (the box cdef).
    """
    content = content_of(image)
    start = content.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    channels = struct.unpack_from(">H", content, start + 40)[0]
    described = set(struct.iter_unpack("BBB", content[start + 42 : start + 42 + 3 * channels]))
    depth, *steps = described.pop()  # bits − 1; signed ones above 127
    if described or not 7 <= depth <= 15 or steps != [1, 1]:
        return f"a JPEG 2000 of signed, mixed, subsampled or narrow channels; {png_line('.jp2')}"
    if channels > 1 and depth > 7:  # Pillow rounds them to 8 bits, and white up to black
        return f"a JPEG 2000 in colour with {depth + 1} bits per channel; {png_line('.jp2')}"
    if channels in (2, 4) and b"cdef" not in content[:start]:
        return f"a JPEG 2000 of {channels} channels, of which nothing says that the last is alpha; save it as PNG"
    return None


def content_of(image: ImageFile.ImageFile) -> bytes:
    """The bytes of the file that an image is being read from; its position stays."""
    file = image.fp
    assert file is not None
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


CHECKS = {
    "GIF": gif_problem,
    "JPEG": jpeg_problem,
    "JPEG2000": jpeg2000_problem,
    "MPO": jpeg_problem,
    "PNG": png_problem,
    "PPM": ppm_problem,
    "TGA": tga_problem,
    "TIFF": lambda image: tiff_problem(image.tag_v2),
}
