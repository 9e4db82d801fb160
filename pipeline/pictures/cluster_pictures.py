"""What a person sees of a clustering: gallery, sizes and purity, map; as files and in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.gallery import gallery, sample_clusters
from datamodules.embeddings.embeddings import Embeddings
from datamodules.embeddings.map import EmbeddingMap, make_embedding_map
from datamodules.images.images import ImageStore
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.chart import PALETTE, png_figure
from pipeline.pictures.cluster_table import table_of
from pipeline.pictures.table import write_csv
from storage.files import atomic_path, without_nan

LARGEST_THUMBNAIL = 64  # pixels
SHAPES = "os^DvPX"  # tell more clusters apart than there are colours


def thumbnails(source: ImageSource, resolution: int, channels: int) -> ImageStore:
    """The images as a gallery shows them: few, so they are decoded when asked for, and no larger than needed."""
    return ImageStore(source, min(resolution, LARGEST_THUMBNAIL), channels, memory_gb=0)


def map_of(embeddings: Embeddings | None, cache_dir: Path, map_images: int) -> EmbeddingMap | None:
    """The map of a data set's embeddings; None where there are none, or no map is wanted (`map_images=0`)."""
    if embeddings is None or map_images == 0:
        return None
    name = embeddings.meta["source"]["name"]
    return make_embedding_map(embeddings.values, embeddings.fingerprint, name, cache_dir, map_images)


def write_pictures(
    folder: Path, labels: PseudoLabels, images: ImageStore, shown_map: EmbeddingMap | None, title: str
) -> list[Path]:
    """Write `gallery.png`, `clusters.png`, `clusters.csv` and, with a map, `map.png` into `folder`; and TensorBoard's.

    Args:
        labels: of all images of `images`, in its order.
        title: which clustering of which data set, for all pictures.

    Returns:
        The pictures' paths.
    """
    table = table_of(labels, images.source)
    used = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    write_csv(folder / "clusters.csv", [without_nan(row) for row in used if row["images"]])
    named = sample_clusters(labels.cluster_ids)
    pictures = [folder / "gallery.png", folder / "clusters.png"]
    drawn = gallery(
        images.gather,
        torch.arange(len(labels)),
        labels.cluster_ids,
        labels.confidence if labels.has_confidence else None,
        title=f"{title}: {len(named)} of {labels.num_used:,} used clusters, from the largest to the smallest",
        notes=gallery_notes(named, labels, table),
    )
    with atomic_path(pictures[0]) as temporary:
        drawn.save(temporary)
    draw_clusters(pictures[1], table, title)
    if shown_map is not None:
        pictures.append(folder / "map.png")
        draw_map(pictures[2], shown_map, labels.cluster_ids, named, title)
    show_in_tensorboard(folder, {f"clusters/{path.stem}": path for path in pictures})
    return pictures


def gallery_notes(clusters: Sequence[int], labels: PseudoLabels, table: Mapping[str, Sequence[Any]]) -> dict[int, str]:
    """What stands under a cluster's name: what it was called when it was made, else its purity and class."""
    if names := labels.meta.get("cluster_names"):
        return {cluster: names[cluster] for cluster in clusters}
    if "purity" not in table:
        return {}
    shares = {C: f"{100 * table['purity'][C]:.0f} % {table['largest_class'][C]}" for C in clusters}
    if "labelled" in table:
        shares = {C: text if table["labelled"][C] else "no labels" for C, text in shares.items()}
    return shares


def draw_clusters(path: Path, table: Mapping[str, Sequence[Any]], title: str) -> None:
    """Write a PNG file: the sizes of the used clusters, the largest first, and with labels their purities below."""
    counts = np.array(table["images"])
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    mean = counts.mean()
    panels = [("images", counts[order], mean, f"N / C = {mean:,.4g}", "upper right")]
    if "purity" in table:
        purity = 100 * np.array(table["purity"])[order]
        labelled = np.array(table.get("labelled", counts))[order]
        overall = float(np.nansum(purity * labelled) / labelled.sum())
        which = f"all {labelled.sum():,} labelled images" if "labelled" in table else "all images"
        panels.append(("purity (largest class, %)", purity, overall, f"of {which} {overall:.1f} %", "lower left"))
    with png_figure(path, 8, 1.2 + 2.4 * len(panels)) as figure:
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, heights, level, label, corner), colour in zip(all_axes, panels, PALETTE[1:], strict=False):
            axes.stairs(heights, np.arange(len(order) + 1) + 0.5, fill=True, color=colour)
            axes.axhline(level, color="black", linewidth=1, linestyle="--", label=label)
            axes.set(ylabel=name, ylim=(0, None))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc=corner, framealpha=0.9, edgecolor="none")  # where the bars leave room
        all_axes[0].set_title(f"{title}\n{len(order):,} of {len(counts):,} clusters used")
        all_axes[-1].set(xlabel="used clusters, the largest first", xlim=(0.4, len(order) + 0.6))


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
            colour, shape = PALETTE[number % len(PALETTE)], SHAPES[number // len(PALETTE) % len(SHAPES)]
            x, y = places[ids == cluster].T
            axes.scatter(x, y, s=14, c=colour, marker=shape, linewidths=0, alpha=0.8)
        room = 0.04 * float(np.ptp(places, axis=0).max())  # that a number takes
        numbers: list[np.ndarray] = []
        for cluster in [C for C in named if C in clusters]:
            members = places[ids == cluster]
            middle = members[np.linalg.norm(members - np.median(members, axis=0), axis=1).argmin()]
            if all(np.linalg.norm(middle - other) > room for other in numbers):
                numbers.append(middle)
                ground = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 1}
                axes.annotate(str(cluster), middle, ha="center", va="center", weight="bold", bbox=ground)
        sample = f"t-SNE of {len(ids):,} of {len(cluster_ids):,} embeddings, {len(clusters):,} clusters"
        axes.set_title(f"{title}\n{sample}\nnumbers: clusters of the gallery")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
        axes.spines[:].set_color("#bbbbbb")


def show_in_tensorboard(folder: Path, pictures: Mapping[str, Path]) -> None:
    """Pictures by their tag, in the TensorBoard of a run folder."""
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for tag, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(tag, np.array(picture.convert("RGB")), dataformats="HWC")
