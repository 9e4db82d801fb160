"""The page of a single run: what its command found, in words, with the protocol of every number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from pipeline.evaluation.evaluation_summary import number
from pipeline.evaluation.measures import HIGHER_IS_BETTER, NEITHER_IS_BETTER
from pipeline.pictures.chart import Chart, Series, colour_of
from pipeline.pictures.curves import CLUSTERING, loss_chart
from pipeline.running.run_folder import read_settings
from pipeline.studies.analysis import spread
from pipeline.studies.bound_evidence import bound_answer, bound_chart, bound_facts, bound_tables
from pipeline.studies.page import Page, Picture, Table, pictures_of, spelled, typed

QUESTIONS = {
    "train": "What does this model generate, and how close is it to the data?",
    "cluster": "How do these clusters divide the images?",
    "score": "How good are these clusters?",
    "bound": "How many clusters are worth having?",
    "generate": "What does this model generate?",
    "evaluate": "How close are the generated images to the data?",
}
# What the numbers of a summary are called, and their unit.
NUMBERS = {
    "num_clusters": ("clusters asked for, C", ""),
    "num_used": ("clusters used", ""),
    "utilization_ratio": ("utilization ratio (clusters used / C)", ""),
    "kl_from_uniform": ("KL divergence from clusters of one size", " nats"),
    "accuracy": ("accuracy", " %"),
    "nmi": ("NMI", " %"),
    "ami": ("AMI", " %"),
    "ari": ("ARI", " %"),
    "nimg": ("training images seen", ""),
    "num_images": ("images", ""),
    "loss": ("training loss at the end", ""),
    "batch_size": ("batch size", ""),
    "parameters": ("parameters of the network", ""),
    "steps": ("sampling steps", ""),
}
PICTURES = {  # in the order of a page
    "gallery": "Images of the largest clusters.",
    "clusters": "Sizes of the clusters, the largest first.",
    "map": "Map of the embeddings; the colours are clusters.",
    "utilization": "The utilization ratio along the training.",
    "distance": "The distance along the training.",
    "grid": "Generated images.",
    "nearest": "Generated images beside their nearest training images",
}
WIDE_PIXELS = 700  # from here on, text in a picture would be too small in half the page's width


def run_page(folder: Path, summary: Mapping[str, Any]) -> Page:
    """A single run: its numbers, its pictures, its curves, and what its command has beside them."""
    command = str(summary["command"])
    page = Page(
        title=f"{command}: {folder.resolve().name}",
        question=QUESTIONS.get(command, f"What did cedm {command} find?"),
        answer=[],
        facts={"run folder": str(folder)},
        tables=table_of_numbers(summary),
        gallery_title="Pictures",
        pictures=pictures_in(folder),
        command=typed(summary),
    )
    of_its_own = PAGES.get(command)
    return of_its_own(page, folder, summary) if of_its_own is not None else page


def train_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """The distance along the training, the gallery and the loss."""
    title, pictures, notes = pictures_of(folder)
    loss = loss_chart({folder.name: (folder, "temi")})
    page = replace(page, gallery_title=title, pictures=pictures, notes=notes, curves=[loss] if loss else [])
    along = summary.get("distances")
    if not along:
        return page
    kimg, distance = along["kimg_and_distance"][-1]
    name, real = along["name"], along["num_reference"]
    protocol = {key: value for key, value in along.items() if key not in ("name", "kimg_and_distance")}
    return replace(
        page,
        answer=[
            f"After {kimg:g} kimg its {name} is {distance:.3g} ({along['num_generated']:,} generated images against "
            f"{real:,} real ones)."
        ],
        charts=[distance_chart(along, folder.name)] if len(along["kimg_and_distance"]) > 1 else [],
        protocols={name: spelled(protocol)},
    )


def cluster_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """How many clusters are used, and the loss of TEMI's heads where they were trained here."""
    loss = loss_chart({folder.name: (folder, "temi")}, CLUSTERING)
    said = f"{summary['num_used']:,} of {summary['num_clusters']:,} clusters are used." if "num_used" in summary else ""
    if "nmi" in summary:
        said += f" Compared with the labels, their NMI is {summary['nmi']:.1f} %."
    return replace(page, answer=[said] if said else [], curves=[loss] if loss else [])


def bound_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """The ratios of all clusterings; `bound.png` shows the same as the chart."""
    return replace(
        page,
        answer=bound_answer(summary),
        facts={**bound_facts(summary), **page.facts},
        charts=[bound_chart(summary)],
        tables=[Table(*table) for table in bound_tables(summary)],
        pictures=[],
    )


def evaluate_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """Every score on every set, and the protocol of each."""
    scores = summary["scores"]
    name, first = next(iter(scores.items()))
    generated, reference = first["protocol"]["generated"], first["protocol"]["reference"]
    sets = f"on average over {len(generated)} sets of" if len(generated) > 1 else "of"
    real = f" against {reference['num_images']:,} real ones" if reference and reference["num_images"] else ""
    return replace(
        page,
        answer=[f"{name} is {spread(first['sets'])}, {sets} {generated[0]['num_images']:,} generated images{real}."],
        tables=[table_of_scores(scores)],
        protocols=protocols_of(scores),
        notes=summary["notes"],
    )


def generate_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """How the images were sampled."""
    sampler = {key: summary[key] for key in ("steps", "nimg", "sampler") if key in summary}
    settings = (read_settings(folder) or {}).get("settings", {})
    asked = {key: settings[key] for key in ("num", "first_seed", "seeds", "clusters", "keep") if key in settings}
    return replace(page, protocols={"generated images": spelled({**sampler, **asked})})


PAGES: dict[str, Callable[[Page, Path, Mapping[str, Any]], Page]] = {
    "train": train_page,
    "cluster": cluster_page,
    "bound": bound_page,
    "evaluate": evaluate_page,
    "generate": generate_page,
}


def table_of_numbers(summary: Mapping[str, Any]) -> list[Table]:
    """All plain numbers of a summary, by the names that people use."""
    rows = []
    for key, value in summary.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            name, unit = NUMBERS.get(key, (key if key.startswith(("fd", "fid")) else key.replace("_", " "), ""))
            digits = f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if unit == " %" else f"{value:.4g}"
            rows.append([name, digits + unit])
    return [Table("The numbers of its summary.", ["what", "value"], rows)] if rows else []


def table_of_scores(scores: Mapping[str, Any]) -> Table:
    """A line for each score: its value on every set, the best and the mean of them."""
    count = len(next(iter(scores.values()))["sets"])
    rows = []
    for name, score in scores.items():
        better = "" if name in NEITHER_IS_BETTER else " ↑" if name in HIGHER_IS_BETTER else " ↓"
        deviations = score.get("std_within_set")
        within = f" ± {fmean(deviations):.2g}" if deviations else ""
        summed_up = [number(score["best"]), number(score["mean"]) + within] if count > 1 else []
        values = [number(value) + ("" if summed_up else within) for value in score["sets"]]
        rows.append([name + better, *values, *summed_up])
    header = ["score", *(f"set {position}" for position in range(1, count + 1)), *(["best", "mean"] * (count > 1))]
    bars = " ±: standard deviation within a set." if any("std_within_set" in score for score in scores.values()) else ""
    return Table(f"Every score on every set of generated images; ↓: lower is better, ↑: higher.{bars}", header, rows)


def protocols_of(scores: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Score → how it was measured; what all of several scores share is said once."""
    whole = {
        name: {**score["protocol"], "generated": as_one(score["protocol"]["generated"])}
        for name, score in scores.items()
    }
    if len(whole) == 1:
        return {name: spelled(protocol) for name, protocol in whole.items()}
    first = next(iter(whole.values()))
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in whole.values())}
    own: list[tuple[str, dict[str, Any]]] = []
    for name, protocol in whole.items():
        rest = {key: value for key, value in protocol.items() if key not in shared}
        if own and own[-1][1] == rest:  # precision and recall, density and coverage
            own[-1] = f"{own[-1][0]}, {name}", rest
        else:
            own.append((name, rest))
    return {"all scores": spelled(shared), **{names: spelled(rest) for names, rest in own if rest}}


def as_one(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The descriptions of all sets in one: a value that differs from set to set is a list."""
    values = {key: [one.get(key) for one in sets] for key in sets[0]}
    return {key: found[0] if all(value == found[0] for value in found) else found for key, found in values.items()}


def distance_chart(along: Mapping[str, Any], name: str) -> Chart:
    """The distance along one training."""
    points = along["kimg_and_distance"]
    series = Series(name, [x for x, _ in points], [y for _, y in points], colour=colour_of("temi"))
    return Chart(
        name="distance",
        title="Distance against images seen",
        x_name="thousand training images seen",
        y_name=f"{along['name']} (lower is better)",
        series=[series],
        how="Every point is measured on the same sampling seeds.",
        y_log=True,
    )


def pictures_in(folder: Path) -> list[Picture]:
    """The PNG files that lie in the run's folder: those that have a caption first."""
    kinds, pictures = list(PICTURES), []

    def place(path: Path) -> int:
        kind = path.stem.partition("-")[0]
        return kinds.index(kind) if kind in PICTURES else len(kinds)

    for path in sorted(sorted(folder.glob("*.png")), key=place):
        kind, _, position = path.stem.partition("-")  # nearest-2
        caption = PICTURES.get(kind, path.stem.replace("_", " ")) + (f", set {position}." if position else "")
        with Image.open(path) as image:
            pictures.append(Picture(caption, image.convert("RGB"), wide=image.width >= WIDE_PIXELS))
    return pictures
