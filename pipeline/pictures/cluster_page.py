"""The page of a clustering: a map of its images to point at, its clusters to look into and to name."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.embeddings.map import MappedEmbeddings, sample_of
from datamodules.images.image_store import ImageStore
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.chart import PALETTE
from pipeline.pictures.cluster_table import table_of
from pipeline.pictures.html import write_html
from pipeline.pictures.sprites import make_sprites
from storage.control_characters import escaped
from storage.files import without_nan
from storage.fingerprints import fingerprint

MOST_PAGE = 29_000_000  # characters
STEPS = 65535  # of a place on the map along its longer side
PAGE = "clusters.html"


def write_cluster_page(
    path: Path,
    labels: PseudoLabels,
    images: ImageStore,
    embeddings: MappedEmbeddings | None,
    title: str,
    names: Mapping[int, str],
    num_images: int,
) -> Path:
    """Write one HTML file with a random sample of `num_images` images; where it lies.

    Without embeddings it has neither map nor neighbours.

    Args:
        labels: of all images of `images`, in its order.
        title: which clustering of which data set.
        names: cluster → its name, of those that have one.
    """
    rows = in_page_order(labels, sample_of(len(labels), num_images))
    data = page_data(labels, images, embeddings, names, rows)
    data["key"] = fingerprint([labels.cluster_ids.tolist(), sorted(names.items())])
    room = MOST_PAGE - len(json.dumps(data))
    data["sprites"] = make_sprites(lambda row: images.gather(rows[row : row + 1])[0], len(rows), room)
    return write_html(path, "clusters.html.j2", title=title, data=data, facts=facts_of(labels, data, embeddings))


def in_page_order(labels: PseudoLabels, rows: Tensor) -> Tensor:
    """The rows cluster by cluster, each from its most to its least confident image; without confidences at random.

    So a cluster is a range of images on the page, and its two ends are what people want to see.
    """
    if labels.has_confidence:
        rows = rows[labels.confidence[rows].argsort(descending=True, stable=True)]
    else:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[labels.cluster_ids[rows].argsort(stable=True)]


def page_data(
    labels: PseudoLabels,
    images: ImageStore,
    embeddings: MappedEmbeddings | None,
    names: Mapping[int, str],
    rows: Tensor,
) -> dict[str, Any]:
    """What the page knows, but for the thumbnails: of the used clusters, and of the images `rows` in this order.

    Numbers of the images are little-endian bytes in Base64: `confidence` float32 [M], `classes` int32 [M], `places`
    uint16 [M, 2] from the map's upper left, `neighbours` uint16 [M, k], which are positions in `rows`.
    """
    source = images.source
    columns = table_of(labels, source) | {"shown": labels.cluster_ids[rows].bincount(minlength=labels.num_clusters)}
    used = labels.used_clusters.tolist()
    clusters = {key: [_plain(column[cluster]) for cluster in used] for key, column in columns.items()}
    data: dict[str, Any] = {
        "clusters": clusters | {"name": [names.get(cluster, "") for cluster in used]},
        "ids": [escaped(source.ids[row]) for row in rows.tolist()],
        "confidence": _packed(labels.confidence[rows]) if labels.has_confidence else None,
        **dict.fromkeys(("classes", "class_names", "places", "neighbours")),
        "palette": PALETTE,
    }
    if source.labels is not None:
        data |= {"classes": _packed(source.labels[rows].int()), "class_names": source.class_names}
    if embeddings is not None:
        by_row = rows.argsort()  # positions of the sorted rows, by which neighbours are found
        found = embeddings.neighbours(rows[by_row])
        data |= {"neighbours": _packed(by_row[found][by_row.argsort()].to(torch.uint16))}
        places = embeddings.places(rows)
        data |= {"places": None if places is None else _packed(_on_a_grid(places).to(torch.uint16))}
    return data


def facts_of(labels: PseudoLabels, data: Mapping[str, Any], embeddings: MappedEmbeddings | None) -> dict[str, str]:
    """The numbers above the map, name → value."""
    total, shown, clusters = len(labels), len(data["ids"]), data["clusters"]
    facts = {
        "images": f"{total:,}" if shown == total else f"{total:,}, of which a random sample of {shown:,} is shown",
        "clusters": f"{labels.num_used:,} of {labels.num_clusters:,} used",
        "images in a cluster": f"{min(clusters['images']):,} to {max(clusters['images']):,}",
    }
    if "purity" in clusters:
        counts = clusters.get("labelled", clusters["images"])
        alike = sum(count * (share or 0) for count, share in zip(counts, clusters["purity"], strict=True))
        facts["images of their cluster's largest class"] = f"{100 * alike / sum(counts):.1f} %"
    if embeddings is None:
        facts["map"] = "none: there are no embeddings of these images in the cache"
    elif data["places"] is None:
        facts["map"] = "none" + ("" if embeddings.map_images == 0 else ": too few images")
    else:
        placed = min(embeddings.map_images, total)
        others = ", the others between the nearest of these" if placed < shown else ""
        facts["map"] = f"{placed:,} images placed by t-SNE{others}"
    return facts


def _on_a_grid(places: Tensor) -> Tensor:
    """Places [M, 2] as whole numbers 0…STEPS, y downwards, to one scale."""
    places = places * torch.tensor([1.0, -1.0])
    low, span = places.amin(dim=0), (places.amax(dim=0) - places.amin(dim=0)).amax().clamp_min(1e-12)
    return ((places - low) / span * STEPS).round().int()


def _packed(values: Tensor) -> str:
    """Numbers as little-endian bytes in Base64."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _plain(value: Any) -> Any:
    return without_nan(value.item() if isinstance(value, Tensor) else value)
