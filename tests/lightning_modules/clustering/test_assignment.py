"""Assignments and the artifact that makes them for new images."""

from pathlib import Path

import pytest
import torch

from lightning_modules.clustering.assignment import ClusteringHead, assign
from lightning_modules.clustering.heads import ClusteringHeads
from storage.errors import UserError


@pytest.fixture
def heads() -> ClusteringHeads:
    torch.manual_seed(0)
    return ClusteringHeads(num_heads=2, embedding_dim=6, num_clusters=5, hidden_dim=16, bottleneck_dim=8)


def test_ids_are_the_argmax_and_confidence_its_probability(heads: ClusteringHeads) -> None:
    embeddings = torch.randn(23, 6)
    probs = (heads(embeddings)[1] / 0.1).softmax(-1)
    cluster_ids, confidence = assign(heads.head(1), embeddings.split(7))
    assert torch.equal(cluster_ids, probs.argmax(-1))
    torch.testing.assert_close(confidence, probs.amax(-1))


def test_several_heads_are_refused(heads: ClusteringHeads) -> None:
    with pytest.raises(ValueError, match=r"one head, not 2.*\.head\(index\)"):
        assign(heads, [torch.randn(3, 6)])


def test_saved_head_assigns_raw_embeddings_alike(heads: ClusteringHeads, tmp_path: Path) -> None:
    mean, std = torch.randn(6), torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.0])  # the last dimension is constant
    raw = mean + std * torch.randn(31, 6)
    identity = {"name": "pixels", "sha256": "00ff"}
    head = ClusteringHead(heads.head(0), mean, std, identity, temperature=0.2)
    head.save_pretrained(tmp_path / "head.safetensors", objective="temi")
    loaded = ClusteringHead.from_pretrained(tmp_path / "head.safetensors")

    expected_ids, expected_confidence = assign(heads.head(0), [(raw - mean) / std.clamp_min(1e-6)], temperature=0.2)
    cluster_ids, confidence = loaded.assign(raw)
    assert torch.equal(cluster_ids, expected_ids)
    assert torch.equal(confidence, expected_confidence)
    assert torch.equal(loaded.assign(raw + torch.tensor([0, 0, 0, 0, 0, 0.1]))[1], confidence)  # it tells nothing
    assert loaded.backbone_identity == identity
    assert loaded.num_clusters == 5


def test_a_missing_file_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clustering-head"):
        ClusteringHead.from_pretrained(tmp_path / "nothing.safetensors")
