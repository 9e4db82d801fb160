"""Each format and mode of the allow-list gives the pixels that its bytes mean; all else is refused by name."""

import struct

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from datamodules.images.decoding import UnusableImageError, load_image
from datamodules.images.formats import MODES, refused_suffixes, suffixes
from datamodules.images.images import to_uint8
from datamodules.images.tiff import LAYOUTS

from .bad_files import encoded
from .handmade import bmp, bmp_16, bmp_runs, fits, gif, png, pnm, qoi, shown, tga, tiff

HEIGHT, WIDTH = 13, 21
RNG = np.random.default_rng(0)
PALETTE = RNG.integers(0, 256, (256, 3))
quick = settings(max_examples=150, deadline=None, derandomize=True)


def random(bits: int = 8, channels: int | None = None) -> np.ndarray:
    """Samples [H, W] or [H, W, C] that reach from 0 to the highest."""
    shape = (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels)
    samples = RNG.integers(0, 2**bits, shape)
    samples.flat[:2] = 0, 2**bits - 1
    return samples


def decoded(content: bytes, name: str = "x") -> np.ndarray:
    """float RGB [H, W, 3] as the project reads it."""
    return to_uint8(load_image(content, name), None, 3).permute(1, 2, 0).numpy().astype(float)


def check(content: bytes, seen: np.ndarray, tolerance: float, name: str = "x") -> None:
    found = decoded(content, name)
    assert found.shape == seen.shape
    assert np.abs(found - seen).max() <= tolerance


def inked(cmyk: np.ndarray, bits: int) -> np.ndarray:
    """RGB by (1−C)(1−K)."""
    ink = cmyk / (2**bits - 1)
    return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])


# The allow-list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png(bits: int, interlaced: bool) -> None:
    grey = random(bits)
    check(png(grey, bits, 0, interlaced=interlaced), shown(grey, bits), 0.51)
    hole = int(grey[3, 3])
    seen = np.where(grey[..., None] == hole, 255, shown(grey, bits))
    check(png(grey, bits, 0, (b"tRNS", struct.pack(">H", hole)), interlaced=interlaced), seen, 0.51)
    if bits <= 8:
        colours = PALETTE[: 2**bits]
        chunk = (b"PLTE", colours.astype(np.uint8).tobytes())
        check(png(grey, bits, 3, chunk, interlaced=interlaced), colours[grey], 0)
        alpha = RNG.integers(0, 256, 2**bits)
        rgba = np.concatenate([colours, alpha[:, None]], axis=1)
        holes = (b"tRNS", alpha.astype(np.uint8).tobytes())
        check(png(grey, bits, 3, chunk, holes, interlaced=interlaced), shown(rgba[grey]), 1)
    if bits >= 8:
        for colour_type, channels in ((2, 3), (4, 2), (6, 4)):
            samples = random(bits, channels)
            tolerance = {8: 1, 16: 1 if channels == 3 else 2}[bits]  # Pillow keeps the upper 8 of 16 bits
            check(png(samples, bits, colour_type, interlaced=interlaced), shown(samples, bits), tolerance)


def test_png_with_a_transparent_colour() -> None:
    rgb = random(8, 3)
    rgb[4, 4] = rgb[0, 0]
    hole = (b"tRNS", struct.pack(">HHH", *rgb[0, 0].tolist()))
    check(png(rgb, 8, 2, hole), np.where((rgb == rgb[0, 0]).all(2, keepdims=True), 255, rgb), 0)
    with pytest.raises(UnusableImageError, match="16 bits per channel and one colour declared transparent"):
        decoded(png(random(16, 3), 16, 2, hole))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("photometric", "channels", "extra", "bits"),
    [(*layout, bits) for layout, depths in LAYOUTS.items() for bits in sorted(depths)],
)
def test_tiff(photometric: int, channels: int, extra: tuple[int, ...], bits: int, order: str) -> None:
    samples, colour_map = random(bits, channels), None
    seen = shown(samples[..., 0] if channels == 1 else samples, bits, white_is_zero=photometric == 0)
    tolerance = {16: 3}.get(bits, 1)  # of colours: Pillow keeps the upper 8 of 16 bits
    if extra == (1,):
        samples[..., :3] = np.minimum(samples[..., :3], samples[..., 3:])
        seen = shown(samples[..., :3], bits) + 255 - shown(samples[..., 3], bits)
    if photometric == 3:
        colour_map = PALETTE[: 2**bits] * 257
        seen = PALETTE[samples[..., 0]]
    if photometric == 5:
        seen, tolerance = inked(samples, bits), {8: 1, 16: 3}[bits]
    content = tiff(samples, bits, photometric, extra, order=order, colour_map=colour_map)
    if photometric == 6 or (photometric == 0 and bits == 16 and order == ">"):  # the second Pillow cannot read
        with pytest.raises(UnusableImageError, match=r"a TIFF of .* magick mogrify"):
            decoded(content)
    else:
        check(content, seen, 0.51 if channels == 1 else tolerance)


def test_tiff_in_planes_tiles_and_compressed() -> None:
    rgb = random(8, 3)
    check(tiff(rgb, 8, 2, planar=True), rgb, 0)
    image = Image.fromarray(rgb.astype(np.uint8))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"):
        check(encoded(image, "TIFF", compression=compression), rgb, 0)
    grey = random(16)
    check(encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF", compression="tiff_lzw"), shown(grey, 16), 0.51)
    inverted = {"tiffinfo": {262: 0}, "compression": "tiff_lzw"}
    check(
        encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF", **inverted), shown(grey, 16, white_is_zero=True), 0.51
    )
    fax = Image.fromarray(random(1).astype(bool))
    check(encoded(fax, "TIFF", compression="group4"), shown(np.array(fax), 1), 0)
    smooth = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (32, 1, 3))
    check(encoded(Image.fromarray(smooth), "TIFF", compression="jpeg", quality=100), smooth, 4)  # YCbCr
    for number, name in ((34712, "JPEG 2000"), (34887, "LERC"), (50001, "WebP"), (6, "JPEG of the old kind")):
        with pytest.raises(UnusableImageError, match=f"RGB, compressed as {name}; .*magick mogrify"):
            decoded(tiff(rgb, 8, 2, tags={259: (3, struct.pack("<HH", number, 0), 1)}))


@pytest.mark.parametrize("highest", [1, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pnm(highest: int, plain: bool) -> None:
    for channels in (None, 3):
        samples = RNG.integers(0, highest + 1, (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels))
        seen = (
            255 - shown(samples, 1) if highest == 1 and channels is None else samples * 255 / highest
        )  # PBM: 1 is ink
        seen = np.repeat(seen[..., None], 3, axis=2) if seen.ndim == 2 else seen
        check(pnm(samples, highest, plain, comment=b"# GIMP\n"), seen, 0.51)


def test_several_pnm_in_one_file() -> None:
    for samples, highest in (
        (random(1), 1),
        (random(8), 255),
        (random(16), 65535),
        (random(8, 3), 255),
        (random(8, 3), 999),
    ):
        content = pnm(samples, highest)
        decoded(content + b"\n")
        with pytest.raises(UnusableImageError, match="several images"):
            decoded(content + content)


@pytest.mark.parametrize("top_down", [False, True])
def test_bmp(top_down: bool) -> None:
    for bits in (1, 4, 8):
        indices = random(bits)
        for colours in (PALETTE[: 2**bits], np.linspace(0, 255, 2**bits).astype(int)[:, None].repeat(3, axis=1)):
            check(bmp(indices, bits, colours, top_down), colours[indices], 0)
            check(bmp(indices, bits, colours[::-1], top_down), colours[::-1][indices], 0)
    check(bmp(random_rgb := random(8, 3), 24, top_down=top_down), random_rgb, 0)
    rgbx = random(8, 4)
    check(bmp(rgbx, 32, top_down=top_down), rgbx[..., :3], 0)
    check(bmp(rgbx, 32, top_down=top_down, alpha=True), shown(rgbx), 1)


def test_bmp_in_runs_and_in_16_bits() -> None:
    indices = random()
    check(bmp_runs(indices, PALETTE), PALETTE[indices], 0)
    for bits in ((5, 5, 5), (5, 6, 5)):
        samples = np.stack([random(count) for count in bits], axis=2)
        check(bmp_16(samples, bits), samples * 255 / (2 ** np.array(bits) - 1), 1)


@pytest.mark.parametrize("packets", [False, True])
@pytest.mark.parametrize("top_down", [False, True])
def test_tga(packets: bool, top_down: bool) -> None:
    grey, rgb, rgba = random(), random(8, 3), random(8, 4)
    check(tga(grey, 0, top_down, packets), shown(grey), 0, "x.tga")
    check(tga(rgb, 0, top_down, packets), rgb, 0, "x.TGA")
    check(tga(rgba, 8, top_down, packets), shown(rgba), 1, "x.tga")
    with pytest.raises(UnusableImageError, match="32 bits with 0 bits of alpha"):
        decoded(tga(rgba, 0, top_down, packets), "x.tga")


@pytest.mark.parametrize("interlaced", [False, True])
def test_gif(interlaced: bool) -> None:
    indices = random()
    check(gif(indices, PALETTE, interlaced=interlaced), PALETTE[indices], 0)
    ramp = np.arange(256)[:, None].repeat(3, axis=1)
    check(gif(indices, ramp, interlaced=interlaced), shown(indices), 0)
    hole = int(indices[5, 5])
    seen = np.where(indices[..., None] == hole, 255, PALETTE[indices])
    check(gif(indices, PALETTE, hole, interlaced=interlaced), seen, 0)
    seen = np.where(indices[..., None] == hole, 255, shown(indices))
    check(gif(indices, ramp, hole, interlaced=interlaced), seen, 0)


def test_a_gif_smaller_than_its_canvas() -> None:
    indices = random() % 255
    with pytest.raises(UnusableImageError, match="without colour"):
        decoded(gif(indices, PALETTE, canvas=(WIDTH + 2, HEIGHT)))
    seen = np.pad(PALETTE[indices], ((0, 0), (0, 2), (0, 0)), constant_values=255)
    check(gif(indices, PALETTE, transparent=255, canvas=(WIDTH + 2, HEIGHT)), seen, 0)


def test_qoi() -> None:
    for channels in (3, 4):
        samples = random(8, channels)
        check(qoi(samples), shown(samples), 1)


# What is refused ------------------------------------------------------------------------------------------------------

U16 = np.arange(HEIGHT * WIDTH, dtype=np.int16).reshape(HEIGHT, WIDTH)
COMMENT = b"ImageJ=1.54f\nimages=7\nslices=7\n\0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (fits(U16, BZERO=32768, BSCALE=1), "a FITS file; set dataset=folder"),
        (fits(np.stack([U16, U16])), "a FITS file"),
        (fits(U16.astype(np.float32)), "a FITS file"),
        (tiff(random(8, 13), 8, 1, [0] * 12), "a TIFF of 13 channels, 8-bit unsigned integers, grey, for which there"),
        (tiff(random(16, 13), 16, 1), "a TIFF of 13 channels, 16-bit unsigned integers"),
        (tiff(random(8, 4), 8, 2, [0]), "a TIFF of 4 channels"),
        (tiff(random(8, 4), 8, 2), "a TIFF of 4 channels"),  # Pillow takes the fourth for alpha
        (tiff(random(8, 2), 8, 1, [1]), "a TIFF of 2 channels"),
        (tiff(random(8, 1).astype(np.int8), 8, 1, sample_format=2), "8-bit signed integers, grey, whose range nothing"),
        (tiff(random(8, 1).astype(np.int16), 16, 1, sample_format=2), "16-bit signed integers"),
        (tiff(random(8, 1).astype(np.float32), 32, 1, sample_format=3), "32-bit floating-point"),
        (tiff(random(8, 1).astype(np.float64), 64, 1, sample_format=3), "64-bit floating-point"),
        (tiff(random(8, 3), 8, 8), "CIE L*a*b*"),
        (tiff(random(8, 3), 8, 6), "YCbCr, not compressed as JPEG"),
        (tiff(random(8, 4), 8, 5, tags={332: (3, struct.pack("<H", 2), 1)}), "inks other than CMYK"),
        (tiff(random(16, 3), 16, 2, planar=True), "one plane per channel"),
        (tiff(random(8, 1), 8, 1, reversed_bits=True), "reverse order"),
        (tiff(random(8, 1), 8, 3, colour_map=PALETTE), "stored in 8 bits where 16 belong"),
        (tiff(random(8, 1), 8, 1, tags={270: (2, COMMENT, len(COMMENT))}), "7 frames or planes"),
        (tiff(random(8, 1), 8, 1, tags={32997: (4, struct.pack("<I", 9), 1)}), "9 frames or planes"),
        (tiff(random(8, 3), 8, 2, tags={254: (4, struct.pack("<I", 1), 1)}), "a preview"),
        (b"Pf\n2 1\n-1.0\n" + b"\0" * 8, "a PFM picture of floating-point values"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "SGI"), "an SGI picture"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "ICO", sizes=[(4, 4)]), "an icon"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "DDS"), "a DDS texture"),
        (b"8BPS\0\1" + b"\0" * 30, "a Photoshop file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 30, "an HDF5 file"),
    ],
)  # fmt: skip
def test_refused_by_what_it_is(content: bytes, reason: str) -> None:
    for name in ("x.png", "x.tif", "x.fits", "x"):
        with pytest.raises(UnusableImageError) as error:
            decoded(content, name)
        assert reason in str(error.value)


def test_every_suffix_that_pillow_knows_is_taken_refused_or_no_picture() -> None:
    Image.init()
    taken, refused = set(suffixes()), set(refused_suffixes())
    assert not taken & refused
    others = {name for suffix, name in Image.registered_extensions().items() if suffix not in taken | refused}
    assert others <= {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}
    assert set(suffixes().values()) == {*MODES, "FITS", "DICOM"}
    assert {".nii", ".psd", ".ico", ".eps", ".pfm", ".dng"} <= refused


# Properties -----------------------------------------------------------------------------------------------------------
