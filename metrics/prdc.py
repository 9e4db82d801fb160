"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""

import torch
from torch import Tensor

from storage.distances import BLOCK_ENTRIES, SquaredDistances


def prdc(features: Tensor, reference: Tensor, k: int = 3, block_entries: int = BLOCK_ENTRIES) -> dict[str, float]:
    """How much of the generated images lies among the real ones, and the other way round.

    Around each image lies a ball that reaches to its k-th nearest neighbour of the same set, itself not counted. The
    balls are closed: an image at exactly the k-th distance is in. Images at equal distances count one by one, so where
    an image is in its set more than k times the ball is a point, in which its copies are. Distances are compared in
    float64, whatever the features come in.

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
        ValueError: a set has no k-th neighbour, or a feature is not finite.

    Examples:
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
        >>> prdc(torch.tensor([[0.0], [1.0], [2.0], [30.0]]), real, k=1)
        {'precision': 0.75, 'recall': 1.0, 'density': 2.0, 'coverage': 1.0}
    """
    if not 1 <= k < min(len(features), len(reference)):
        raise ValueError(
            f"k={k} needs more than k images on both sides, not {len(features)} generated and {len(reference)} real"
        )
    reference = reference.to(features.device)
    real_balls = kth_neighbour_distances(reference, k, block_entries)  # [M], squared radii
    generated_balls = kth_neighbour_distances(features, k, block_entries)  # [N]

    num_balls = 0
    precise, recalled, covered = (
        torch.zeros(count, dtype=torch.bool, device=features.device)
        for count in (len(features), len(reference), len(reference))
    )
    distances = SquaredDistances(features, reference, block_entries)
    for rows, columns, squared in distances.within(generated_balls, real_balls):
        in_real_ball = squared <= real_balls[columns]
        num_balls += int(in_real_ball.sum())
        precise[rows[in_real_ball]] = True
        covered[columns[in_real_ball]] = True
        recalled[columns[squared <= generated_balls[rows]]] = True
    return {
        "precision": float(precise.double().mean()),
        "recall": float(recalled.double().mean()),
        "density": num_balls / (k * len(features)),
        "coverage": float(covered.double().mean()),
    }


def kth_neighbour_distances(features: Tensor, k: int, block_entries: int = BLOCK_ENTRIES) -> Tensor:
    """Squared distance of each row of [N, D] to its k-th nearest other row, float64 [N]."""
    return SquaredDistances(features, block_entries=block_entries).nearest(k)[0][:, -1]
