"""Which images a gallery shows, and where."""

import numpy as np
import torch
from torch import Tensor

from callbacks.gallery import HALF_ROW, gallery, sample_clusters

SIZE = 40  # one pixel per pixel


def flat(rows: Tensor) -> Tensor:
    """Image i is of grey value i."""
    return rows[:, None, None, None].expand(-1, 3, SIZE, SIZE).to(torch.uint8)


def shown(picture: np.ndarray, row: int) -> list[int]:
    """Grey values of the images in a row of the picture, white ones left out."""
    line = picture[picture.shape[0] - 8 - (row + 1) * (SIZE + 2) + 20, :, 0]
    starts = [x for x in range(1, len(line) - SIZE) if (line[x : x + SIZE] == line[x]).all() and line[x - 1] != line[x]]
    return [int(line[x]) for x in starts if line[x] != 255]


def test_most_confident_images_come_first_and_least_confident_ones_last() -> None:
    cluster_ids = torch.tensor([4] * 30 + [7] * 11)
    confidence = torch.linspace(0.1, 0.9, 41)
    picture = np.array(gallery(flat, torch.arange(41) + 100, cluster_ids, confidence))
    assert shown(picture, row=1) == [*range(129, 129 - HALF_ROW, -1), *range(100 + HALF_ROW - 1, 99, -1)]
    assert shown(picture, row=0) == [*range(140, 140 - HALF_ROW, -1), 132, 131, 130]  # eleven images, each once


def test_without_confidence_the_images_are_a_random_sample() -> None:
    cluster_ids = torch.zeros(100, dtype=torch.int64)
    picture = np.array(gallery(flat, torch.arange(100), cluster_ids, None))
    values = shown(picture, row=0)
    assert len(set(values)) == 2 * HALF_ROW
    assert values != sorted(values)
    assert np.array_equal(picture, np.array(gallery(flat, torch.arange(100), cluster_ids, None)))


def test_the_sample_of_clusters_goes_from_the_largest_to_the_smallest() -> None:
    picked = sample_clusters(torch.arange(96).repeat_interleave(torch.arange(96)))
    assert picked == [95 - round(94 * place / 19) for place in range(20)]
    assert sample_clusters(torch.tensor([3, 3, 9])) == [3, 9]
