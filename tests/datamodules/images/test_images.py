"""What Pillow gets silently wrong comes out right: orientation, 16 bits, transparency, palettes; sizes; storage."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.images import to_uint8
from storage.errors import UserError


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
    assert to_uint8(pixels, None, 3).shape == (3, 4, 12)


@pytest.mark.parametrize("turned", [False, True])
def test_the_whole_image_between_bars_or_stretched(turned: bool):
    """A wide image of a white border and a grey middle, by hand: 12×4 pixels on a square of 12 or 6."""
    pixels = np.full((4, 12, 3), 250, np.uint8)
    pixels[1:3, 2:10] = (100, 90, 80)
    image = Image.fromarray(pixels.transpose(1, 0, 2) if turned else pixels)
    square = to_uint8(image, 12, 3, "pad").permute((2, 1, 0) if turned else (1, 2, 0))  # [short, long, C]
    assert (square[4:8].numpy() == pixels).all()
    assert (square[:4] == 250).all()
    assert (square[8:] == 250).all()
    assert to_uint8(image.resize((50, 1)), 6, 3, "pad").shape == (3, 6, 6)  # of less than one row, one is left
    row = random_rgb(1, 12)
    assert (to_uint8(row.repeat(4, axis=0), 12, 3, "stretch").permute(1, 2, 0).numpy() == row).all()
    bands = np.concatenate([pixels, pixels[..., :2]], axis=2)  # [4, 12, 5]
    assert torch.equal(to_uint8(bands, 12, 5, "pad")[:3], to_uint8(pixels, 12, 3, "pad"))


def test_channels_that_an_image_has_not_are_refused():
    with pytest.raises(UserError, match="3 channels, where 4 are expected"):
        to_uint8(random_rgb(2, 2), 2, 4)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([[0], [255]], dtype=np.uint8), (32, 64))[..., None]  # one pixel high: all grey, far away
    middle = to_uint8(stripes, 8, 1)[0, 1:-1].float()
    assert (middle - 127.5).abs().max() < 8
