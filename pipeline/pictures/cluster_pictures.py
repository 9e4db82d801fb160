"""What a person sees of a clustering: gallery, sizes and purity, map; as files and in TensorBoard."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.gallery import gallery, sample_clusters
from datamodules.embeddings.map import EmbeddingMap, MappedEmbeddings
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.chart import PALETTE, png_figure
from pipeline.pictures.cluster_page import PAGE, write_cluster_page
from pipeline.pictures.cluster_table import table_of
from pipeline.pictures.table import write_csv
from storage.files import atomic_path, without_nan

GALLERY = "gallery.png"
LARGEST_THUMBNAIL = 64  # pixels
SHAPES = "os^DvPX"  # tell more clusters apart than there are colours
BARS = 100  # in a row of bars
MOST_BARS = 1000
SPIRAL = 150  # places that are tried for a number


def thumbnails(source: ImageSource, resolution: int, channels: int) -> ImageStore:
    """The images as a gallery shows them: few, so they are decoded when asked for, and no larger than needed."""
    return ImageStore(source, min(resolution, LARGEST_THUMBNAIL), channels, memory_gb=0)


def write_pictures(
    folder: Path,
    labels: PseudoLabels,
    images: ImageStore,
    embeddings: MappedEmbeddings | None,
    title: str,
    names: Mapping[int, str],
    page_images: int,
    loggers: Sequence[str],
) -> list[Path]:
    """Write `clusters.png`, `clusters.csv`, with images `gallery.png`, with a map `map.png`; and TensorBoard's.

    Args:
        labels: of all images of `images`, in its order.
        title: which clustering of which data set, for all pictures.
        names: cluster → its name, of those that have one.
        page_images: images on `clusters.html`; 0: no such page.
        loggers: names of those asked for.

    Returns:
        The pictures' paths, the page's among them.
    """
    table = table_of(labels, images.source)
    used = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    write_csv(folder / "clusters.csv", [without_nan(row) for row in used if row["images"]])
    named = sample_clusters(labels.cluster_ids)
    pictures = []
    if images.source.has_images:
        drawn = gallery(
            images.gather,
            torch.arange(len(labels)),
            labels.cluster_ids,
            labels.confidence if labels.has_confidence else None,
            title=f"{title}: {len(named)} of {labels.num_used:,} used clusters, from the largest to the smallest",
            notes=gallery_notes(named, names, table),
        )
        pictures.append(folder / GALLERY)
        with atomic_path(pictures[-1]) as temporary:
            drawn.save(temporary)
    pictures.append(folder / "clusters.png")
    draw_clusters(pictures[-1], table, title)
    shown_map = None if embeddings is None else embeddings.map()
    if shown_map is not None:
        pictures.append(folder / "map.png")
        draw_map(pictures[-1], shown_map, labels.cluster_ids, title)
    show_in_tensorboard(folder, {f"clusters/{path.stem}": path for path in pictures}, loggers)
    if page_images and images.source.has_images:
        page = folder / PAGE
        pictures.append(write_cluster_page(page, labels, images, embeddings, title, names, page_images))
    return pictures


def gallery_notes(
    clusters: Sequence[int], names: Mapping[int, str], table: Mapping[str, Sequence[Any]]
) -> dict[int, str]:
    """What stands under a cluster's number: its name, else its purity and class."""
    named = {cluster: names[cluster] for cluster in clusters if cluster in names}
    if "purity" not in table:
        return named
    shares = {C: f"{100 * table['purity'][C]:.0f} % {table['largest_class'][C]}" for C in clusters}
    if "labelled" in table:
        shares = {C: text if table["labelled"][C] else "no labels" for C, text in shares.items()}
    return shares | named


def draw_clusters(path: Path, table: Mapping[str, Sequence[Any]], title: str) -> None:
    """Write a PNG file: the sizes of the used clusters, the largest first, and with labels their purities below.

    Each bar carries its cluster's number, in rows of `BARS`; there are at most `MOST_BARS`.
    """
    counts = np.array(table["images"])
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    mean = counts.mean()
    panels = [("images", counts, mean, f"N / C = {mean:,.4g}", "upper right")]
    if "purity" in table:
        purity, labelled = 100 * np.array(table["purity"]), np.array(table.get("labelled", counts))
        overall = float(np.nansum(purity * labelled) / labelled.sum())
        which = f"all {labelled.sum():,} labelled images" if "labelled" in table else "all images"
        panels.append(("purity (largest class, %)", purity, overall, f"of {which} {overall:.1f} %", "lower left"))
    rows = [order[start : start + BARS] for start in range(0, min(len(order), MOST_BARS), BARS)]
    width = max(8, 0.16 * len(rows[0]))
    with png_figure(path, width, 1.2 + 2.4 * len(panels) * len(rows)) as figure:
        all_axes = figure.subplots(len(panels) * len(rows), 1, squeeze=False)[:, 0]
        for axes, (row, place) in zip(all_axes, product(rows, range(len(panels))), strict=True):
            name, heights, level, label, corner = panels[place]
            axes.bar(np.arange(len(row)), heights[row], 0.9, color=PALETTE[1 + place])
            axes.axhline(level, color="black", linewidth=1, linestyle="--", label=label)
            axes.set_xticks(np.arange(len(row)), row.tolist(), rotation=90, fontsize=7)
            axes.set(ylabel=name, ylim=(0, np.nanmax(heights) * 1.05), xlim=(-0.6, len(rows[0]) - 0.4))
            axes.tick_params("x", length=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc=corner, framealpha=0.9, edgecolor="none")  # where the bars leave room
        shown = f"; the {MOST_BARS:,} largest, all are in clusters.csv" if len(order) > MOST_BARS else ""
        all_axes[0].set_title(f"{title}\n{len(order):,} of {len(counts):,} clusters used{shown}")
        all_axes[-1].set(xlabel="cluster, the largest first")


def draw_map(path: Path, shown: EmbeddingMap, cluster_ids: Tensor, title: str) -> None:
    """Write a PNG file: the map's images, coloured by cluster; each cluster's number stands near its middle.

    Args:
        cluster_ids: of the whole data set, [N].
    """
    ids, places = cluster_ids[shown.rows].numpy(), shown.places.numpy()  # [M], [M, 2]
    clusters, counts = np.unique(ids, return_counts=True)
    side = min(20.0, 8 * max(1.0, (len(clusters) / 100) ** 0.5))  # inches: room for the numbers
    with png_figure(path, side, side) as figure:
        axes = figure.add_subplot()
        for number, cluster in enumerate(clusters):
            colour, shape = PALETTE[number % len(PALETTE)], SHAPES[number // len(PALETTE) % len(SHAPES)]
            x, y = places[ids == cluster].T
            axes.scatter(x, y, s=14, c=colour, marker=shape, linewidths=0, alpha=0.8)
        inch = float(np.ptp(places, axis=0).max()) / (0.9 * side)  # in units of the map
        largest = clusters[np.argsort(-counts, kind="stable")]
        middles = np.array([middle_of(places[ids == cluster]) for cluster in largest])
        sizes = np.array([[0.08 * len(str(cluster)) + 0.04, 0.15] for cluster in largest]) * inch
        ground = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.5}
        for cluster, place in zip(largest, spread_out(middles, sizes), strict=True):
            axes.annotate(str(cluster), place, ha="center", va="center", weight="bold", fontsize=8, bbox=ground)
        sample = f"t-SNE of {len(ids):,} of {len(cluster_ids):,} embeddings, {len(clusters):,} clusters"
        axes.set_title(f"{title}\n{sample}")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
        axes.spines[:].set_color("#bbbbbb")


def middle_of(places: np.ndarray) -> np.ndarray:
    """The place [2] of some [n, 2] that is nearest to their medians."""
    nearest: np.ndarray = places[np.linalg.norm(places - np.median(places, axis=0), axis=1).argmin()]
    return nearest


def spread_out(middles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places for boxes near their middles that cover none before them: [n, 2] from middles and sizes [n, 2].

    Each goes outwards on a spiral until there is room; where there is none nearby it stays in its middle.
    """
    steps = np.arange(SPIRAL)
    spiral = 0.4 * sizes[0, 1] * np.sqrt(steps)[:, None] * np.stack([np.cos(2.4 * steps), np.sin(2.4 * steps)], axis=1)
    placed = middles.copy()
    for number, (middle, size) in enumerate(zip(middles, sizes, strict=True)):
        needed = (size + sizes[:number]) / 2
        free = (at for at in middle + spiral if not (np.abs(at - placed[:number]) < needed).all(axis=1).any())
        placed[number] = next(free, middle)
    return placed


def show_in_tensorboard(folder: Path, pictures: Mapping[str, Path], loggers: Sequence[str]) -> None:
    """Pictures by their tag, in the TensorBoard of a run folder, if that is among the loggers asked for."""
    if "tensorboard" not in loggers:
        return
    with SummaryWriter(str(folder)) as writer:
        for tag, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(tag, np.array(picture.convert("RGB")), dataformats="HWC")
