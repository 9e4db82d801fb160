"""Nearest neighbours: faiss's exact index against ours in blocks, and the approximate search's recall."""

import resource

import torch
import torch.nn.functional as F
from timing import seconds, show
from torch import Tensor

from datamodules.neighbours import find_approximate_neighbours, find_neighbours, import_faiss


def bench_neighbours(num_images: int = 50_000, dim: int = 768, k: int = 50) -> None:
    """Exact cosine neighbours, on the same number of threads; once each, ours first, so that its memory shows."""
    values = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(0))
    find_neighbours(values[:2000], k)  # warm
    before = peak_memory()
    ours = seconds(lambda: find_neighbours(values, k), repeats=1, warm_up=False)
    added = peak_memory() - before
    usual = seconds(lambda: faiss_flat(values, k), repeats=1, warm_up=False)
    show(f"neighbours, {num_images:,} × {dim}, k = {k}: faiss flat | ours", usual, ours)
    print(f"  memory added {added / 2**20:.0f} MB: N·k, one block and the normalised copy")
    print(f"  1.3 million images, if time grows with N²: {ours * (1.3e6 / num_images) ** 2 / 3600:.1f} h on this CPU")

    cluster_like = values + 3 * torch.randn(500, dim)[torch.arange(num_images) % 500]
    approximate = find_approximate_neighbours(cluster_like, k)
    usual = seconds(lambda: find_approximate_neighbours(cluster_like, k), repeats=1, warm_up=False)
    print(f"{'neighbours, approximate, on a mixture of 500 Gaussians':<58} {'':9} {usual:9.3f} s", end="")
    print(f"    recall {approximate.recall:.3f}")


def faiss_flat(values: Tensor, k: int) -> None:
    """The k + 1 nearest of faiss's exhaustive inner-product index: the image itself is among them."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(values.shape[1])
    directions = F.normalize(values).numpy()
    index.add(directions)
    index.search(directions, k + 1)


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
