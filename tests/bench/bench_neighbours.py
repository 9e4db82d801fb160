"""Nearest neighbours: the usual brute force against ours in blocks."""

import torch
from sklearn.neighbors import NearestNeighbors
from timing import seconds, show

from datamodules.neighbours import find_neighbours


def bench_neighbours(num_images: int = 20_000, dim: int = 768, k: int = 50) -> None:
    """Exact cosine neighbours: scikit-learn's brute force against ours in blocks."""
    values = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(0))
    brute = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute", n_jobs=-1).fit(values.numpy())
    usual = seconds(lambda: brute.kneighbors(values.numpy()), repeats=1)
    ours = seconds(lambda: find_neighbours(values, k), repeats=1)
    show(f"neighbours, {num_images:,} × {dim}, k = {k}: scikit-learn | ours", usual, ours)
