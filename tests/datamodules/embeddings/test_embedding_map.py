"""The flat map of the embeddings."""

from pathlib import Path

import pytest
import torch

from datamodules.embeddings import map as embedding_map
from datamodules.embeddings.map import make_embedding_map


def test_near_directions_are_near_on_the_map_and_it_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    group = torch.arange(300) % 3
    values = torch.empty(300, 1).uniform_(0.1, 9) * (torch.eye(70)[group] + 0.02 * torch.randn(300, 70))
    found = make_embedding_map(values, "abc", "toy", tmp_path, num_images=120)
    assert found is not None
    assert (len(found.rows), found.places.shape) == (120, (120, 2))
    distances = torch.cdist(found.places, found.places).fill_diagonal_(torch.inf)
    assert torch.equal(group[found.rows][distances.argmin(dim=1)], group[found.rows])

    monkeypatch.setattr(embedding_map, "_t_sne", lambda _: pytest.fail("made twice"))
    again = make_embedding_map(values, "abc", "toy", tmp_path, num_images=120)
    assert again is not None
    assert torch.equal(again.places, found.places)


def test_too_few_images_make_no_map(tmp_path: Path) -> None:
    assert make_embedding_map(torch.randn(5, 3), "abc", "toy", tmp_path, num_images=2000) is None
