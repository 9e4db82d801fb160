"""`cedm score`: cluster ids → how they use the clusters, how they agree with labels, and pictures of them."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from datamodules.images.sources import ImageSource, open_source
from datamodules.plain_files import file_and_key
from datamodules.pseudo_labels.assignment_files import (
    NOISE,
    assignment_keys,
    ids_in_csv,
    is_artifact,
    label_key,
    read_cluster_ids,
    read_true_labels,
)
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, read_artifact_labels, read_assignments, settled
from pipeline.pictures.cluster_pictures import thumbnails, write_pictures
from pipeline.pictures.table import Table, write_csv
from pipeline.running.cluster_scores import COLUMNS, cluster_scores
from pipeline.running.condition import Condition
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.schemas import ScoreSettings
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import file_stem


@dataclass(frozen=True)
class Clustering:
    """Cluster ids of a file."""

    cluster_ids: Tensor  # int64 [N], in the file's order; NOISE where an image is left out
    num_clusters: int  # C
    ids: list[str] | None  # of the N images; None where they are not known
    of_images: PseudoLabels | None  # the clusters of the data set's images; None where the file is about other images
    problem: str = ""  # why it is about others


def score(settings: ScoreSettings) -> None:
    """Score one clustering of a file, or all that it holds, and picture those of the data set's images."""
    (path, key), dataset = file_and_key("assignments", settings.assignments), settings.dataset
    source = open_source(dataset, settings.cache_dir, without_images=True)
    clusterings = read_clusterings(path, key, settings.num_clusters, source, settings.noise)
    scores = {name: score_one(path, clustering, settings.labels, source) for name, clustering in clusterings.items()}
    columns = [column for column in COLUMNS if any(column in row for row in scores.values())]  # one may have no labels
    rows = [{"assignments": name, **{key: row.get(key, "") for key in columns}} for name, row in scores.items()]
    cells = [[f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    caption = f"scores of {path}"
    if "num_labelled" in rows[0]:
        caption += "; agreement is over the images that have a label, num_labelled"
    print(Table(caption, list(rows[0]), cells).as_text())

    inputs = {"assignments": file_digest(path), "dataset": source.fingerprint}
    if settings.labels is not None:
        inputs["labels"] = file_digest(file_and_key("labels", settings.labels)[0])
    run = run_settings(settings, inputs, ("assignments", "labels", "num_clusters"))
    folder = choose_run_folder(settings.run_dir, runs_of(path.stem, "score"), run, settings.overwrite)
    with opened_run_folder(folder, run, settings.overwrite):
        write_csv(folder / "scores.csv", rows)
        results = next(iter(scores.values())) if len(scores) == 1 else {"scores": scores}
        write_summary(folder, "score", results, inputs)
        print(f"table       {folder / 'scores.csv'}")
        for problem in dict.fromkeys(c.problem for c in clusterings.values() if c.problem):
            print(f"no pictures, and no labels of dataset={dataset.name}: {problem}. Set dataset= to theirs.")
        seen = {name: c.of_images for name, c in clusterings.items() if c.of_images is not None}
        if not seen:
            return
        whole = Condition.of(settings).mapped(source, settings.map_images)
        page_images = settings.page_images if len(clusterings) == 1 else 0
        for name, labels in seen.items():
            some = source.only(labels.ids)
            images = thumbnails(some, dataset.resolution, dataset.channels)
            shown = whole if whole is None or some is source else whole.only(labels.rows_in(source.ids))
            part = folder if len(clusterings) == 1 else folder / file_stem(name)
            names, title = Condition.of(settings).names(labels), f"{dataset.name}, {name}"
            pictures = write_pictures(part, labels, images, shown, title, names, page_images, settings.loggers)
            print(f"pictures    {', '.join(map(str, pictures))}")


def read_clusterings(
    path: Path, key: str, num_clusters: int | None, source: ImageSource, noise: str | None
) -> dict[str, Clustering]:
    """The assignment `key`, or every one in the file, by name."""
    if is_artifact(path):
        labels = read_artifact_labels(path, key, num_clusters)
        return {path.stem: clustering_of(path, "", labels.cluster_ids, labels.num_clusters, labels.ids, source)}
    clusterings, ids = {}, ids_in_csv(path)
    for name in [key] if key else assignment_keys(path):
        found = read_cluster_ids(path, name, ids=None)
        cluster_ids, clusters = settled(path, found, num_clusters, noise)
        there = noise if bool((found.values == NOISE).any()) else None
        clusterings[found.key or path.stem] = clustering_of(path, name, cluster_ids, clusters, ids, source, there)
    return clusterings


def clustering_of(
    path: Path,
    key: str,
    cluster_ids: Tensor,
    num_clusters: int,
    ids: list[str] | None,
    source: ImageSource,
    noise: str | None = None,
) -> Clustering:
    """A clustering, with what it says of the data set's images where it knows them all."""
    try:
        known = read_assignments(f"{path}::{key}", source, num_clusters - (noise == "own"), noise)
    except UserError as error:
        return Clustering(cluster_ids, num_clusters, ids, None, str(error).rstrip("."))
    in_its_order = source.ids if len(source) == len(cluster_ids) else None
    known = replace(known, num_clusters=num_clusters)  # of the whole file, of which these may have no noise
    return Clustering(cluster_ids, num_clusters, ids or in_its_order, known)


def score_one(path: Path, clustering: Clustering, labels_setting: str | None, source: ImageSource) -> dict[str, float]:
    """The scores of one clustering, against `labels=`, the labels in its file, or those of the data set."""
    labels, known = labels_for(path, clustering, labels_setting, source), clustering.of_images
    if labels is not None or known is None:
        kept = clustering.cluster_ids != NOISE
        of_kept = None if labels is None else labels[kept]
        return cluster_scores(clustering.cluster_ids[kept], clustering.num_clusters, of_kept)
    if len(source) < len(clustering.cluster_ids):
        print(
            f"{path} knows {len(clustering.cluster_ids):,} images; scored are the {len(source):,} of "
            f"dataset={source.name}. labels=FILE, in the file's order or by id, scores all."
        )
    if source.labels is None and source.labels_note:
        print(f"no labels of dataset={source.name}: {source.labels_note}")
    # By the images' ids, not by the file's lines.
    return cluster_scores(known.cluster_ids, known.num_clusters, source.only(known.ids).labels)


def labels_for(path: Path, clustering: Clustering, setting: str | None, source: ImageSource) -> Tensor | None:
    """The true labels of the images, in the file's order: `labels=`, else those in the file itself; None without.

    Raises:
        UserError: `labels=` are those of other images, or it cannot be told which label is whose.
    """
    if setting is None:
        own = label_key(path)
        if own is None:
            return None
        found = read_true_labels(path, own, ids=None)
        if found.values is None or len(found.values) != len(clustering.cluster_ids):
            count = "" if found.values is None else f"{len(found.values)} for {len(clustering.cluster_ids)} cluster ids"
            print(f"labels {own} are left out: {found.note or count}")
            return None
        return found.values
    file, key = file_and_key("labels", setting)
    ids, label_ids = clustering.ids, ids_in_csv(file)
    if ids is None or label_ids is None:  # by their order, where that is no order of one side's own
        for name, some in (("assignments", ids), ("labels", label_ids)):
            if some is not None and some != source.ids and some != sorted(some):
                raise UserError(
                    f"{name}= has image ids in an order of its own and the other file has none, so it cannot be told "
                    "which label is whose. Give both as CSV files with a column id, or sort the lines by id."
                )
    labels = read_true_labels(file, key or label_key(file) or "", ids)
    if labels.values is None:
        raise UserError(f"labels={setting}: no labels. {labels.note}.")
    if len(labels.values) != len(clustering.cluster_ids):
        raise UserError(f"labels={setting}: {len(labels.values)} labels for {len(clustering.cluster_ids)} cluster ids.")
    return labels.values
