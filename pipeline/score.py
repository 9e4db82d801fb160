"""`cedm score`: cluster ids → how they use the clusters, how they agree with labels, and pictures of them."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from datamodules.artifacts import UserError, atomic_path, file_digest, file_stem, fingerprint
from datamodules.assignment_files import assignment_keys, is_artifact, label_key, read_cluster_ids, read_embeddings
from datamodules.embedding_map import EmbeddingMap, make_embedding_map
from datamodules.pseudo_labels import PseudoLabels, num_clusters_in_key, read_assignments
from datamodules.sources import ImageSource
from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization
from pipeline.cluster_pictures import map_of, thumbnails, write_pictures
from pipeline.command import command
from pipeline.inputs import embeddings_if_there, source_of
from pipeline.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary

COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")


@dataclass(frozen=True)
class Clustering:
    """Cluster ids of a file.

    Attributes:
        cluster_ids: int64 [N], in the file's order.
        num_clusters: C.
        of_images: the same by the images of the data set, for pictures; None where the file is about other images.
    """

    cluster_ids: Tensor
    num_clusters: int
    of_images: PseudoLabels | None


@command
def score(cfg: DictConfig) -> None:
    path, _, key = str(cfg.assignments).partition("::")
    source = source_of(cfg)
    clusterings = read_clusterings(Path(path), key, cfg.num_clusters, source)
    table = {name: score_one(cfg, Path(path), clustering, source) for name, clustering in clusterings.items()}
    text = as_csv(table)
    print(aligned(text))

    inputs = {"assignments": file_digest(path)}
    title = cfg.dataset.name
    cfg.dataset.name = Path(path).stem
    settings = run_settings(cfg, inputs, groups=("assignments", "labels", "num_clusters"))
    folder = choose_run_folder(cfg, "score", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        with atomic_path(folder / "scores.csv") as temporary:
            temporary.write_text(text)
        results = next(iter(table.values())) if len(table) == 1 else {"scores": table}
        write_summary(folder, "score", results, inputs)
        print(f"table       {folder / 'scores.csv'}")
        seen = {name: c.of_images for name, c in clusterings.items() if c.of_images is not None}
        if not seen:
            print(f"no pictures: dataset={title} has {len(source):,} other images. Type the data set of these.")
            return
        shown_map = map_for(cfg, source)
        for name, labels in seen.items():
            part = folder if len(clusterings) == 1 else folder / file_stem(name)
            pictures = write_pictures(part, labels, thumbnails(cfg, source), shown_map, f"{title}, {name}")
            print(f"pictures    {', '.join(map(str, pictures))}")


def read_clusterings(path: Path, key: str, num_clusters: int | None, source: ImageSource) -> dict[str, Clustering]:
    """The assignment `key`, or every one in the file, by name."""
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file. Give FILE or FILE::key.")
    if path.suffix == ".safetensors" and is_artifact(path):
        labels = PseudoLabels.load(path, remake="cedm cluster")
        clusters = num_clusters or labels.num_clusters
        return {path.stem: Clustering(labels.cluster_ids, clusters, of_images(path, key, source, clusters))}
    clusterings = {}
    for name in [key] if key else assignment_keys(path):
        cluster_ids, found = read_cluster_ids(path, name, ids=None)
        clusters = num_clusters or num_clusters_in_key(found) or int(cluster_ids.max()) + 1
        if int(cluster_ids.max()) >= clusters:
            raise UserError(
                f"{path}::{found} holds cluster id {int(cluster_ids.max())}, but num_clusters is {clusters}: "
                f"type num_clusters={int(cluster_ids.max()) + 1} or more."
            )
        shown = of_images(path, name, source, clusters)
        clusterings[found or path.stem] = Clustering(cluster_ids, clusters, shown)
    return clusterings


def of_images(path: Path, key: str, source: ImageSource, num_clusters: int) -> PseudoLabels | None:
    """The assignment of the data set's images; None where the file is about other images."""
    try:
        return read_assignments(f"{path}::{key}", source, num_clusters)
    except UserError:
        return None


def score_one(cfg: DictConfig, path: Path, clustering: Clustering, source: ImageSource) -> dict[str, float]:
    """The scores of one clustering, against `labels=`, the labels in its file, or those of the data set."""
    labels = labels_for(cfg, path, len(clustering.cluster_ids))
    if labels is not None:
        return scores(clustering.cluster_ids, clustering.num_clusters, labels)
    shown = clustering.of_images
    if shown is not None and len(shown) == len(clustering.cluster_ids):  # by the images' ids, not by the file's lines
        return scores(shown.cluster_ids, clustering.num_clusters, source.labels)
    return scores(clustering.cluster_ids, clustering.num_clusters, None)


def map_for(cfg: DictConfig, source: ImageSource) -> EmbeddingMap | None:
    """The map of `embeddings=`, else of the data set's embeddings in the cache; None where there are none."""
    if cfg.embeddings is None or cfg.map_images == 0:
        return map_of(cfg, embeddings_if_there(cfg, source))
    name, _, key = str(cfg.embeddings).partition("::")
    if not Path(name).is_file():
        raise UserError(f"embeddings={cfg.embeddings}: no such file. Give FILE or FILE::key.")
    values = read_embeddings(Path(name), key)
    if len(values) != len(source):
        raise UserError(f"embeddings={cfg.embeddings}: {len(values)} embeddings for {len(source)} images.")
    identity = fingerprint([file_digest(name), key])
    return make_embedding_map(values, identity, source.name, cfg.cache_dir, cfg.map_images)


def labels_for(cfg: DictConfig, path: Path, num_images: int) -> Tensor | None:
    """The true labels of the images, in the file's order: `labels=`, else those in the file itself; None without.

    Raises:
        UserError: `labels=` are those of another number of images.
    """
    if cfg.labels is None:
        key = label_key(path)
        return None if key is None else read_cluster_ids(path, key, ids=None)[0]
    label_path, _, label_name = str(cfg.labels).partition("::")
    if not Path(label_path).is_file():
        raise UserError(f"labels={cfg.labels}: no such file. Give FILE or FILE::key.")
    labels, _ = read_cluster_ids(Path(label_path), label_name or label_key(Path(label_path)) or "", ids=None)
    if len(labels) != num_images:
        raise UserError(f"labels={cfg.labels}: {len(labels)} labels for {num_images} cluster ids.")
    return labels


def scores(cluster_ids: Tensor, num_clusters: int, labels: Tensor | None) -> dict[str, float]:
    """One row of the table: use of the clusters and, with labels, agreement with them, in percent."""
    utilization = ClusterUtilization(num_clusters, sync_on_compute=False)  # rank 0 alone comes here
    utilization.update(cluster_ids)
    use = utilization.compute()
    row = {
        "num_clusters": num_clusters,
        "num_used": int(use["num_used"]),
        "utilization_ratio": float(use["utilization_ratio"]),
        "kl_from_uniform": float(use["kl_from_uniform"]),
    }
    if labels is not None:
        agreement = ClusteringScores(int(labels.max()) + 1, num_clusters, sync_on_compute=False)
        agreement.update(cluster_ids, labels)
        row |= {name: float(value) for name, value in agreement.compute().items() if name in COLUMNS[4:]}
    return row


def as_csv(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table with a line per assignment."""
    columns = [name for name in COLUMNS if name in next(iter(table.values()))]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["assignments", *columns])
    for name, row in table.items():
        writer.writerow(
            [name, *(row[column] if isinstance(row[column], int) else f"{row[column]:.6g}" for column in columns)]
        )
    return text.getvalue()


def aligned(text: str) -> str:
    """CSV text with its columns set to equal width, for the terminal."""
    rows = list(csv.reader(StringIO(text)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    score()
