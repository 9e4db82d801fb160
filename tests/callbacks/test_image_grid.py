"""The picture that people look at."""

import numpy as np
import torch

from callbacks.image_grid import GAP, MARGIN, image_grid, in_short_lines, row_name


def test_images_stand_where_they_belong_and_keep_their_pixels() -> None:
    images = torch.zeros(2, 3, 1, 32, 32, dtype=torch.uint8)
    images[1, 2] = torch.randint(0, 256, (1, 32, 32))
    picture = np.array(image_grid(images))
    cell = 2 * 32 + GAP
    assert picture.shape == (2 * cell + 2 * MARGIN, 3 * cell + 2 * MARGIN, 3)
    top, left = MARGIN + cell, MARGIN + 2 * cell
    assert (picture[top : top + 64 : 2, left + 1 : left + 64 : 2] == images[1, 2, 0].numpy()[..., None]).all()
    assert (picture[MARGIN : MARGIN + 64, MARGIN : MARGIN + 64] == 0).all()


def test_tiny_images_are_enlarged_smoothly() -> None:
    step = torch.zeros(1, 1, 1, 8, 8, dtype=torch.uint8)
    step[..., 4:] = 255
    row = np.array(image_grid(step))[MARGIN + 20, MARGIN : MARGIN + 48, 0]
    assert (row[:20] <= 20).all()
    assert (row[28:] >= 235).all()
    assert len(np.unique(row)) > 4


def test_row_names_make_room_to_the_left() -> None:
    images = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    plain, named = image_grid(images), image_grid(images, ["cluster 7"])
    assert named.width > plain.width
    assert named.height == plain.height


def test_a_long_name_takes_two_lines_and_says_that_there_is_more() -> None:
    assert row_name(7, {7: "cats", 8: "dogs"}) == "cluster 7\ncats"
    assert row_name(9, {7: "cats"}) == "cluster 9"
    short = in_short_lines(row_name(7, {7: "black and white animals, be they dogs or cats, or none of them"}))
    assert short.splitlines() == ["cluster 7", "black and white animals, be", "they dogs or cats, or none …"]
    assert max(map(len, in_short_lines("w" * 500).splitlines())) <= 28
