"""Pixels: any image to uint8 tensors of one size.

The way to a training image is EDM's: centre crop to a square, then Pillow's antialiased LANCZOS filter. Instead of the
crop there is a square with bars beside the image, or the image stretched to one (`dataset.fit`).
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from datamodules.images.decoding import upright
from datamodules.images.sources import ImageSource
from datamodules.images.tiff import PHOTOMETRIC, WHITE_IS_ZERO
from storage.errors import UserError

MODES = {1: "L", 3: "RGB"}


def to_uint8(image: Image.Image | np.ndarray, resolution: int | None, channels: int, fit: str = "crop") -> Tensor:
    """The image as uint8 [C, R, R]: a square as `fit` says (see `SQUARES`), resized (LANCZOS) where the size differs.

    A `resolution` of None leaves it whole and at its own size, [C, H, W], for backbones that do their own resizing.
    """
    if isinstance(image, np.ndarray) and image.shape == (resolution, resolution, channels):
        return torch.from_numpy(image.transpose(2, 0, 1).copy())  # [C, R, R]
    pictures = eight_bit_pictures(image, channels)
    if resolution is not None:
        pictures = [SQUARES[fit](picture, resolution) for picture in pictures]
    values = np.concatenate([np.atleast_3d(np.array(picture)) for picture in pictures], axis=2)  # [H, W, C]
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def eight_bit_pictures(image: Image.Image | np.ndarray, channels: int) -> list[Image.Image]:
    """The image as one grey or RGB picture; an array of other channels as one grey picture per channel.

    Raises:
        UserError: the image has not as many channels; grey and RGB are converted into one another.
    """
    if isinstance(image, np.ndarray):
        found = image.shape[2]
        if found != channels and not {found, channels} <= MODES.keys():
            advice = " and backbone=pixels (other backbones see RGB)" if channels == 3 else ""
            first = "; or, if the array's axes are [N, C, H, W], save array.transpose(0, 2, 3, 1)" if found > 4 else ""
            raise UserError(
                f"an image [H, W, C] of {list(image.shape)}: {found} channels, where {channels} are expected. "
                f"Set dataset.channels={found}{advice}{first}."
            )
        if channels not in MODES:
            return [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(channels)]
        return [Image.fromarray(image[..., 0] if found == 1 else image).convert(MODES[channels])]
    if channels not in MODES:
        raise UserError(
            f"a picture has 1 (grey) or 3 (RGB) channels, and dataset.channels={channels}. "
            "For more channels, save a TIFF of so many bands, or an array, and set dataset=npy."
        )
    return [eight_bit(upright(image), MODES[channels])]


def eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """The picture as grey or RGB: 16 bits scaled to 8, transparency laid over white."""
    if image.mode.startswith("I"):
        image = from_16_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def from_16_bit(image: Image.Image) -> Image.Image:
    """Grey values 0…65535 to 0…255. Pillow's own conversion saturates instead of scaling."""
    values = np.array(image, dtype=np.int64)  # [H, W]
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 65535 - values  # Pillow inverts up to 8 bits, and not these
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the grey value that a PNG declares transparent
        values[values == transparent] = 65535
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def cropped(picture: Image.Image, resolution: int) -> Image.Image:
    """The central square of a picture, resized."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)  # a copy where that is its size


def padded(picture: Image.Image, resolution: int) -> Image.Image:
    """The whole picture, resized, between two bars of the median colour of its border."""
    values = np.atleast_3d(np.asarray(picture))  # [H, W, C]
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])  # [2·(H+W), C]
    colour = tuple(np.median(border, axis=0).astype(int).tolist())
    square = Image.new(picture.mode, (resolution, resolution), colour)
    width, height = (max(1, round(side * resolution / max(picture.size))) for side in picture.size)
    left, top = (resolution - width) // 2, (resolution - height) // 2
    square.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return square


def stretched(picture: Image.Image, resolution: int) -> Image.Image:
    """The whole picture, resized to a square whatever its proportions."""
    return picture.resize((resolution, resolution), Image.Resampling.LANCZOS)


SQUARES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "crop": cropped,
    "pad": padded,
    "stretch": stretched,
}


def decode(source: ImageSource, index: int, resolution: int | None, channels: int) -> Tensor:
    """Image `index` of a source as uint8 [C, R, R], or at its own size [C, H, W] where `resolution` is None.

    Raises `UserError` naming the image where it cannot be decoded.
    """
    image = source.image(index)
    try:
        return to_uint8(image, resolution, channels, source.fit)
    except (UserError, ValueError, OSError) as error:
        raise UserError(f"{source.name}: {source.ids[index]!r}: {error}") from error
