"""`make bench`: how fast the parts are, against the usual way of writing them. Ratios are taken in one run."""

# isort: skip_file
import platform
import time
from collections.abc import Callable

import pipeline  # noqa: F401  # before PyTorch: how OpenMP threads wait
import torch
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import DataLoader, TensorDataset

from datamodules.neighbours import find_neighbours
from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.clustering.temi_loss import TEMILoss
from lightning_modules.diffusion.denoiser import build_denoiser
from lightning_modules.diffusion.ema import EMA
from lightning_modules.diffusion.loss import EDMLoss

CIFAR_NETWORK = {
    "architecture": "ddpmpp",
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.13,
}


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some timings, after one run to warm up."""
    work()
    timings = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        timings.append(time.perf_counter() - start)
    return min(timings)


def show(what: str, usual: float, ours: float, unit: str = "s") -> None:
    """One row of the table."""
    print(f"{what:<58} {usual:9.3f} {ours:9.3f} {unit:<4} {usual / ours:6.2f} ×", flush=True)


def bench_neighbours(num_images: int = 20_000, dim: int = 768, k: int = 50) -> None:
    """Exact cosine neighbours: scikit-learn's brute force against ours in blocks."""
    values = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(0))
    brute = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute", n_jobs=-1).fit(values.numpy())
    usual = seconds(lambda: brute.kneighbors(values.numpy()), repeats=1)
    ours = seconds(lambda: find_neighbours(values, k), repeats=1)
    show(f"neighbours, {num_images:,} × {dim}, k = {k}: scikit-learn | ours", usual, ours)


def bench_temi(heads: int = 16, dim: int = 64, clusters: int = 100, pairs: int = 1024) -> None:
    """A TEMI step: head by head from a per-sample loader, against all heads at once with batches gathered."""
    embeddings = torch.randn(20_000, dim)
    loader = iter(DataLoader(TensorDataset(embeddings, embeddings.roll(1, 0)), batch_size=pairs, shuffle=True))
    singles = [(ClusteringHeads(1, dim, clusters), ClusteringHeads(1, dim, clusters)) for _ in range(heads)]
    single_losses = [TEMILoss(1, clusters, 0.6, 0.1, 0.1, 0.9) for _ in range(heads)]
    student, teacher = ClusteringHeads(heads, dim, clusters), ClusteringHeads(heads, dim, clusters)
    loss = TEMILoss(heads, clusters, 0.6, 0.1, 0.1, 0.9)

    def head_by_head() -> None:
        both = torch.cat(next(loader))
        for (one, other), criterion in zip(singles, single_losses, strict=True):
            with torch.no_grad():
                target = other(both)
            criterion(one(both), target).mean().backward()

    def at_once() -> None:
        rows = torch.randint(len(embeddings), (pairs,))
        both = torch.cat([embeddings[rows], embeddings[(rows + 1) % len(embeddings)]])
        with torch.no_grad():
            target = teacher(both)
        loss(student(both), target).mean().backward()

    usual, ours = seconds(head_by_head), seconds(at_once)
    show(f"TEMI step, {heads} heads, C = {clusters}, {pairs} pairs: by head | at once", usual, ours)


def bench_edm(batch: int = 4) -> None:
    """A training step of EDM's CIFAR network: plain float32, channels last, and bf16."""
    images = torch.rand(batch, 3, 32, 32) * 2 - 1
    sigma, noise = torch.full((batch,), 0.5), torch.randn(batch, 3, 32, 32)
    labels, augmented = torch.eye(10)[:batch], torch.zeros(batch, 9)

    def step_time(channels_last: bool, bf16: bool) -> float:
        torch.manual_seed(0)
        denoiser = build_denoiser(CIFAR_NETWORK, 32, 3, label_dim=10, augment_dim=9)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                EDMLoss()(denoiser, images, sigma, noise, labels, augmented).mean().backward()

        return seconds(step, repeats=2)

    plain = step_time(channels_last=False, bf16=False)
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | channels last", plain, step_time(True, False))
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | bf16", plain, step_time(False, True))
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | bf16 channels last", plain, step_time(True, True))
    bench_overhead(plain)


def bench_overhead(step: float) -> None:
    """What Adam and the EMA add to a step."""
    denoiser = build_denoiser(CIFAR_NETWORK, 32, 3, label_dim=10, augment_dim=9)
    ema, optimizer = EMA(denoiser), torch.optim.Adam(denoiser.parameters())
    for parameter in denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        optimizer.step()
        ema.update(denoiser, nimg=10_000, batch_size=1024)

    added: float = seconds(update)
    print(f"{'EDM: Adam and EMA, as a share of that fp32 step':<58} {'':9} {added:9.3f} s    {added / step:6.1%}")


def main() -> None:
    torch.set_flush_denormal(True)
    print(f"PyTorch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'':<58} {'usual':>9} {'ours':>9}")
    bench_neighbours()
    bench_temi()
    bench_edm()


if __name__ == "__main__":
    main()
