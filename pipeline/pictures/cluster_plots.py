"""Plots of a clustering: how large the clusters are, how pure, and where they lie on the map of the embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from torch import Tensor

from callbacks.figure import png_figure
from datamodules.embeddings.map import EmbeddingMap

# Paul Tol's muted scheme: nine colours that colour-blind readers can tell apart. Shapes tell more than nine clusters.
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933")
SHAPES = "os^DvPX"


def draw_clusters(path: Path, counts: Tensor, purity: Tensor | None, title: str) -> None:
    """Write a PNG file: the sizes of the used clusters, the largest first, and below them their purities.

    Args:
        counts: images in each cluster, [C].
        purity: share of each cluster's most frequent class, [C], NaN for unused clusters; None without labels.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[counts[order] > 0]
    ranks = np.arange(1, len(order) + 1)
    with png_figure(path, 8, 3.6 if purity is None else 6) as figure:
        panels = figure.subplots(1 if purity is None else 2, 1, sharex=True, squeeze=False)[:, 0]
        mean = float(counts.sum()) / len(counts)
        _bars(panels[0], ranks, counts[order].numpy(), COLOURS[0])
        panels[0].axhline(mean, color="black", linewidth=1, linestyle="--", label=f"N / C = {mean:,.4g}")
        panels[0].set_ylim(bottom=0)
        panels[0].set(ylabel="images", title=f"{title}\n{len(order):,} of {len(counts):,} clusters used")
        if purity is not None:
            _bars(panels[1], ranks, 100 * purity[order].numpy(), COLOURS[6])
            overall = 100 * float((purity[order] * counts[order]).sum() / counts.sum())
            label = f"of all images {overall:.1f} %"
            panels[1].axhline(overall, color="black", linewidth=1, linestyle="--", label=label)
            panels[1].set(ylabel="purity (largest class, %)", ylim=(0, 102))
        for axes, corner in zip(panels, ("upper right", "lower left"), strict=False):  # where the bars leave room
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc=corner, framealpha=0.9, edgecolor="none")
        panels[-1].set(xlabel="used clusters, the largest first", xlim=(0.4, len(order) + 0.6))


def _bars(axes: Axes, ranks: np.ndarray, heights: np.ndarray, colour: str) -> None:
    """A bar per cluster; a dot where bars would be thinner than a pixel."""
    if len(ranks) <= 400:
        axes.bar(ranks, heights, width=0.8 if len(ranks) <= 100 else 1, color=colour)
    else:
        axes.plot(ranks, heights, ".", markersize=3, alpha=0.5, color=colour)


def draw_map(path: Path, shown: EmbeddingMap, cluster_ids: Tensor, named: Sequence[int], title: str) -> None:
    """Write a PNG file: the map's images, coloured by cluster; numbers stand in the middle of the `named` clusters.

    A number that would hide another is left out.

    Args:
        cluster_ids: of the whole data set, [N].
    """
    ids, places = cluster_ids[shown.rows].numpy(), shown.places.numpy()  # [M], [M, 2]
    clusters = np.unique(ids)
    with png_figure(path, 8, 8) as figure:
        axes = figure.add_subplot()
        for number, cluster in enumerate(clusters):
            colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]
            x, y = places[ids == cluster].T
            axes.scatter(x, y, s=14, c=colour, marker=shape, linewidths=0, alpha=0.8)
        room = 0.04 * float(np.ptp(places, axis=0).max())  # that a number takes
        numbers: list[np.ndarray] = []
        for cluster in [C for C in named if C in clusters]:
            members = places[ids == cluster]
            middle = members[np.linalg.norm(members - np.median(members, axis=0), axis=1).argmin()]
            if all(np.linalg.norm(middle - other) > room for other in numbers):
                numbers.append(middle)
                halo = [withStroke(linewidth=3, foreground="white")]
                axes.annotate(str(cluster), middle, ha="center", va="center", weight="bold", path_effects=halo)
        sample = f"t-SNE of {len(ids):,} of {len(cluster_ids):,} embeddings, {len(clusters):,} clusters"
        axes.set_title(f"{title}\n{sample}\nnumbers: clusters of the gallery")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
        axes.spines[:].set_color("#bbbbbb")
