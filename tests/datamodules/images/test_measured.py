"""FITS, DICOM and TIFF of measurements give the numbers that their bytes mean; all else is refused by name."""

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.images.decoding import UnusableImageError, load_image
from datamodules.images.measured import load_measured
from datamodules.images.tiff import NUMBERS
from storage.errors import UserError

from ..opening import opened
from .bad_files import encoded
from .handmade import dicom, dicom_runs, fits, tiff

HEIGHT, WIDTH = 7, 12
RNG = np.random.default_rng(0)
LITTLE, BIG, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
quick = settings(max_examples=150, deadline=None, derandomize=True)


def numbers(dtype: str, *shape: int) -> np.ndarray:
    """Numbers that reach from the lowest to the highest of a type of integers; floats of any size."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(0, 1000, shape).astype(kind)
    limits = np.iinfo(kind)
    values = RNG.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


def check(content: bytes, expected: np.ndarray, inverted: bool = False) -> None:
    """The numbers [H, W, bands] that a file means."""
    measured = load_measured(content)
    assert measured is not None
    assert measured.values.shape == expected.shape
    assert np.array_equal(measured.values, expected)
    assert measured.inverted == inverted


def refusal(content: bytes) -> str:
    with pytest.raises(UnusableImageError) as error:
        load_measured(content)
    return str(error.value)


def read(folder: Path, files: dict[str, bytes], **more: Any) -> list[np.ndarray]:
    """The images of a folder of these files as uint8 [H, W, bands]."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    source = opened("folder", folder, **more)
    return [np.asarray(source.image(row)) for row in range(len(source))]


# FITS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_fits_numbers_stand_on_their_feet(dtype: str) -> None:
    values = numbers(dtype, HEIGHT, WIDTH)
    check(fits(values), values[::-1, :, None])
    check(fits(values[None, None]), values[::-1, :, None])  # axes of length 1, as radio telescopes write them
    bands = numbers(dtype, 5, HEIGHT, WIDTH)
    check(fits(bands), bands[:, ::-1].transpose(1, 2, 0))
    if dtype != "u1":
        check(fits(values, BSCALE=0.5, BZERO=-3), values[::-1, :, None] * 0.5 - 3)
    empty = fits(values[:0, :0]).replace(b"NAXIS   =                    2", b"NAXIS   =                    0")
    check(empty + fits(values, extension=True, PCOUNT=0, GCOUNT=1), values[::-1, :, None])


def test_fits_of_unsigned_integers_and_without_values() -> None:
    values = numbers("i2", HEIGHT, WIDTH)
    check(fits(values, BZERO=32768), (values.astype(float) + 32768)[::-1, :, None])
    wide = numbers("i8", HEIGHT, WIDTH)  # of which floats would lose the last digits
    check(fits(wide, BZERO=2**63), (wide.view(np.uint64) ^ np.uint64(2**63))[::-1, :, None])
    values[3, 4] = -7
    assert np.isnan(load_measured(fits(values, BZERO=32768, BLANK=-7)).values[HEIGHT - 4, 4, 0])  # type: ignore[union-attr]
    assert np.isnan(load_measured(fits(values, BLANK=-7)).values).sum() == (values == -7).sum()  # type: ignore[union-attr]


# DICOM ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (16, 16), (16, 12), (32, 32)])
@pytest.mark.parametrize("syntax", [LITTLE, BIG, IMPLICIT, "1.2.840.10008.1.2.5"])
def test_dicom_numbers(syntax: str, allocated: int, stored: int, signed: bool) -> None:
    kind = "i" if signed else "u"
    values = numbers(f"{kind}{allocated // 8}", HEIGHT, WIDTH)
    meant = values.astype(np.int64) & (2**stored - 1)  # what stands above the stored bits means nothing: overlays
    if signed:
        meant -= (meant >> (stored - 1) & 1) << stored
    pixels = (
        dicom_runs(values)
        if syntax.endswith(".5")
        else values.astype(f"{'>' if syntax == BIG else '<'}{kind}{allocated // 8}").tobytes()
    )
    if syntax == BIG and allocated == 8:  # words of 16 bits, or bytes as they are
        pixels = values.tobytes()
    facts: dict[str, Any] = {"signed": signed, "syntax": syntax}
    check(dicom(pixels, HEIGHT, WIDTH, allocated, stored, **facts), meant[..., None])
    scale = [(0x28, 0x1052, "DS", b"-1024 "), (0x28, 0x1053, "DS", b"2.5 ")]
    content = dicom(pixels, HEIGHT, WIDTH, allocated, stored, photometric="MONOCHROME1", more=scale, **facts)
    check(content, meant[..., None] * 2.5 - 1024, inverted=True)


def test_dicom_in_colour_and_in_jpeg_2000() -> None:
    rgb = numbers("u1", HEIGHT, WIDTH, 3)
    check(dicom(rgb.tobytes(), HEIGHT, WIDTH, 8, photometric="RGB", channels=3), rgb)
    for dtype in ("u1", "u2"):
        grey = numbers(dtype, 64, 48)
        content = encoded(Image.fromarray(grey), "JPEG2000", no_jp2=True)
        bits = 8 * grey.dtype.itemsize
        check(dicom(content, 64, 48, bits, syntax="1.2.840.10008.1.2.4.90"), grey[..., None])


def test_a_table_of_values_in_dicom_is_applied() -> None:
    def element(number: int, kind: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", 0x28, number, kind, len(value)) + value

    table = np.array([5, 900, 70, 60000], "<u2")
    entry = element(0x3002, b"US", struct.pack("<3H", 4, 0, 16)) + element(0x3004, b"LO", b"US")
    entry += element(0x3006, b"US", table.tobytes())
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(entry)) + entry
    values = RNG.integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    check(dicom(values.tobytes(), HEIGHT, WIDTH, 8, more=[(0x28, 0x3000, "SQ", item)]), table[values][..., None])


# TIFF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("sample_format", "bits"), sorted(NUMBERS))
def test_tiff_numbers(sample_format: int, bits: int, order: str) -> None:
    dtype = f"{'uif'[sample_format - 1]}{bits // 8}"
    for bands, extra, photometric in ((1, [], 0), (1, [], 1), (5, [0] * 4, 1), (5, [0, 0], 2), (5, [], 1), (4, [], 2)):
        values = numbers(dtype, HEIGHT, WIDTH, bands)
        if sample_format == 1 and bands == 1 and bits < 32:  # pictures
            continue
        for planar in (False, True) if bands > 1 else (False,):
            content = tiff(values, bits, photometric, extra, sample_format=sample_format, order=order, planar=planar)
            check(content, values, inverted=photometric == 0)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"])
def test_compressed_tiff_numbers(compression: str) -> None:
    """Written by libtiff."""
    values = np.linspace(-1, 1, 64 * 48, dtype=np.float32).reshape(64, 48)
    for predictor in (1, 3) if compression not in ("packbits",) else (1,):
        content = encoded(Image.fromarray(values), "TIFF", compression=compression, tiffinfo={317: predictor})
        check(content, values[..., None])
    whole = np.arange(64 * 48, dtype=np.int32).reshape(64, 48)
    check(encoded(Image.fromarray(whole), "TIFF", compression=compression), whole[..., None])


@quick
@given(
    photometric=st.sampled_from([0, 1, 2, 3, 5, 6, 8, 32803]),
    bands=st.integers(1, 6),
    extra=st.lists(st.integers(0, 2), max_size=4),
    kind=st.sampled_from(
        [(1, 8), (1, 16), (1, 32), (1, 64), (2, 8), (2, 16), (2, 32), (3, 32), (3, 64), (4, 8), (6, 64)]
    ),
    order=st.sampled_from("<>"),
    planar=st.booleans(),
    reversed_bits=st.booleans(),
)
def test_any_layout_of_tiff_numbers(
    photometric: int, bands: int, extra: list[int], kind: tuple[int, int], order: str, planar: bool, reversed_bits: bool
) -> None:
    """What is taken as numbers are those that were written, and never where a band says that it is alpha."""
    sample_format, bits = kind
    values = numbers({1: "u", 2: "i", 3: "f"}.get(sample_format, "u") + str(bits // 8), HEIGHT, WIDTH, bands)
    facts: dict[str, Any] = {"order": order, "planar": planar, "reversed_bits": reversed_bits}
    content = tiff(values, bits, photometric, extra, sample_format=sample_format, **facts)
    measured = load_measured(content)
    if measured is None:
        return
    assert photometric < 3
    assert not {*extra} & {1, 2}
    assert not reversed_bits
    assert np.array_equal(measured.values, values)


# What is refused ------------------------------------------------------------------------------------------------------

FLOATS = numbers("f4", HEIGHT, WIDTH)
BYTES = numbers("u1", HEIGHT, WIDTH).tobytes()
SCALE = b'<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item></GDALMetadata>\0'


def longs(*values: int) -> tuple[int, bytes, int]:
    return 4, struct.pack(f"<{len(values)}I", *values), len(values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (fits(FLOATS) + fits(FLOATS, extension=True, PCOUNT=0, GCOUNT=1), "2 images in a FITS file"),
        (fits(FLOATS[0]), "a FITS image of axes [12]"),
        (fits(np.stack([[FLOATS] * 2] * 2)), "a FITS image of axes [2, 2, 7, 12]"),
        (dicom(BYTES * 3, HEIGHT, WIDTH, 8, more=[(0x28, 8, "IS", b"3 ")]), "a DICOM file of 3 frames; save its array"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, more=[(0x5200, 0x9229, "SQ", b"")]), "an enhanced DICOM file"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, syntax="1.2.840.10008.1.2.4.50"), "compressed as JPEG Baseline"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, syntax="1.2.840.10008.1.2.4.70"), "compressed as JPEG Lossless"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, syntax="1.2.840.10008.1.2.1.99"), "a deflated DICOM file"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, photometric="PALETTE COLOR"), "1 channels, PALETTE COLOR"),
        (dicom(BYTES * 3, HEIGHT, WIDTH, 8, photometric="YBR_FULL", channels=3), "3 channels, YBR_FULL"),
        (dicom(BYTES, HEIGHT, WIDTH, 8, without=[0x101]), "truncated or damaged"),
        (dicom(BYTES[:-20], HEIGHT, WIDTH, 8), "truncated or damaged"),
        (dicom(b"", 60_000, 60_000, 8), "60000×60000 pixels, more than 89 megapixels"),
        (tiff(FLOATS[..., None], 32, 1, sample_format=3, tags={273: longs(8, 0), 278: longs(4), 279: longs(192, 0)}),
         "a sparse TIFF"),
        (tiff(FLOATS[..., None], 32, 1, sample_format=3, tags={273: longs(10**6)}), "truncated or damaged"),
        (fits(FLOATS)[:2980], "truncated or damaged"),
        (tiff(FLOATS[..., None], 32, 1, sample_format=3, tags={42112: (2, SCALE, len(SCALE))}), "a scale in GDAL's"),
    ],
)  # fmt: skip
def test_refused_by_what_it_is(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


def test_pixels_without_a_value(tmp_path: Path) -> None:
    holes = FLOATS.copy()
    holes[2, 3] = np.nan
    holes[1, 1] = -np.inf
    files = {"a.fits": fits(holes), "b.tif": tiff(holes[..., None], 32, 1, sample_format=3), "c.fits": fits(FLOATS)}
    for more in ({}, {"window": [0, 1]}):
        with pytest.raises(UserError, match="2 of 84 values are NaN or infinite"):
            read(tmp_path / "x", files, **more)
    assert opened("folder", tmp_path / "x", on_bad_file="skip").ids == ["c.fits"]
    empty = FLOATS.copy()
    empty[0, 0] = -9999
    nodata = {42113: (2, b"-9999\0", 6)}
    assert "GDAL's nodata, -9999" in refusal(tiff(empty[..., None], 32, 1, sample_format=3, tags=nodata))
    check(tiff(FLOATS[..., None], 32, 1, sample_format=3, tags=nodata), FLOATS[..., None])
    for bits, bands in ((8, 1), (16, 1), (8, 3)):  # pictures, too
        values = RNG.integers(0, 100, (HEIGHT, WIDTH, bands))
        values[2, 2, 0] = 200
        tags = {42113: (2, b"200\0", 4)}
        content = tiff(values, bits, {1: 1, 3: 2}[bands], tags=tags)
        if bands == 3:  # one channel alone says nothing
            load_image(content, "x")
            values[2, 2] = 200
            content = tiff(values, bits, 2, tags=tags)
        with pytest.raises(UnusableImageError, match=r"GDAL's nodata, 200.* -unsetnodata"):
            load_image(content, "x")
    with pytest.raises(UnusableImageError, match="a scale in GDAL's metadata"):
        load_image(tiff(values[..., :1], 16, 1, tags={42112: (2, SCALE, len(SCALE))}), "x")


def test_tiff_numbers_stand_upright() -> None:
    for orientation, seen in enumerate(
        (FLOATS, FLOATS[:, ::-1], FLOATS[::-1, ::-1], FLOATS[::-1],
         FLOATS.T, np.rot90(FLOATS, -1), np.rot90(FLOATS, 2).T, np.rot90(FLOATS)), start=1
    ):  # fmt: skip
        tags = {274: (3, struct.pack("<H", orientation) + b"\0\0", 1)}
        check(tiff(FLOATS[..., None], 32, 1, sample_format=3, tags=tags), seen[..., None])


def test_a_compressed_fits_image() -> None:
    part = pytest.importorskip("astropy.io.fits").CompImageHDU(FLOATS)
    file = io.BytesIO()
    part.writeto(file)
    assert "funpack" in refusal(file.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("a.fits", fits(FLOATS), "astropy"),
        ("a.dcm", dicom(BYTES, HEIGHT, WIDTH, 8), "pydicom"),
        ("a.tif", tiff(FLOATS[..., None], 32, 1, sample_format=3), "tifffile"),
    ],
)
def test_a_package_that_is_missing(
    name: str, content: bytes, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    for skip in ("stop", "skip"):  # images that a package could read are not skipped
        with pytest.raises(UserError, match=f"needs the package {package}. Run: pip install {package}"):
            read(tmp_path / "x", {name: content}, on_bad_file=skip)


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.6, 0.95])
def test_any_start_of_a_file(cut: float) -> None:
    compressed = encoded(Image.fromarray(FLOATS), "TIFF", compression="tiff_adobe_deflate")
    whole = numbers("i2", HEIGHT, WIDTH)
    for content in (fits(FLOATS), dicom(whole.tobytes(), HEIGHT, WIDTH, 16), compressed):
        start = content[: int(len(content) * cut)]
        try:
            measured = load_measured(start)
        except UnusableImageError:
            continue
        assert measured is None or measured.values.shape[:2] == (HEIGHT, WIDTH)  # FITS is filled up with zeros


def test_volumes_are_refused_with_a_line(tmp_path: Path) -> None:
    for name in ("brain.nii", "brain.nii.gz"):
        with pytest.raises(UserError, match=r"nibabel\.load"):
            read(tmp_path / name, {name: b"\0" * 344 + b"n+1\0"})
    with pytest.raises(UserError, match="gunzip"):
        read(tmp_path / "z", {"a.FITS.gz": b"\x1f\x8b"})
    with pytest.raises(UserError, match=r"If they are DICOM, call them \.dcm"):
        read(tmp_path / "w", {"IM0001": dicom(BYTES, HEIGHT, WIDTH, 8)})
