"""TEMI: a training step written the usual way, against all heads at once."""

import torch
from timing import seconds, show
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.clustering.temi_loss import TEMILoss


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
