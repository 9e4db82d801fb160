"""A gallery: what is in some clusters, from their most to their least confident images."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid

GALLERY_CLUSTERS = 20
HALF_ROW = 8  # most confident images of a cluster, and as many least confident ones


def sample_clusters(cluster_ids: Tensor) -> list[int]:
    """Ids of at most `GALLERY_CLUSTERS` used clusters, evenly spaced from the largest to the smallest."""
    used, counts = cluster_ids.unique(return_counts=True)
    order = used[torch.argsort(counts, descending=True, stable=True)]
    places = torch.linspace(0, len(order) - 1, min(GALLERY_CLUSTERS, len(order)), dtype=torch.float64).round().long()
    return order[places].tolist()


def gallery(
    images: Callable[[Tensor], Tensor],
    rows: Tensor,
    cluster_ids: Tensor,
    confidence: Tensor | None,
    title: str = "",
    notes: Mapping[int, str] | None = None,
) -> Image.Image:
    """Picture with a row for each of a sample of clusters: its most confident images, then its least confident ones.

    Clusters of fewer images than a row shows them all, once. Without confidences a row is a random sample.

    Args:
        images: row indices [B] → uint8 images [B, C, H, W].
        rows, cluster_ids, confidence: of the assigned images, [N] each.
        title: stands above the picture.
        notes: cluster id → a line that stands under its name.
    """
    picked = sample_clusters(cluster_ids)
    shuffled = torch.randperm(len(cluster_ids), generator=torch.Generator().manual_seed(0))
    order = shuffled if confidence is None else torch.argsort(confidence, descending=True, stable=True)  # [N]
    grid, names = [], []
    for cluster in picked:
        members = order[cluster_ids[order] == cluster]
        shown = torch.cat([members[:HALF_ROW], members[HALF_ROW:][-HALF_ROW:]])
        drawn = images(rows[shown])
        row = drawn.new_full((2 * HALF_ROW, *drawn.shape[1:]), 255)  # white where there are fewer
        row[: len(shown)] = drawn
        grid.append(row)
        note = f"\n{notes[cluster]}" if notes and cluster in notes else ""
        names.append(f"cluster {cluster}\n{len(members):,} images{note}")
    columns = {"most confident": HALF_ROW, "least confident": HALF_ROW}
    if confidence is None:
        columns = {"random images: this assignment gives no confidence": 2 * HALF_ROW}
    return image_grid(torch.stack(grid), names, title, columns)
