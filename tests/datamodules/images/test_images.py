"""What Pillow gets silently wrong comes out right: orientation, 16 bits, transparency, palettes; sizes; storage."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.images import ImageStore, full_size_uint8, to_uint8
from storage.errors import UserError

from ..opening import opened


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> Image.Image:
    """The image after a round trip through a file, as users' images come."""
    file = BytesIO()
    image.save(file, image_format, **options)
    return Image.open(BytesIO(file.getvalue()))


def random_rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = random_rgb(8, 8)
    for image in (pixels, Image.fromarray(pixels), encoded(Image.fromarray(pixels))):
        assert torch.equal(to_uint8(image, 8, 3), torch.from_numpy(pixels.transpose(2, 0, 1)))
    grey = pixels[..., :1]
    assert torch.equal(to_uint8(grey, 8, 1)[0], torch.from_numpy(grey[..., 0]))
    assert torch.equal(to_uint8(grey, 8, 3), torch.from_numpy(grey[..., 0]).expand(3, 8, 8))


def test_the_centre_is_cropped_before_resizing():
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200
    assert (to_uint8(pixels, 4, 3) == 200).all()
    assert (to_uint8(Image.fromarray(pixels.transpose(1, 0, 2)), 2, 3) == 200).all()
    assert full_size_uint8(pixels).shape == (3, 4, 12)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([[0], [255]], dtype=np.uint8), (32, 64))[..., None]  # one pixel high: all grey, far away
    middle = to_uint8(stripes, 8, 1)[0, 1:-1].float()
    assert (middle - 127.5).abs().max() < 8


def test_exif_orientation_is_applied():
    pixels = random_rgb(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn a quarter clockwise to see it upright
    image = encoded(Image.fromarray(pixels), exif=exif)
    expected = np.rot90(pixels, k=-1)
    assert torch.equal(to_uint8(image, 8, 3), torch.from_numpy(expected.transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut_off(image_format: str):
    values = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    image = encoded(Image.fromarray(values), image_format)
    assert to_uint8(image, 2, 1)[0].tolist() == [[0, 1], [128, 255]]


def test_images_without_an_agreed_range_are_refused():
    for values in (np.ones((2, 2), dtype=np.float32), np.full((2, 2), 1 << 20, dtype=np.int32)):
        with pytest.raises(UserError, match="save 8 or 16 bits"):
            to_uint8(Image.fromarray(values), 2, 1)
    with pytest.raises(UserError, match="3 channels, where 4 are expected"):
        to_uint8(random_rgb(2, 2), 2, 4)


def test_transparent_pixels_are_white_whatever_colour_hides_there():
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (255, 0, 0, 0)
    rgba[0, 1] = (255, 0, 0, 255)
    rgba[1, 0] = (0, 0, 0, 128)
    image = to_uint8(encoded(Image.fromarray(rgba)), 2, 3)
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 1].tolist() == [255, 0, 0]
    assert image[:, 1, 0].tolist() == [127, 127, 127]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 10, 200, 30])
    assert to_uint8(encoded(palette), 2, 3)[:, 0, 0].tolist() == [10, 200, 30]
    assert to_uint8(encoded(palette, transparency=1), 2, 3)[:, 0, 0].tolist() == [255, 255, 255]
    assert to_uint8(encoded(palette, "GIF"), 2, 3)[:, 0, 0].tolist() == [10, 200, 30]


def test_memory_and_streaming_give_the_same_images(tmp_path: Path):
    for number in range(7):
        Image.fromarray(random_rgb(9 + number, 12, seed=number)).save(tmp_path / f"{number}.png")
    source = opened("folder", tmp_path)
    resident, streamed = ImageStore(source, 8, 3), ImageStore(source, 8, 3, memory_gb=1e-9)
    assert resident.in_memory
    assert not streamed.in_memory
    assert "in memory" in resident.description
    assert "streamed" in streamed.description
    indices = torch.tensor([6, 0, 0, 3])
    assert torch.equal(resident.gather(indices), streamed.gather(indices))
    assert resident.gather(indices).shape == (4, 3, 8, 8)


def test_an_image_that_cannot_be_used_is_named(tmp_path: Path):
    Image.fromarray(random_rgb(8, 8)).save(tmp_path / "0.png")
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "1.tiff")
    with pytest.raises(UserError, match=r"'1\.tiff' cannot be used: floating-point values"):
        ImageStore(opened("folder", tmp_path), 8, 3)
