"""A gallery: what is in some clusters, from their most to their least confident images."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid

GALLERY_CLUSTERS = 20
HALF_ROW = 8  # most confident images of a cluster, and as many least confident ones


def sample_clusters(cluster_ids: Tensor, num_clusters: int = GALLERY_CLUSTERS) -> list[int]:
    """Ids of at most `num_clusters` used clusters, evenly spaced from the largest to the smallest."""
    used, counts = cluster_ids.unique(return_counts=True)
    order = used[torch.argsort(counts, descending=True, stable=True)]
    places = torch.linspace(0, len(order) - 1, min(num_clusters, len(order)), dtype=torch.float64).round().long()
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
        most, rest = members[:HALF_ROW], members[HALF_ROW:]
        halves = [images(rows[most]), images(rows[rest[-HALF_ROW:]]) if len(rest) else None]
        grid.append(torch.cat([_filled_up(half, like=halves[0]) for half in halves]))
        note = f"\n{notes[cluster]}" if notes and cluster in notes else ""
        names.append(f"cluster {cluster}\n{len(members):,} images{note}")
    halves_named = {"most confident": HALF_ROW, "least confident": HALF_ROW}
    columns = (
        {"random images: this assignment gives no confidence": 2 * HALF_ROW} if confidence is None else halves_named
    )
    return image_grid(torch.stack(grid), names, title, columns)


def _filled_up(images: Tensor | None, like: Tensor | None) -> Tensor:
    """The images [B, C, H, W] with white ones behind, [HALF_ROW, C, H, W]."""
    assert like is not None
    shown = like[:0] if images is None else images
    return torch.cat([shown, like.new_full((HALF_ROW - len(shown), *like.shape[1:]), 255)])
