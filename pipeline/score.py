"""`cedm score`: cluster ids → how they use the clusters, and how they agree with labels."""

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from datamodules.artifacts import UserError, atomic_path, file_digest
from datamodules.assignment_files import assignment_keys, is_artifact, label_key, read_cluster_ids
from datamodules.pseudo_labels import PseudoLabels, num_clusters_in_key
from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization
from pipeline.command import command
from pipeline.inputs import source_of
from pipeline.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary

COLUMNS = ("num_clusters", "num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")


@command
def score(cfg: DictConfig) -> None:
    path, _, key = str(cfg.assignments).partition("::")
    clusterings = read_clusterings(Path(path), key, cfg.num_clusters)
    table = {}
    for name, (cluster_ids, num_clusters) in clusterings.items():
        table[name] = scores(cluster_ids, num_clusters, labels_for(cfg, Path(path), len(cluster_ids)))
    text = as_csv(table)
    print(aligned(text))

    inputs = {"assignments": file_digest(path)}
    cfg.dataset.name = Path(path).stem
    settings = run_settings(cfg, inputs, groups=("assignments", "labels", "num_clusters"))
    folder = choose_run_folder(cfg, "score", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        with atomic_path(folder / "scores.csv") as temporary:
            temporary.write_text(text)
        results = next(iter(table.values())) if len(table) == 1 else {"scores": table}
        write_summary(folder, "score", results, inputs)
    print(f"table       {folder / 'scores.csv'}")


def read_clusterings(path: Path, key: str, num_clusters: int | None) -> dict[str, tuple[Tensor, int]]:
    """Cluster ids int64 [N] and C of the assignment `key`, or of every one in the file."""
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file. Give FILE or FILE::key.")
    if path.suffix == ".safetensors" and is_artifact(path):
        labels = PseudoLabels.load(path, remake="cedm cluster")
        return {path.stem: (labels.cluster_ids, num_clusters or labels.num_clusters)}
    clusterings = {}
    for name in [key] if key else assignment_keys(path):
        cluster_ids, found = read_cluster_ids(path, name, ids=None)
        clusters = num_clusters or num_clusters_in_key(found) or int(cluster_ids.max()) + 1
        if int(cluster_ids.max()) >= clusters:
            raise UserError(
                f"{path}::{found} holds cluster id {int(cluster_ids.max())}, but num_clusters is {clusters}: "
                f"type num_clusters={int(cluster_ids.max()) + 1} or more."
            )
        clusterings[found or path.stem] = cluster_ids, clusters
    return clusterings


def labels_for(cfg: DictConfig, path: Path, num_images: int) -> Tensor | None:
    """The true labels of the images: `labels=`, else those in the file of the assignments, else the data set's.

    Raises:
        UserError: `labels=` are those of another number of images.
    """
    if cfg.labels is None:
        key = label_key(path)
        if key is None:
            source = source_of(cfg)
            return source.labels if len(source) == num_images else None
        return read_cluster_ids(path, key, ids=None)[0]
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
