"""Embeddings and neighbours: right values, made once, and the bad image named."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, Preparation
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from datamodules.embeddings.embeddings import embeddings_path, load_embeddings, make_embeddings
from datamodules.embeddings.neighbours import (
    find_approximate_neighbours,
    find_neighbours,
    make_neighbours,
    neighbours_path,
)
from storage.errors import MissingArtifactError, UserError

from ..opening import opened

PIXELS = BackboneSettings()


def mean_of_channels(images: Tensor) -> Tensor:
    return images.float().mean(dim=(2, 3))


class MeanColour(Backbone):
    """A backbone that takes images of any size: the mean of each channel."""

    def __init__(self) -> None:
        super().__init__("mean_colour", {"kind": "mean_colour"})

    @property
    def preparation(self) -> Preparation:
        return mean_of_channels

    def _features(self, inputs: Tensor) -> Tensor:
        return inputs


def test_embeddings_of_digits_are_their_pixels_standardised_by_the_data_set(tmp_path: Path):
    source = opened("digits")
    backbone = build_backbone(PIXELS, resolution=8, channels=1)
    embeddings = make_embeddings(source, backbone, tmp_path, batch_size=100)
    pixels = np.stack([np.asarray(source.image(index)).reshape(-1) for index in range(len(source))]) / 127.5 - 1
    np.testing.assert_allclose(embeddings.values, pixels, atol=1e-6)
    np.testing.assert_allclose(embeddings.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(embeddings.std, pixels.std(axis=0), atol=1e-6)
    assert torch.equal(embeddings.head_inputs(False), embeddings.values)
    standardised = embeddings.head_inputs(True)
    assert standardised.isfinite().all()  # some of the 64 pixels are never lit: their std is 0
    assert (standardised[:, embeddings.std < 1e-9] == 0).all()
    np.testing.assert_allclose(standardised[:, embeddings.std > 1e-6].std(dim=0, correction=0), 1, atol=1e-4)


def test_embeddings_and_neighbours_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, backbone = opened("digits", max_images=40), build_backbone(PIXELS, resolution=8, channels=1)
    with pytest.raises(MissingArtifactError, match="embeddings"):
        load_embeddings(source, backbone.identity, tmp_path)
    made = make_embeddings(source, backbone, tmp_path)
    neighbours = make_neighbours(made, 5, tmp_path)
    monkeypatch.setattr(type(backbone), "_features", None)  # would fail if it were asked again
    again = make_embeddings(source, backbone, tmp_path)
    loaded = load_embeddings(source, backbone.identity, tmp_path)
    assert torch.equal(made.values, again.values)
    assert torch.equal(made.values, loaded.values)
    assert torch.equal(make_neighbours(loaded, 5, tmp_path).indices, neighbours.indices)
    other = opened("digits", max_images=41)
    assert embeddings_path(tmp_path, other, backbone.identity) != embeddings_path(tmp_path, source, backbone.identity)
    assert neighbours_path(tmp_path, made, 5, "approximate") != neighbours_path(tmp_path, made, 5)
    with pytest.raises(UserError, match="40 neighbours of 40 images"):
        make_neighbours(made, 40, tmp_path)


def test_images_of_different_sizes_are_seen_whole_by_workers_too(tmp_path: Path):
    random = np.random.default_rng(0)
    means = []
    for number in range(7):
        pixels = random.integers(1, 256, (5 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        means.append(pixels.mean(axis=(0, 1)))
    source = opened("folder", tmp_path)
    for num_workers in (0, 2):
        cache_dir = tmp_path / f"cache{num_workers}"
        embeddings = make_embeddings(source, MeanColour(), cache_dir, batch_size=3, num_workers=num_workers)
        np.testing.assert_allclose(embeddings.values, means, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 7, None])
def test_neighbours_are_those_of_scikit_learn(block_size: int | None):
    values = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    indices, similarities, _ = find_neighbours(values, k=9, block_size=block_size)
    distances, expected = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(values).kneighbors()
    np.testing.assert_array_equal(indices, expected)  # kneighbors() without an argument leaves out the point itself
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-5)


def test_neighbours_of_embeddings_with_a_common_offset():
    """Cosines that differ in the seventh digit; those of zeros are 0."""
    torch.manual_seed(0)
    values = 100 + 0.05 * torch.randn(400, 30)
    values[7] = 0
    unit = torch.nn.functional.normalize(values.double())
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    found = find_neighbours(values, k=5)
    others = torch.arange(400) != 7
    assert torch.equal(found.indices[others], cosines.topk(5, dim=1).indices[others])
    torch.testing.assert_close(found.similarities.double(), cosines.topk(5, dim=1).values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-5])
def test_neighbours_of_near_duplicates_on_two_sides_of_the_mean(spread: float):
    """Cosines that differ in the fourth to the tenth digit, of two groups that no common centre brings near."""
    torch.manual_seed(0)
    values = torch.randn(1, 30) * (torch.arange(200) % 2 * 2 - 1)[:, None] * (1 + spread * torch.randn(200, 30))
    unit = torch.nn.functional.normalize(values.double())
    squared = torch.stack([(unit - one).square().sum(dim=1) for one in unit]).fill_diagonal_(torch.inf)
    found = find_neighbours(values, k=5, block_size=64)
    assert torch.equal(found.indices, squared.topk(5, dim=1, largest=False).indices)
    torch.testing.assert_close(found.similarities, torch.ones(200, 5), rtol=0, atol=10 * spread**2 + 1e-6)


def test_twins_are_neighbours_and_nobody_is_his_own():
    values = torch.eye(4).repeat(3, 1)  # each point three times: similarities of exactly 1 and 0
    indices, similarities, _ = find_neighbours(values, k=2)
    assert indices.tolist() == [sorted({row % 4, row % 4 + 4, row % 4 + 8} - {row}) for row in range(12)]
    assert (similarities == 1).all()
    indices, *_ = find_neighbours(torch.ones(6, 3), k=5)
    assert indices.tolist() == [[other for other in range(6) if other != row] for row in range(6)]


def test_approximate_neighbours_know_their_recall():
    pytest.importorskip("faiss")
    values = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    exact, everywhere = find_neighbours(values, k=9), find_approximate_neighbours(values, k=9, probes=10**6)
    assert torch.equal(everywhere.indices, exact.indices)
    assert everywhere.recall == 1
    torch.testing.assert_close(everywhere.similarities, exact.similarities)

    far = 100 + 0.05 * values  # inner products of float32 find 2 of a 100 here
    assert find_approximate_neighbours(far, k=9, probes=10**6).recall > 0.999

    near = find_approximate_neighbours(values, k=9, probes=8)
    shared = [len(set(a) & set(b)) for a, b in zip(near.indices.tolist(), exact.indices.tolist(), strict=True)]
    assert 0.3 < sum(shared) / (9 * 3000) < 0.99
    assert abs(near.recall - sum(shared) / (9 * 3000)) < 0.03  # the sample is a third of the rows
    assert (near.indices != torch.arange(3000)[:, None]).all()


def test_rows_that_their_cells_leave_short_are_searched_exactly():
    pytest.importorskip("faiss")
    values = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    short = find_approximate_neighbours(values, k=200, probes=1)  # a cell holds about 40
    assert torch.equal(short.indices, find_neighbours(values, k=200).indices)
    twins = find_approximate_neighbours(torch.ones(300, 3), k=5)
    assert (twins.indices != torch.arange(300)[:, None]).all()


def test_without_faiss_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"neighbour_search=exact.*pip install faiss-cpu"):
        find_approximate_neighbours(torch.randn(20, 4), k=3)


def test_real_neighbours_share_their_class(real_data: Path):
    from safetensors.torch import load_file

    values = load_file(real_data / "cifar10-resnet56-embeddings.safetensors")["embeddings"][:5000].float()
    labels: Any = load_file(real_data / "cifar10-published-assignments.safetensors")["labels.cifar10"][:5000]
    indices, *_ = find_neighbours(values, k=10)
    assert (labels[indices] == labels[:, None]).float().mean() > 0.8


def test_a_divided_data_set_is_embedded_once_and_its_parts_go_by_their_own_names(tmp_path: Path) -> None:
    whole, source = opened("digits"), opened("digits", holdout=0.2)
    backbone = build_backbone(PIXELS, 8, 1, str(tmp_path))
    of_all = make_embeddings(whole, backbone, tmp_path)
    assert source.held_out is not None
    for part in (source, source.held_out):
        found = load_embeddings(part, backbone.identity, tmp_path)
        assert torch.equal(found.values, of_all.values[part.positions])
        torch.testing.assert_close(found.mean, found.values.double().mean(dim=0).float())
        torch.testing.assert_close(found.std, found.values.double().std(dim=0, correction=0).float())
        assert found.meta["source"]["fingerprint"] == part.fingerprint
        assert found.fingerprint != of_all.fingerprint
        assert neighbours_path(tmp_path, found, 5) != neighbours_path(tmp_path, of_all, 5)
