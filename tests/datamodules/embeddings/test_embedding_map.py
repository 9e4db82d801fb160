"""The flat map of the embeddings."""

from pathlib import Path

import pytest
import torch

from datamodules.embeddings import map as embedding_map
from datamodules.embeddings.map import EmbeddingMap, MappedEmbeddings, sample_of


def test_near_directions_are_near_on_the_map_and_it_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    group = torch.arange(300) % 3
    values = torch.empty(300, 1).uniform_(0.1, 9) * (torch.eye(70)[group] + 0.02 * torch.randn(300, 70))
    embeddings = MappedEmbeddings(values, "abc", "toy", str(tmp_path), map_images=120)
    found = embeddings.map()
    assert found is not None
    assert (len(found.rows), found.places.shape) == (120, (120, 2))
    distances = torch.cdist(found.places, found.places).fill_diagonal_(torch.inf)
    assert torch.equal(group[found.rows][distances.argmin(dim=1)], group[found.rows])

    monkeypatch.setattr(embedding_map, "_t_sne", lambda _: pytest.fail("made twice"))
    again = embeddings.map()
    assert again is not None
    assert torch.equal(again.places, found.places)

    rows = sample_of(300, 250)
    assert {*found.rows.tolist()} <= {*rows.tolist()}
    places = embeddings.places(rows)
    assert places is not None
    torch.testing.assert_close(places[torch.isin(rows, found.rows)], found.places, atol=0.02, rtol=0)
    middles = torch.stack([found.places[group[found.rows] == one].mean(dim=0) for one in range(3)])
    assert torch.equal(torch.cdist(places, middles).argmin(dim=1), group[rows])  # the others lie with their like


def test_near_duplicates_lie_among_their_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a film whose directions differ in the sixth digit: each lies beside the one before and after it."""
    frames = torch.linspace(0, 1, 99, dtype=torch.float64)[:, None]
    values = 3 + 1e-5 * torch.cat([frames, -frames, frames.square()], dim=1)
    film = MappedEmbeddings(values, "abc", "film", str(tmp_path), map_images=0)
    placed = torch.arange(0, 99, 2)
    monkeypatch.setattr(MappedEmbeddings, "map", lambda _: EmbeddingMap(placed, placed[:, None].float().expand(-1, 2)))
    places = film.places(torch.arange(99))
    assert places is not None
    assert (places[:, 0] - torch.arange(99)).abs().max() < 1


def test_neighbours_are_the_most_similar_of_those_that_are_shown(tmp_path: Path) -> None:
    values = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    rows = sample_of(60, 40)
    found = MappedEmbeddings(values, "abc", "toy", str(tmp_path), map_images=0).neighbours(rows)
    unit = values[rows].double() / values[rows].double().norm(dim=1, keepdim=True)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    assert torch.equal(found, similar.argsort(dim=1, descending=True)[:, :8])
    assert MappedEmbeddings(values[:1], "abc", "toy", str(tmp_path), 0).neighbours(torch.arange(1)).shape == (1, 0)


def test_too_few_images_make_no_map(tmp_path: Path) -> None:
    few = MappedEmbeddings(torch.randn(5, 3), "abc", "toy", str(tmp_path), map_images=2000)
    assert (few.map(), few.places(torch.arange(5))) == (None, None)
