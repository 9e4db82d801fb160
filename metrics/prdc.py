"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 28  # of the distance matrix at once: 1 GB


def prdc(features: Tensor, reference: Tensor, k: int = 3, block_entries: int = BLOCK_ENTRIES) -> dict[str, float]:
    """How much of the generated images lies among the real ones, and the other way round.

    Around each image lies a ball that reaches to its k-th nearest neighbour of the same set, itself not counted.

    Args:
        features: [N, D], of generated images.
        reference: [M, D], of real images.
        k: which neighbour.
        block_entries: how many of the N × M distances are held at once; at least a row of them.

    Returns:
        precision: share of generated images in some real image's ball.
        recall: share of real images in some generated image's ball.
        density: real balls around a generated image, on average, divided by k; may exceed 1.
        coverage: share of real images with a generated image in their ball.

    Raises:
        ValueError: a set has no k-th neighbour.
    """
    if not 1 <= k < min(len(features), len(reference)):
        raise ValueError(
            f"k={k} needs more than k images on both sides, not {len(features)} generated and {len(reference)} real"
        )
    reference = reference.to(features.device)
    real_radii = kth_neighbour_distances(reference, k, block_entries)  # [M]
    generated_radii = kth_neighbour_distances(features, k, block_entries)  # [N]

    num_precise, num_balls = 0, 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=features.device)
    covered = torch.zeros_like(recalled)
    for start, distances in distance_blocks(features, reference, block_entries):  # [b, M]
        in_real_ball = distances <= real_radii
        in_generated_ball = distances <= generated_radii[start : start + len(distances), None]
        num_precise += int(in_real_ball.any(dim=1).sum())
        num_balls += int(in_real_ball.sum())
        recalled |= in_generated_ball.any(dim=0)
        covered |= in_real_ball.any(dim=0)
    return {
        "precision": num_precise / len(features),
        "recall": float(recalled.double().mean()),
        "density": num_balls / (k * len(features)),
        "coverage": float(covered.double().mean()),
    }


def kth_neighbour_distances(features: Tensor, k: int, block_entries: int = BLOCK_ENTRIES) -> Tensor:
    """Distance of each row of [N, D] to its k-th nearest other row, [N]."""
    radii = []
    for start, distances in distance_blocks(features, features, block_entries):  # [b, N]
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, start + rows] = torch.inf  # an image is no neighbour of its own
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def distance_blocks(a: Tensor, b: Tensor, block_entries: int) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances of a block of rows of a [N, D] to all rows of b [M, D], with the block's first row."""
    rows = max(1, block_entries // len(b))
    for start in range(0, len(a), rows):
        yield start, torch.cdist(a[start : start + rows], b)
