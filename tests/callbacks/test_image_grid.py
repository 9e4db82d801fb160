"""The picture that people look at."""

import numpy as np
import torch

from callbacks.image_grid import GAP, MARGIN, image_grid


def test_images_stand_where_they_belong_and_keep_their_pixels() -> None:
    images = torch.zeros(2, 3, 1, 8, 8, dtype=torch.uint8)
    images[1, 2] = 200
    picture = np.array(image_grid(images))
    scale = 6
    cell = 8 * scale + GAP
    assert picture.shape == (2 * cell + 2 * MARGIN, 3 * cell + 2 * MARGIN, 3)
    top, left = MARGIN + cell, MARGIN + 2 * cell
    assert (picture[top : top + 48, left : left + 48] == 200).all()
    assert (picture[MARGIN : MARGIN + 48, MARGIN : MARGIN + 48] == 0).all()


def test_row_names_make_room_to_the_left() -> None:
    images = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    plain, named = image_grid(images), image_grid(images, ["cluster 7"])
    assert named.width > plain.width
    assert named.height == plain.height
