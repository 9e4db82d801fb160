"""`cedm score`: cluster ids → how they use the clusters, how they agree with labels, and pictures of them."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from datamodules.embeddings.map import EmbeddingMap, make_embedding_map
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.assignment_files import (
    assignment_keys,
    ids_in_csv,
    is_artifact,
    label_key,
    read_cluster_ids,
    read_embeddings,
)
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, clusters_of, read_artifact_labels, read_assignments
from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization
from pipeline.pictures.cluster_pictures import map_of, thumbnails, write_pictures
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.command import command
from pipeline.settings.inputs import embeddings_if_there, source_of
from storage.digests import file_digest
from storage.errors import UserError
from storage.files import atomic_path
from storage.fingerprints import file_stem, fingerprint

COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")


@dataclass(frozen=True)
class Clustering:
    """Cluster ids of a file.

    Attributes:
        cluster_ids: int64 [N], in the file's order.
        num_clusters: C.
        ids: the N images' ids; None where the file holds none, and is in data-set order.
        of_images: the clusters of the data set's images; None where the file is about other images.
        problem: why it is about others.
    """

    cluster_ids: Tensor
    num_clusters: int
    ids: list[str] | None
    of_images: PseudoLabels | None
    problem: str = ""


@command
def score(cfg: DictConfig) -> None:
    if cfg.assignments is None:
        raise UserError("assignments must be given. Type assignments=FILE, or FILE::KEY for one clustering of several.")
    path, _, key = str(cfg.assignments).partition("::")
    source = source_of(cfg)
    clusterings = read_clusterings(Path(path), key, cfg.num_clusters, source)
    table = {name: score_one(cfg, Path(path), clustering, source) for name, clustering in clusterings.items()}
    text = as_csv(table)
    print(aligned(text))

    inputs = {"assignments": file_digest(path), "dataset": source.fingerprint}
    if cfg.labels is not None:
        inputs["labels"] = file_digest(label_file(cfg)[0])
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
        for problem in dict.fromkeys(c.problem for c in clusterings.values() if c.problem):
            print(f"no pictures, and no labels of dataset={title}: {problem}. Type the data set of these images.")
        if not seen:
            return
        shown_map = map_for(cfg, source)
        images = thumbnails(source, cfg.dataset.resolution, cfg.dataset.channels)
        for name, labels in seen.items():
            part = folder if len(clusterings) == 1 else folder / file_stem(name)
            pictures = write_pictures(part, labels, images, shown_map, f"{title}, {name}")
            print(f"pictures    {', '.join(map(str, pictures))}")


def read_clusterings(path: Path, key: str, num_clusters: int | None, source: ImageSource) -> dict[str, Clustering]:
    """The assignment `key`, or every one in the file, by name."""
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file. Give FILE or FILE::key.")
    if path.suffix == ".safetensors" and is_artifact(path):
        labels = read_artifact_labels(path, key, num_clusters)
        return {path.stem: clustering_of(path, "", labels.cluster_ids, labels.num_clusters, labels.ids, source)}
    clusterings, ids = {}, ids_in_csv(path)
    for name in [key] if key else assignment_keys(path):
        cluster_ids, found = read_cluster_ids(path, name, ids=None)
        clusters = clusters_of(path, found, cluster_ids, num_clusters)
        clusterings[found or path.stem] = clustering_of(path, name, cluster_ids, clusters, ids, source)
    return clusterings


def clustering_of(
    path: Path, key: str, cluster_ids: Tensor, num_clusters: int, ids: list[str] | None, source: ImageSource
) -> Clustering:
    """A clustering, with what it says of the data set's images where it knows them all."""
    try:
        known = read_assignments(f"{path}::{key}", source, num_clusters)
    except UserError as error:
        return Clustering(cluster_ids, num_clusters, ids, None, str(error).rstrip("."))
    return Clustering(cluster_ids, num_clusters, ids, known)


def score_one(cfg: DictConfig, path: Path, clustering: Clustering, source: ImageSource) -> dict[str, float]:
    """The scores of one clustering, against `labels=`, the labels in its file, or those of the data set."""
    labels, known = labels_for(cfg, path, clustering, source), clustering.of_images
    if labels is not None or known is None:
        return scores(clustering.cluster_ids, clustering.num_clusters, labels)
    if len(known) < len(clustering.cluster_ids):
        print(
            f"{path} knows {len(clustering.cluster_ids):,} images; scored are the {len(known):,} of "
            f"dataset={source.name}. labels=FILE, in the file's order or by id, scores all."
        )
    return scores(known.cluster_ids, known.num_clusters, source.labels)  # by the images' ids, not by the file's lines


def map_for(cfg: DictConfig, source: ImageSource) -> EmbeddingMap | None:
    """The map of `embeddings=`, else of the data set's embeddings in the cache; None where there are none."""
    if cfg.embeddings is None or cfg.map_images == 0:
        return map_of(embeddings_if_there(cfg, source), cfg.cache_dir, cfg.map_images)
    name, _, key = str(cfg.embeddings).partition("::")
    if not Path(name).is_file():
        raise UserError(f"embeddings={cfg.embeddings}: no such file. Give FILE or FILE::key.")
    values = read_embeddings(Path(name), key)
    if len(values) != len(source):
        raise UserError(f"embeddings={cfg.embeddings}: {len(values)} embeddings for {len(source)} images.")
    identity = fingerprint([file_digest(name), key])
    return make_embedding_map(values, identity, source.name, cfg.cache_dir, cfg.map_images)


def label_file(cfg: DictConfig) -> tuple[Path, str]:
    """The file and the key of `labels=`."""
    name, _, key = str(cfg.labels).partition("::")
    if not Path(name).is_file():
        raise UserError(f"labels={cfg.labels}: no such file. Give FILE or FILE::key.")
    return Path(name), key or label_key(Path(name)) or ""


def labels_for(cfg: DictConfig, path: Path, clustering: Clustering, source: ImageSource) -> Tensor | None:
    """The true labels of the images, in the file's order: `labels=`, else those in the file itself; None without.

    Raises:
        UserError: `labels=` are those of other images, or it cannot be told which label is whose.
    """
    if cfg.labels is None:
        key = label_key(path)
        return None if key is None else read_cluster_ids(path, key, ids=None)[0]
    file, key = label_file(cfg)
    ids, label_ids, known = clustering.ids, ids_in_csv(file), clustering.of_images
    if label_ids is not None and ids is None and known is not None and len(known) == len(clustering.cluster_ids):
        ids = source.ids if set(source.ids) <= set(label_ids) else None
    if label_ids is not None and ids is not None:
        return read_cluster_ids(file, key, ids)[0]
    for given, other, some in (("assignments", "labels", ids), ("labels", "assignments", label_ids)):
        if some is not None and some != source.ids and some != sorted(some):
            raise UserError(
                f"{given}={cfg[given]} has image ids in an order of its own and {other}={cfg[other]} has none, so it "
                "cannot be told which label is whose. Give both as CSV files with a column id, or sort the lines by id."
            )
    labels, _ = read_cluster_ids(file, key, ids=None)
    if len(labels) != len(clustering.cluster_ids):
        raise UserError(f"labels={cfg.labels}: {len(labels)} labels for {len(clustering.cluster_ids)} cluster ids.")
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
    columns = [name for name in COLUMNS if any(name in row for row in table.values())]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["assignments", *columns])
    for name, row in table.items():
        values = [row.get(column, "") for column in columns]  # one clustering may have labels, and another none
        writer.writerow([name, *(f"{value:.6g}" if isinstance(value, float) else value for value in values)])
    return text.getvalue()


def aligned(text: str) -> str:
    """CSV text with its columns set to equal width, for the terminal."""
    rows = list(csv.reader(StringIO(text)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    score()
