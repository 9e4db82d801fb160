"""The same seed on the same machine: the same pseudo-labels, bit for bit."""

from pathlib import Path

import pytest
import torch

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels

from .conftest import TINY_TEMI, Cedm


@pytest.mark.parametrize("method", ["temi", "kmeans", "random"])
def test_clustering_twice_gives_the_same_labels(cedm: Cedm, workplace: Path, method: str) -> None:
    settings = [*TINY_TEMI] if method == "temi" else [f"clustering={method}", "clustering.num_clusters=5"]
    made = {name: clustered(cedm, name, *settings) for name in ("first", "second")}
    assert torch.equal(made["first"].cluster_ids, made["second"].cluster_ids)
    assert torch.equal(made["first"].confidence, made["second"].confidence)
    other = clustered(cedm, "other", *settings, "seed=1")
    assert not torch.equal(made["first"].cluster_ids, other.cluster_ids)


def clustered(cedm: Cedm, name: str, *settings: str) -> PseudoLabels:
    """Pseudo-labels of the digits, made from nothing: with a cache and a run folder of their own."""
    for command in ("embed", "cluster"):
        result = cedm(command, *settings, f"cache_dir={name}-cache", f"run_dir={name}-{command}")
        assert result.code == 0, result.err
    return PseudoLabels.load(Path(f"{name}-cluster/pseudo_labels.safetensors"))
