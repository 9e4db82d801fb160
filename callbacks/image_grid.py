"""A grid of images, one named row per group, as a picture for TensorBoard and for disk."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PIXELS = 48  # smaller images are enlarged to about this size
SMOOTH_BELOW_PIXELS = 24  # a person reads an 8×8 digit with smooth edges, and not as 64 squares
GAP = 2
MARGIN = 8
TEXT_PIXELS = 16
LINE = 26  # height of a line of text above the images
NAME_LETTERS, NAME_LINES = 28, 2  # of each line of a row's name, which people may have chosen longer
INK = "#444444"


def label_font(pixels: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: Pillow's own has neither β nor other alphabets for class names."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", pixels)


def image_grid(
    images: Tensor,
    row_names: Sequence[str] | None = None,
    title: str = "",
    column_groups: Mapping[str, int] | None = None,
) -> Image.Image:
    """Draw uint8 images [rows, columns, C, H, W]; C is 1 or 3, other channel counts show their first channel.

    `row_names` stand to the left of the rows, and `title` above all. `column_groups` (name → number of columns) stand
    above their columns, with a gap between two groups.
    """
    rows, columns, channels, height, width = images.shape
    if channels != 3:
        images = images[:, :, :1].expand(-1, -1, 3, -1, -1)
    scale = max(1, round(CELL_PIXELS / max(height, width)))
    cells = enlarge(images, scale)
    cell_height, cell_width = height * scale + GAP, width * scale + GAP
    names, groups = list(map(in_short_lines, row_names or [])), column_groups or {"": columns}
    lines = max((name.count("\n") + 1 for name in names), default=1)
    font = label_font(min(TEXT_PIXELS, max(9, int(cell_height / (1.4 * lines)))))
    name_width = max((font.getlength(line) for name in names for line in name.split("\n")), default=0)
    left = MARGIN + (int(name_width) + MARGIN if names else 0)
    gaps = [2 * MARGIN * group for group, count in enumerate(groups.values()) for _ in range(count)]
    lefts = [left + gap + column * cell_width for column, gap in enumerate(gaps)]  # of each column
    top = MARGIN + LINE * (bool(title) + any(groups))
    heading = label_font(TEXT_PIXELS)
    picture_width = max(lefts[-1] + cell_width, MARGIN + int(heading.getlength(title)) + 1) + MARGIN
    picture = Image.new("RGB", (picture_width, top + rows * cell_height + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, fill="black", font=heading)
    first = 0
    for name, count in groups.items():
        draw.text((lefts[first], top - LINE), name, fill=INK, font=heading)
        first += count
    for row in range(rows):
        row_top = top + row * cell_height
        if names:
            draw.text((MARGIN, row_top + cell_height / 2), names[row], fill=INK, font=font, anchor="lm")
        for column in range(columns):
            cell = cells[row, column].permute(1, 2, 0).cpu().numpy()
            picture.paste(Image.fromarray(np.ascontiguousarray(cell)), (lefts[column], row_top))
    return picture


def row_name(cluster: int, names: Mapping[int, str]) -> str:
    """What stands beside a row of a cluster's images: its number, and below what people call it."""
    return f"cluster {cluster}" + (f"\n{names[cluster]}" if cluster in names else "")


def in_short_lines(name: str) -> str:
    """A row's name with its lines broken where they are long, and cut where they are longer still."""
    lines = (textwrap.wrap(line, NAME_LETTERS, max_lines=NAME_LINES, placeholder=" …") for line in name.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def enlarge(images: Tensor, scale: int) -> Tensor:
    """uint8 images [..., H, W] times `scale`: tiny ones smoothly, others pixel by pixel."""
    if scale > 1 and max(images.shape[-2:]) < SMOOTH_BELOW_PIXELS:
        flat = images.reshape(-1, 1, *images.shape[-2:]).float()
        smooth = F.interpolate(flat, scale_factor=scale, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
        return smooth.reshape(*images.shape[:-2], *smooth.shape[-2:])
    return images.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
