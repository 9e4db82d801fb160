"""A grid of images, one named row per group, as a picture for TensorBoard and for disk."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PIXELS = 48  # smaller images are enlarged to about this size
SMOOTH_BELOW_PIXELS = 24  # a person reads an 8×8 digit with smooth edges, and not as 64 squares
GAP = 2
MARGIN = 8


def image_grid(images: Tensor, row_names: Sequence[str] | None = None) -> Image.Image:
    """Draw uint8 images [rows, columns, C, H, W]; C is 1 or 3, other channel counts show their first channel.

    `row_names` stand to the left of the rows.
    """
    rows, columns, channels, height, width = images.shape
    if channels != 3:
        images = images[:, :, :1].expand(-1, -1, 3, -1, -1)
    scale = max(1, round(CELL_PIXELS / max(height, width)))
    cells = enlarge(images, scale)
    cell_height, cell_width = height * scale + GAP, width * scale + GAP
    font = ImageFont.load_default(size=min(16, max(9, cell_height // 3)))
    names = list(row_names or [])
    left = MARGIN + (max(int(font.getlength(name)) for name in names) + MARGIN if names else 0)
    picture = Image.new("RGB", (left + columns * cell_width + MARGIN, rows * cell_height + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for row in range(rows):
        top = MARGIN + row * cell_height
        if names:
            draw.text((MARGIN, top + cell_height / 2), names[row], fill="#444444", font=font, anchor="lm")
        for column in range(columns):
            cell = cells[row, column].permute(1, 2, 0).cpu().numpy()
            picture.paste(Image.fromarray(np.ascontiguousarray(cell)), (left + column * cell_width, top))
    return picture


def enlarge(images: Tensor, scale: int) -> Tensor:
    """uint8 images [..., H, W] times `scale`: tiny ones smoothly, others pixel by pixel."""
    if scale > 1 and max(images.shape[-2:]) < SMOOTH_BELOW_PIXELS:
        flat = images.reshape(-1, 1, *images.shape[-2:]).float()
        smooth = F.interpolate(flat, scale_factor=scale, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
        return smooth.reshape(*images.shape[:-2], *smooth.shape[-2:])
    return images.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)


def show_in_tensorboard(trainer: Trainer, tag: str, picture: Image.Image, step: int) -> None:
    """Add a picture to the run's TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, np.array(picture), step, dataformats="HWC")
