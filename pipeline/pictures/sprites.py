"""Thumbnails of many images in a few pictures, so that one page can hold tens of thousands."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import each_row
from pipeline.pictures.html import data_url

COLUMNS = 32  # thumbnails in a row of a sheet
SHEET = COLUMNS**2  # and on a whole sheet
BLOCK = 16  # pixels that JPEG codes together: thumbnails of whole blocks do not run into one another
LOSSY = ((64, 75), (48, 75), (32, 75), (32, 50), (16, 75), (16, 30))  # side in pixels and quality, the best first
MOST_LOSSLESS = 8_000_000  # characters


def make_sprites(image: Callable[[int], Tensor], count: int, most: int) -> dict[str, Any]:
    """The best thumbnails of images 0…count−1 whose sheets have at most so many characters, judged by a first few.

    Args:
        image: number → uint8 [C, R, R]; of other than one or three channels the first is shown.

    Returns:
        `sheets`, addresses that are the pictures themselves, `size` of a thumbnail in pixels, and `columns`: thumbnail
        i is the one at i modulo `SHEET` on sheet i // `SHEET`, `columns` in a row.
    """
    few = [image(row) for row in (torch.arange(min(count, SHEET)) * count // min(count, SHEET)).tolist()]
    for size, quality, limit in looks(few[0].shape[-1], most):
        expected = len(sheet(few, size, quality)) * count / len(few)
        if expected <= limit or (size, quality) == LOSSY[-1]:
            images, sheets = each_row(image, count, "thumbnails"), list[str]()
            while some := list(islice(images, SHEET)):
                sheets.append(sheet(some, size, quality))
            if sum(map(len, sheets)) <= limit:
                break
    return {"sheets": sheets, "size": size, "columns": COLUMNS}


def looks(resolution: int, most: int) -> list[tuple[int, int | None, int]]:
    """Side, quality (None: lossless) and most characters of what may be tried, the best first."""
    whole_blocks = -(-resolution // BLOCK) * BLOCK
    lossy = [(size, quality, most) for size, quality in LOSSY if size <= whole_blocks]
    return [(resolution, None, min(most, MOST_LOSSLESS)), *lossy]


def sheet(images: Sequence[Tensor], size: int, quality: int | None) -> str:
    """Images [C, R, R] side by side on one picture, as an address: JPEG, or PNG without `quality`."""
    pixels = torch.stack(list(images))
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1]
    if size != pixels.shape[-1]:
        resized = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    pixels = torch.cat([pixels, pixels.new_zeros(-len(pixels) % COLUMNS, *pixels.shape[1:])])
    grid = pixels.unflatten(0, (-1, COLUMNS)).permute(0, 3, 1, 4, 2)  # [rows, size, COLUMNS, size, C]
    values = grid.reshape(-1, COLUMNS * size, grid.shape[-1]).squeeze(-1).numpy()
    lossy: dict[str, Any] = {} if quality is None else {"format": "jpeg", "quality": quality}
    return data_url(Image.fromarray(values), **lossy)
