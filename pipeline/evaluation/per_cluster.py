"""The distance cluster by cluster, and the table and the chart of the worst.

A Fréchet distance is no use here: it estimates D² / 2 numbers from the tens or hundreds of images of a cluster, and
falls with their number, which differs from cluster to cluster. The unbiased kernel distance has the same expectation
for any number, so that clusters compare, and on few images its error says how little they tell.
"""

from collections.abc import Mapping, Sequence
from math import hypot
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from datamodules.images.reader import UNLABELLED
from metrics.kernel import kernel_distance_of_all
from pipeline.pictures.chart import Chart, Series
from pipeline.pictures.table import Table

FEWEST = 10  # images of a cluster on either side, below which it is left out
WORST, BARS = 10, 40  # clusters in the terminal's table, and in the page's chart
WITHIN_95 = 1.96  # standard errors


def counted(ours: Tensor, theirs: Tensor) -> dict[int, list[int]]:
    """Cluster → how many of its images there are, generated and real."""
    clusters, which = torch.cat([ours, theirs]).unique(return_inverse=True)
    counts = (part.bincount(minlength=len(clusters)).tolist() for part in which.split([len(ours), len(theirs)]))
    return {cluster: both for cluster, *both in zip(clusters.tolist(), *counts, strict=True) if cluster != UNLABELLED}


def distances_of_clusters(clusters: tuple[Tensor, Tensor], ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """The kernel distance of every cluster that has enough images, and which are left out.

    Args:
        clusters: of each image of both sides, [N] and [M].
        ours, theirs: their features, [N, D] and [M, D].
    """
    own, real = (ids.to(ours.device) for ids in clusters)
    measured, left_out = [], []
    for cluster, (generated_images, real_images) in counted(*clusters).items():
        row: dict[str, Any] = {"cluster": cluster, "generated": generated_images, "real": real_images}
        if min(generated_images, real_images) < FEWEST:
            left_out.append(row)
            continue
        found = kernel_distance_of_all(ours[own == cluster], theirs[real == cluster])
        measured.append({**row, "distance": found.value, "error": found.error})
    return {"clusters": measured, "left_out": left_out}


def clusters_in(results: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, Any] | None:
    """What all sets say of each cluster, the worst first: the mean of its distances. None where it was not asked for.

    A cluster that a set has too few images of is left out.
    """
    reports = [score["report"] for result in results for name, score in result["scores"].items() if is_mean(name)]
    if not reports:
        return None
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for report in reports:
        for row in (*report["clusters"], *report["left_out"]):
            rows.setdefault(row["cluster"], []).append(row)
    measured, left_out = [], []
    for cluster, several in rows.items():
        name = {"name": names[cluster]} if cluster in names else {}
        total = {"cluster": cluster, **name, "generated": sum(row["generated"] for row in several)}
        total["real"] = several[0]["real"]
        if len(several) < len(reports) or any("distance" not in row for row in several):
            left_out.append(total)
            continue
        distance, error = fmean(row["distance"] for row in several), hypot(*(row["error"] for row in several))
        measured.append({**total, "distance": distance, "error": error / len(several)})
    measured.sort(key=lambda row: row["distance"], reverse=True)
    return {"clusters": measured, "left_out": sorted(left_out, key=lambda row: row["cluster"])}


def is_mean(score: str) -> bool:
    """Whether a score is the mean over the clusters."""
    return score.startswith("kd_per_cluster")


def name_in(row: Mapping[str, Any]) -> str:
    """A cluster with its name, where it has one beyond its number."""
    return " ".join(dict.fromkeys([str(row["cluster"]), row.get("name", str(row["cluster"]))]))


def table_of_clusters(found: Mapping[str, Any], most: int | None = None) -> Table:
    """The worst clusters, at most so many, and in the caption which are left out."""
    shown, left_out = found["clusters"][:most], found["left_out"]
    which = f"the worst {len(shown)} of {len(found['clusters']):,} clusters" if most else "all clusters, worst first"
    caption = f"Kernel distance, {which}; 95 %: how far that of other images may lie from it."
    if left_out:
        listed = ", ".join(map(name_in, left_out[:WORST])) + (" …" if len(left_out) > WORST else "")
        caption += f" Left out, with fewer than {FEWEST} images on a side: {len(left_out):,} ({listed})."
    rows = [
        [
            name_in(row),
            f"{row['distance']:.3g}",
            f"± {WITHIN_95 * row['error']:.2g}",
            f"{row['generated']:,}",
            f"{row['real']:,}",
        ]
        for row in shown
    ]
    return Table(caption, ["cluster", "kernel distance ↓", "95 %", "generated", "real"], rows)


def chart_of_clusters(found: Mapping[str, Any]) -> Chart:
    """Bars of the worst clusters, with the table of all."""
    shown, worst = found["clusters"][:BARS], found["clusters"][0]
    names, errors = [name_in(row) for row in shown], [WITHIN_95 * row["error"] for row in shown]
    bars = Series("generated images against real ones", names, [row["distance"] for row in shown], errors, "bars")
    return Chart(
        "per_cluster",
        "Distance of each cluster",
        "cluster",
        "kernel distance (lower is better)",
        [bars],
        f"Farthest from its real images is cluster {name_in(worst)}: {worst['distance']:.3g} ± {errors[0]:.2g}.",
        "Unbiased squared MMD of a cluster's generated images to its real ones; below 0: nearer to them than other "
        f"real images would be. Bars: 95 %.{f' The {BARS} worst.' if len(found['clusters']) > BARS else ''}",
        table_of_clusters(found),
    )
