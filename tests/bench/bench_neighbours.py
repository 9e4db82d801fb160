"""Nearest neighbours: faiss's exact index against ours in blocks, and the approximate search's recall."""

import resource

import torch
import torch.nn.functional as F
from timing import seconds, show
from torch import Tensor

from datamodules.embeddings.neighbours import find_approximate_neighbours, find_neighbours


def bench_neighbours(num_images: int = 50_000, dim: int = 768, k: int = 50) -> None:
    """Exact cosine neighbours, on the same number of threads; ours first, so that its memory shows."""
    values = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(0))
    find_neighbours(values[:2000], k)  # warm
    before = peak_memory()
    ours = seconds(lambda: find_neighbours(values, k), repeats=1, warm_up=False)
    added = peak_memory() - before
    usual = seconds(lambda: faiss_flat(values, k), repeats=1, warm_up=False)
    show(f"neighbours, {num_images:,} × {dim}, k = {k}: faiss flat | ours", usual, ours)
    print(f"  memory added {added / 2**20:.0f} MB: N·k, one block and the normalised copy")
    smaller = {count: search_seconds(values[:count], k, "cpu") for count in (num_images // 4, num_images // 2)}
    show_growth(smaller | {num_images: ours}, "this CPU")
    if torch.cuda.is_available():
        bench_on_gpu(values, k)

    cluster_like = values + 3 * torch.randn(500, dim)[torch.arange(num_images) % 500]
    approximate = find_approximate_neighbours(cluster_like, k)
    usual = seconds(lambda: find_approximate_neighbours(cluster_like, k), repeats=1, warm_up=False)
    print(f"{'neighbours, approximate, on a mixture of 500 Gaussians':<58} {'':9} {usual:9.3f} s", end="")
    print(f"    recall {approximate.recall:.3f}")


def bench_on_gpu(values: Tensor, k: int) -> None:
    """The exact search on a GPU, the way there and back included, on up to eight times as many images."""
    timings = {}
    for times in (2, 4, 8):
        more = values.repeat(times, 1)
        search_seconds(more, k, "cuda")  # warm
        torch.cuda.reset_peak_memory_stats()
        timings[len(more)] = search_seconds(more, k, "cuda")
        what = f"neighbours, {len(more):,} × {values.shape[1]}, k = {k}, on the GPU"
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"{what:<58} {'':9} {timings[len(more)]:9.3f} s    {memory:.1f} GB", flush=True)
    show_growth(timings, torch.cuda.get_device_name())


def search_seconds(values: Tensor, k: int, device: str) -> float:
    """An exact search, once; its result lies on the CPU at the end, so the device has done it."""
    return seconds(lambda: find_neighbours(values, k, device=device), repeats=1, warm_up=False)


def show_growth(timings: dict[int, float], where: str, most: int = 1_300_000) -> None:
    """How long `most` images would take if time = a N + b N², fitted to the timings by the number of images."""
    counts = torch.tensor(list(timings), dtype=torch.float64)
    taken = torch.tensor(list(timings.values()), dtype=torch.float64)
    terms = torch.stack([counts, counts**2], dim=1)  # [S, 2]
    fit = torch.linalg.lstsq(terms / taken[:, None], torch.ones(len(taken), 1).double()).solution[:, 0]
    a, b = fit.tolist()
    hours = (a * most + b * most**2) / 3600
    error = float((terms @ fit / taken - 1).abs().max())
    largest = max(timings)
    said = ", ".join(f"{count:,} in {duration:.1f} s" for count, duration in sorted(timings.items()))
    print(f"  {said}: {most:,} would take {hours:.1f} h on {where} (a N + b N² fits within {error:.0%}; ", end="")
    print(f"{timings[largest] * (most / largest) ** 2 / 3600:.1f} h by N² from the largest)")


def faiss_flat(values: Tensor, k: int) -> None:
    """The k + 1 nearest of faiss's exhaustive inner-product index: the image itself is among them."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(values.shape[1])
    directions = F.normalize(values).numpy()
    index.add(directions)
    index.search(directions, k + 1)


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
