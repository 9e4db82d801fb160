"""Pseudo-labels: the cluster of each image, by the image's id, whatever made the clusters."""

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.images.sources import ImageSource
from datamodules.plain_files import file_and_key
from datamodules.pseudo_labels.assignment_files import NOISE, ClusterIds, is_artifact, read_cluster_ids
from storage.artifacts import entry_path, read_artifact, write_artifact
from storage.digests import file_digest
from storage.errors import UserError
from storage.files import atomic_path
from storage.fingerprints import file_stem, fingerprint

KIND = "pseudo-labels"
MOST_CLUSTERS = 10_000_000  # a table of counts is as long
MADE_FOR = "images"  # key of `meta`: the images that the pseudo-labels were made for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PseudoLabels:
    """Cluster ids of images.

    A confidence is, for TEMI and CLIP, the maximum softmax probability; for k-means, the simplified silhouette; and 1
    where there is no such thing.

    Raises:
        ValueError: lengths that differ, cluster ids outside 0…C−1, or an id that occurs twice or holds a line break.

    Examples:
        >>> labels = PseudoLabels(torch.tensor([0, 5, 5]), num_clusters=8, confidence=torch.ones(3), ids=list("abc"))
        >>> labels.num_used, labels.utilization_ratio, labels.compact().tolist()
        (2, 0.25, [0, 1, 1])
    """

    cluster_ids: Tensor  # int64 [N], in 0…C−1
    num_clusters: int  # C, the clusters that were asked for; some may hold no image
    confidence: Tensor  # float32 [N], how sure each image's cluster is
    ids: list[str]  # of the N images
    meta: dict[str, Any] = field(default_factory=dict)  # what made them

    def __post_init__(self) -> None:
        lengths = [len(self.cluster_ids), len(self.confidence), len(self.ids)]
        if len(set(lengths)) > 1 or 0 in lengths:
            raise ValueError(f"{lengths} cluster ids, confidences and image ids; expected as many of each, and some")
        low, high = map(int, self.cluster_ids.aminmax())
        if low < 0 or high >= self.num_clusters:
            raise ValueError(f"cluster ids from {low} to {high}; expected 0 to {self.num_clusters - 1}")
        if len(self._rows) != len(self.ids) or any("\n" in image_id for image_id in self.ids):
            raise ValueError("an image id occurs twice, or holds a line break")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.ids)}

    @cached_property
    def counts(self) -> Tensor:
        """Images in each cluster: int64 [C]."""
        return torch.bincount(self.cluster_ids, minlength=self.num_clusters)

    @cached_property
    def used_clusters(self) -> Tensor:
        """Ids of the clusters that hold an image, sorted: int64 [num_used]. Row i is compact label i's cluster."""
        return self.counts.nonzero().flatten()

    @property
    def num_used(self) -> int:
        """Clusters that hold an image."""
        return len(self.used_clusters)

    @property
    def utilization_ratio(self) -> float:
        """num_used / C, r_C of the paper."""
        return self.num_used / self.num_clusters

    @property
    def has_confidence(self) -> bool:
        """Whether the confidences tell one image from another."""
        return bool((self.confidence != 1).any())

    @property
    def frequencies(self) -> Tensor:
        """Share of the images in each used cluster: float32 [num_used], in the order of `used_clusters`."""
        return (self.counts[self.used_clusters].double() / len(self)).float()

    def compact(self) -> Tensor:
        """Labels 0…num_used−1 without gaps, int64 [N]: a diffusion model learns no embedding of an empty cluster."""
        return torch.searchsorted(self.used_clusters, self.cluster_ids)

    def rows_in(self, ids: Sequence[str]) -> Tensor:
        """The places among `ids` of those images that have a pseudo-label, sorted: int64."""
        return torch.tensor([row for row, image_id in enumerate(ids) if image_id in self._rows], dtype=torch.int64)

    def select(self, ids: Sequence[str]) -> "PseudoLabels":
        """The pseudo-labels of these images, in this order. Raises `UserError` where one of them has none."""
        absent = [image_id for image_id in ids if image_id not in self._rows]
        if absent:
            raise UserError(
                f"{len(absent)} of {len(ids)} images have no pseudo-label, the first is {absent[0]!r}. The "
                f"pseudo-labels know {len(self)} images, the first is {self.ids[0]!r}: are they another data set's?"
            )
        rows = torch.tensor([self._rows[image_id] for image_id in ids], dtype=torch.int64)
        return PseudoLabels(self.cluster_ids[rows], self.num_clusters, self.confidence[rows], list(ids), self.meta)

    def save(self, path: str | Path) -> None:
        """Writes the artifact, with counts and the clusters in use beside the ids for readers in other languages."""
        tensors = {
            "cluster_ids": self.cluster_ids,
            "confidence": self.confidence,
            "counts": self.counts,
            "used_clusters": self.used_clusters,
            "ids": torch.frombuffer(bytearray("\n".join(self.ids).encode()), dtype=torch.uint8),
        }
        meta = {
            "num_clusters": self.num_clusters,
            "num_used": self.num_used,
            "utilization_ratio": self.utilization_ratio,
            "ids": fingerprint(self.ids),
            "made_from": self.meta,
        }
        write_artifact(path, KIND, tensors, meta)

    def save_csv(self, path: str | Path) -> None:
        """Writes `id,cluster,confidence`, a line per image, for other programs and for `assignments=`."""
        confidences = (f"{confidence:.6g}" for confidence in self.confidence.tolist())
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "cluster", "confidence"])
            writer.writerows(zip(self.ids, self.cluster_ids.tolist(), confidences, strict=True))

    @classmethod
    def load(cls, path: str | Path) -> "PseudoLabels":
        """Reads and verifies what `save` wrote."""
        artifact = read_artifact(path, KIND)
        tensors, meta = artifact.tensors, artifact.meta
        try:
            cluster_ids, num_clusters = tensors["cluster_ids"], meta["num_clusters"]
            if cluster_ids.dtype != torch.int64 or cluster_ids.ndim != 1 or type(num_clusters) is not int:
                raise ValueError(f"cluster ids {[*cluster_ids.shape]} of {cluster_ids.dtype}")
            if not 0 < num_clusters <= MOST_CLUSTERS:
                raise ValueError(f"cluster ids in {num_clusters} clusters")
            ids = tensors["ids"].numpy().tobytes().decode().split("\n")
            return cls(cluster_ids, num_clusters, tensors["confidence"].float(), ids, dict(meta["made_from"]))
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: no pseudo-labels of this project ({error}).") from error


def pseudo_labels_path(cache_dir: str | Path, source: ImageSource, description: dict[str, Any]) -> Path:
    """Where the pseudo-labels of this source are kept that were made as `description` says."""
    stem = file_stem(source.name, fingerprint({"source": source.fingerprint, "made_from": description}))
    images = {"num_images": len(source), "fingerprint": source.images_fingerprint}
    says: dict[str, Any] = {"made_from": description, MADE_FOR: images}
    if description["method"] == "labels":
        says["source"] = source.fingerprint  # with the labels
    return entry_path(Path(cache_dir) / "pseudo-labels" / f"{stem}.safetensors", KIND, {"made_from": says})


def read_assignments(
    specification: str, source: ImageSource, num_clusters: int | None = None, noise: str | None = None
) -> PseudoLabels:
    """Pseudo-labels of a source from `FILE` or `FILE::key`.

    The file holds one cluster id per image of the source, or of the whole data set when the source is a subset of it,
    in data-set order; a CSV file with the columns `id` and `cluster` is matched by id, in any order; and so are
    pseudo-labels that this project wrote. `key` names the tensor or column.

    C is `num_clusters` where given, else what a key that ends in `clusters<C>` says, else the number of names or the
    highest id + 1, with a warning. With `noise="drop"` the images that are in no cluster are left out; see `settled`.
    Raises `UserError` over a file, key, length or value that does not fit.
    """
    path, key = file_and_key("assignments", specification)
    if is_artifact(path):
        labels = read_artifact_labels(path, key, num_clusters).select(source.ids)
        made = labels.meta.get(MADE_FOR, {})  # where it is another number of images, the ids alone must do
        same = [known for known in (source, source.undivided, source.whole) if len(known) == made.get("num_images")]
        if same and same[0].images_fingerprint != made["fingerprint"]:
            raise UserError(
                f"{path}: made for other images, of {made['name']} ({made['num_images']:,}), that have the same names "
                f"as those of {source.name}. Make pseudo-labels for these with: cedm cluster. Or, if you mean it, give "
                "a CSV file with the columns id and cluster (pseudo_labels.csv beside it), matched by name alone."
            )
        return labels
    found = read_cluster_ids(path, key, source.ids)
    cluster_ids, num_clusters = settled(path, found, num_clusters, noise)
    if len(cluster_ids) == source.total:
        cluster_ids = cluster_ids[source.positions]
    elif len(cluster_ids) == len(source.undivided):
        cluster_ids = cluster_ids[source.places]
    if len(cluster_ids) != len(source):
        whole = f", {source.total} in the whole data set" if source.total != len(source) else ""
        raise UserError(f"{path}: {len(cluster_ids)} cluster ids for {len(source)} images of {source.name}{whole}.")
    meta: dict[str, Any] = {"source": source.fingerprint, "assignments": path.name, "key": found.key}
    meta["sha256"] = file_digest(path)
    names = found.names
    if noise == "own" and bool((found.values == NOISE).any()):
        meta["noise"] = num_clusters - 1
        names = None if names is None else [*names, *[""] * (num_clusters - 1 - len(names)), "noise"]
    if names is not None:
        meta["cluster_names"] = names
    rows = (cluster_ids != NOISE).nonzero().flatten().tolist()
    if not rows:
        raise UserError(f"{path}: none of the {len(source):,} images of {source.name} is in a cluster.")
    ids = [source.ids[row] for row in rows]
    return PseudoLabels(cluster_ids[rows], num_clusters, torch.ones(len(rows)), ids, meta)


def settled(path: Path, found: ClusterIds, num_clusters: int | None, noise: str | None) -> tuple[Tensor, int]:
    """Cluster ids [M] and C, after it is decided what becomes of images that are in no cluster.

    Args:
        num_clusters: without the noise; None: see `clusters_of`.
        noise: own: they are one more cluster, the last; drop: they stay NOISE, to be left out.

    Raises:
        UserError: there are such images and nothing is decided, or an id is beyond C.
    """
    values = found.values
    if not bool((values != NOISE).any()):
        raise UserError(f"{path}: all {len(values):,} images are in no cluster (−1). Give another file.")
    is_noise = values == NOISE
    if noise is None and bool(is_noise.any()):
        raise UserError(
            f"{path}: {int(is_noise.sum()):,} of {len(values):,} images are in no cluster (−1, as HDBSCAN writes it). "
            "Set noise=own to make them one more cluster, or noise=drop to leave them out."
        )
    clusters = clusters_of(path, found.key, values, num_clusters or (None if found.names is None else len(found.names)))
    if noise == "own" and bool(is_noise.any()):
        return values.where(~is_noise, clusters), clusters + 1
    return values, clusters


def read_artifact_labels(path: Path, key: str, num_clusters: int | None) -> PseudoLabels:
    """Pseudo-labels that this project wrote, one set without a `key`, with C = `num_clusters` where given."""
    if key:
        raise UserError(f"{path}::{key}: these pseudo-labels are one set without a key. Give {path}, without ::{key}.")
    labels = PseudoLabels.load(path)
    return replace(labels, num_clusters=clusters_of(path, key, labels.cluster_ids, num_clusters or labels.num_clusters))


def clusters_of(path: Path, key: str, cluster_ids: Tensor, num_clusters: int | None) -> int:
    """C: `num_clusters` where given, else what a key that ends in `clusters<C>` says, else the highest id + 1.

    A seed may stand after it: `clusters<C>.seed<n>`. Raises `UserError` over a cluster id from C up.
    """
    highest = int(cluster_ids.max())
    in_key = re.search(r"clusters(\d{1,9})([._-]?seed\d+)?$", key)
    found = num_clusters or (int(in_key[1]) if in_key else highest + 1)
    if num_clusters is None and in_key is None:
        log.warning(
            "%s does not say how many clusters there are: taking the highest id + 1 = %d. Where some of the last "
            "clusters are empty, let its key end in clusters<C> (or set num_clusters=C for cedm score).",
            path.name,
            found,
        )
    if highest >= found:
        remedy = f"Set num_clusters={highest + 1} or more" if num_clusters else "Choose another key, or rename it"
        name, ids = f"{path}::{key}" if key else path, f"0 to {found - 1}"
        raise UserError(f"{name}: holds cluster id {highest}, but there are {found} clusters, {ids}. {remedy}.")
    return found


def made_for(source: ImageSource) -> dict[str, Any]:
    """What pseudo-labels remember of their images, to be kept in their `meta`."""
    description = {"name": source.name, "num_images": len(source), "fingerprint": source.images_fingerprint}
    return {MADE_FOR: description}
