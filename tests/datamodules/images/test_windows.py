"""From numbers to pixels: a stated window, one of percentiles, and what needs none."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.images import decode
from datamodules.images.survey import survey
from storage.errors import UserError

from ..opening import opened
from .bad_files import encoded
from .handmade import dicom, fits, png, tiff
from .test_measured import HEIGHT, RNG, WIDTH, numbers, read

# From numbers to pixels -----------------------------------------------------------------------------------------------


def test_a_stated_window(tmp_path: Path) -> None:
    values = np.linspace(-50, 150, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)
    seen = np.rint(np.clip(values / 100, 0, 1) * 255)
    whole = np.rint(values).astype(np.int16)
    files = {
        "a.dcm": dicom(whole.tobytes(), HEIGHT, WIDTH, 16, signed=True),
        "b.dcm": dicom(whole.tobytes(), HEIGHT, WIDTH, 16, signed=True, photometric="MONOCHROME1"),
        "c.fits": fits(values[::-1]),
        "d.tif": tiff(values[..., None], 32, 0, sample_format=3),
        "e.tif": tiff(values[..., None], 32, 1, sample_format=3),
    }
    of_whole = np.rint(np.clip(whole / 100, 0, 1) * 255)
    expected = [of_whole, 255 - np.clip(whole / 100, 0, 1) * 255, seen, 255 - np.clip(values / 100, 0, 1) * 255, seen]
    for found, right in zip(read(tmp_path / "x", files, window=[0, 100]), expected, strict=True):
        assert np.abs(found[..., 0] - right).max() <= 0.5
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    zipped = opened("zip", tmp_path / "x.zip", window=[0, 100])
    assert np.abs(np.asarray(zipped.image(1))[..., 0] - expected[1]).max() <= 0.5


def test_a_window_of_percentiles(tmp_path: Path) -> None:
    images = RNG.normal([0, 500, 9], [1, 50, 0], (30, HEIGHT, WIDTH, 3)).astype(np.float32)
    files = {f"{row:02d}.tif": tiff(image, 32, 1, sample_format=3) for row, image in enumerate(images)}
    found = read(tmp_path / "x", files, cache_dir=tmp_path / "cache")
    low, high = np.percentile(images.reshape(-1, 3).astype(np.float64), [0.5, 99.5], axis=0)
    high[2] = low[2] + 1  # the same number throughout
    right = np.clip((images - low) / (high - low), 0, 1) * 255
    assert np.abs(np.stack(found) - right).max() <= 0.51
    source = opened("folder", tmp_path / "x", cache_dir=tmp_path / "cache")
    told, _ = survey(source, tmp_path / "cache")
    assert told.window.startswith(f"{low[0]:.4g} to {high[0]:.4g}, {low[1]:.4g} to {high[1]:.4g}, 9 to 10 become")
    assert told.modes == {"float32, 3 channels": 30}
    part = opened("folder", tmp_path / "x", max_images=3)
    assert np.array_equal(np.asarray(part.image(1)), found[10])
    stated = opened("folder", tmp_path / "x", window=[0, 1])
    assert (
        len({source.fingerprint, stated.fingerprint, opened("folder", tmp_path / "x", window=[0, 2]).fingerprint}) == 3
    )
    (tmp_path / "x/00.tif").write_bytes(tiff(images[0] * 9, 32, 1, sample_format=3))  # which moves the window of all
    moved = opened("folder", tmp_path / "x", cache_dir=tmp_path / "cache")
    assert not np.array_equal(np.asarray(moved.image(1)), found[1])


def test_what_8_bits_mean_is_known(tmp_path: Path) -> None:
    values = numbers("u1", HEIGHT, WIDTH)
    unscaled = [(0x28, 0x1052, "DS", b"0 "), (0x28, 0x1053, "DS", b"1 ")]
    pixels = values.tobytes()
    files = {
        "a.dcm": dicom(pixels, HEIGHT, WIDTH, 8, more=unscaled),
        "b.dcm": dicom(pixels, HEIGHT, WIDTH, 8, photometric="MONOCHROME1"),
        "c.fits": fits(values),
        "d.png": png(values, 8, 0),
    }
    for more in ({}, {"window": [0, 10]}):
        found = read(tmp_path / "x", files, **more)
        for image, right in zip(found, (values, 255 - values, values[::-1], values), strict=True):
            assert np.array_equal(np.atleast_3d(image)[..., 0], right)


def test_a_window_for_16_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (HEIGHT, WIDTH))
    white_is_zero = encoded(
        Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={262: 0}, compression="tiff_lzw"
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {"a.png": png(values, 16, 0), "b.tif": white_is_zero}
    files["c.png"] = encoded(Image.fromarray(values.astype(np.uint16)), "PNG", exif=turned)
    right = values * 255 / 4095
    straight, inverted, rotated = read(tmp_path / "x", files, window=[0, 4095])
    assert np.abs(straight[..., 0] - right).max() <= 0.5
    assert np.abs(inverted[..., 0] - (255 - right)).max() <= 0.5
    assert np.abs(rotated[..., 0] - np.rot90(right, -1)).max() <= 0.5
    assert int(decode(opened("folder", tmp_path / "x"), 0, None, 1).max()) < 17
    content, suffix = opened("folder", tmp_path / "x", window=[0, 4095]).encoded(0)
    assert suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), straight[..., 0])
    hole = png(values, 16, 0, (b"tRNS", struct.pack(">H", int(values[0, 0]))))
    with pytest.raises(UserError, match="transparent grey, for which there is no window"):
        read(tmp_path / "y", {"a.png": hole}, window=[0, 4095])


def test_arrays_are_cut_off_at_a_window(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[[-1.0, 0.5], [1.0, 7.0]]]))
    source = opened("array", tmp_path / "x.npy", window=[0, 1])
    assert np.asarray(source.image(0))[..., 0].tolist() == [[0, 128], [255, 255]]
    np.save(tmp_path / "y.npy", np.array([[[0.0, 0.5], [1.0, 1.0]]]))
    both = {opened("array", tmp_path / "y.npy", **{name: [0, 1]}).fingerprint for name in ("window", "value_range")}
    assert len(both) == 2
    for wrong in (
        {"window": [1, 0]},
        {"window": [0]},
        {"window": [0, float("inf")]},
        {"window": [0, 1], "value_range": [0, 1]},
    ):
        with pytest.raises(UserError, match=r"dataset\.window"):
            opened("array", tmp_path / "x.npy", **wrong)
    with pytest.raises(UserError, match="no use for it"):
        opened("digits", window=[0, 1])
    with pytest.raises(UserError, match=r"dataset\.value_range=\[0, 1\]: it is for arrays"):
        opened("folder", tmp_path, value_range=[0, 1])
