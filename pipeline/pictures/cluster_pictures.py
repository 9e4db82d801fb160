"""What a person sees of a clustering: gallery, sizes and purity, map; as files and in TensorBoard."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.gallery import gallery, sample_clusters
from datamodules.embeddings.embeddings import Embeddings
from datamodules.embeddings.map import EmbeddingMap, make_embedding_map
from datamodules.images.images import ImageStore
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from metrics.clustering import cluster_purity
from pipeline.pictures.cluster_plots import draw_clusters, draw_map
from storage.files import atomic_path

LARGEST_THUMBNAIL = 64  # pixels


def thumbnails(cfg: DictConfig, source: ImageSource) -> ImageStore:
    """The images as a gallery shows them: few, so they are decoded when asked for, and no larger than needed."""
    return ImageStore(source, min(cfg.dataset.resolution, LARGEST_THUMBNAIL), cfg.dataset.channels, memory_gb=0)


def map_of(cfg: DictConfig, embeddings: Embeddings | None) -> EmbeddingMap | None:
    """The map of a data set's embeddings; None where there are none, or no map is wanted (`map_images=0`)."""
    if embeddings is None or cfg.map_images == 0:
        return None
    name = embeddings.meta["source"]["name"]
    return make_embedding_map(embeddings.values, embeddings.fingerprint, name, cfg.cache_dir, cfg.map_images)


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
    purity, classes = None, None
    if images.source.labels is not None:
        purity, majority = cluster_purity(labels.cluster_ids, images.source.labels, labels.num_clusters)  # [C] each
        classes = [class_name(images.source.class_names, label) for label in majority.tolist()]
    write_table(folder / "clusters.csv", labels, purity, classes)
    named = sample_clusters(labels.cluster_ids)
    pictures = [folder / "gallery.png", folder / "clusters.png"]
    drawn = gallery(
        images.gather,
        torch.arange(len(labels)),
        labels.cluster_ids,
        labels.confidence if labels.has_confidence else None,
        title=f"{title}: {len(named)} of {labels.num_used:,} used clusters, from the largest to the smallest",
        notes=gallery_notes(named, labels, purity, classes),
    )
    with atomic_path(pictures[0]) as temporary:
        drawn.save(temporary)
    draw_clusters(pictures[1], labels.counts, purity, title)
    if shown_map is not None:
        pictures.append(folder / "map.png")
        draw_map(pictures[2], shown_map, labels.cluster_ids, named, title)
    show_in_tensorboard(folder, {f"clusters/{path.stem}": path for path in pictures})
    return pictures


def class_name(names: Sequence[str] | None, label: int) -> str:
    """A class as a person calls it; a name that is a mere number is called a class."""
    name = names[label] if names else str(label)
    return f"class {name}" if name.isdigit() else name


def gallery_notes(
    clusters: Sequence[int], labels: PseudoLabels, purity: Tensor | None, classes: Sequence[str] | None
) -> dict[int, str]:
    """What stands under a cluster's name: what it was called when it was made, else its purity and class."""
    names = labels.meta.get("cluster_names")
    if names:
        return {cluster: names[cluster] for cluster in clusters}
    if purity is None or classes is None:
        return {}
    return {cluster: f"{100 * float(purity[cluster]):.0f} % {classes[cluster]}" for cluster in clusters}


def write_table(path: Path, labels: PseudoLabels, purity: Tensor | None, classes: Sequence[str] | None) -> None:
    """A line of CSV per cluster: its images, their mean confidence where there is one, purity and class with labels."""
    sums = torch.zeros(labels.num_clusters, dtype=torch.float64)
    sums.index_add_(0, labels.cluster_ids, labels.confidence.double())
    columns: dict[str, Sequence[object]] = {
        "cluster": range(labels.num_clusters),
        "images": labels.counts.tolist(),
    }
    if labels.has_confidence:
        columns["mean_confidence"] = [f"{mean:.6g}" for mean in (sums / labels.counts).tolist()]
    if purity is not None and classes is not None:
        columns |= {"purity": [f"{share:.6g}" for share in purity.tolist()], "largest_class": classes}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row for row in zip(*columns.values(), strict=True) if row[1])  # used clusters


def show_in_tensorboard(folder: Path, pictures: Mapping[str, Path]) -> None:
    """Pictures by their tag, in the TensorBoard of a run folder."""
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for tag, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(tag, np.array(picture.convert("RGB")), dataformats="HWC")
