"""The page of a single run: its numbers, its pictures, its curves, and the protocol of every number."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.images.images import ImageStore
from datamodules.images.sources import open_source
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.evaluation_summary import table_of_scores
from pipeline.evaluation.sampling import Sampler
from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.curves import history_chart, loss_chart
from pipeline.pictures.gallery import gallery_of
from pipeline.pictures.table import Table
from pipeline.running.condition import Condition
from pipeline.running.devices import device_of
from pipeline.running.run_files import denoiser_file
from pipeline.running.run_folder import SUMMARY_FILE, read_settings
from pipeline.studies.analysis import spread
from pipeline.studies.jobs import composed
from pipeline.studies.page import Page
from storage.errors import UserError

QUESTIONS = {
    "train": "What does this model generate, and how close is it to the data?",
    "cluster": "How do these clusters divide the images?",
    "score": "How good are these clusters?",
    "bound": "How many clusters are worth having?",
    "generate": "What does this model generate?",
    "evaluate": "How close are the generated images to the data?",
}
NAMES = {  # of numbers whose key says too little
    "num_clusters": "clusters asked for, C",
    "num_used": "clusters used",
    "utilization_ratio": "utilization ratio (clusters used / C)",
    "kl_from_uniform": "KL divergence from clusters of one size (nats)",
    **{name: f"{name.upper()} (%)" for name in ("nmi", "ami", "ari")},
    "accuracy": "accuracy (%)",
    "nimg": "training images seen",
    "num_images": "images",
    "loss": "training loss at the end",
    "batch_size": "batch size",
    "parameters": "parameters of the network",
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


def read_any_summary(folder: Path) -> dict[str, Any]:
    """The summary of whatever run lies in `folder`.

    Raises:
        UserError: there is no finished run.
    """
    file = folder / SUMMARY_FILE
    try:
        summary = json.loads(file.read_text())
        return {"command": summary["command"], "arguments": summary["arguments"], **summary}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"run={folder}: there is no {file}. Give the folder of a finished run or study, "
            "such as runs/digits/study-granularity/TIME."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}). Make it again with the run's command.") from error


def run_page(folder: Path, summary: Mapping[str, Any]) -> Page:
    """A single run: its numbers, its pictures, its curves, and what its command has beside them."""
    command = str(summary["command"])
    page = Page(
        title=f"{command}: {folder.resolve().name}",
        question=QUESTIONS.get(command, f"What did cedm {command} find?"),
        answer=[],
        facts={"run folder": str(folder)},
        tables=table_of_numbers(summary),
        pictures=pictures_in(folder),
        command=typed(summary),
    )
    of_its_own = PAGES.get(command)
    return of_its_own(page, folder, summary) if of_its_own is not None else page


def typed(summary: Mapping[str, Any]) -> str:
    """The command that made a run, for any machine."""
    return shlex.join(["cedm", summary["command"], *summary["arguments"]])


def train_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """The distance along the training, the gallery and the loss."""
    pictures, notes = pictures_of(folder)
    loss = loss_chart({folder.name: (folder, "temi")})
    page = replace(page, pictures=pictures, notes=notes, curves=[loss] if loss else [])
    if not (along := dict(summary.get("distances") or {})):
        return page
    name, points = along.pop("name"), along.pop("kimg_and_distance")
    kimg, distance = points[-1]
    counts = f"{along['num_generated']:,} generated images against {along['num_reference']:,} real ones"
    chart = history_chart("distance", points, "Distance against images seen", "kimg seen", f"{name} (lower is better)")
    chart = replace(chart, y_log=True, how="Every point is measured on the same sampling seeds.")
    return replace(
        page,
        answer=[f"After {kimg:g} kimg its {name} is {distance:.3g} ({counts})."],
        charts=[chart] if len(points) > 1 else [],
        protocols={name: along},
    )


def cluster_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """How many clusters are used, and the loss of TEMI's heads where they were trained here."""
    loss = loss_chart({folder.name: (folder, "temi")}, "TEMI loss", "optimizer steps")
    said = (
        [f"{summary['num_used']:,} of {summary['num_clusters']:,} clusters are used."] if "num_used" in summary else []
    )
    said += [f"Compared with the labels, their NMI is {summary['nmi']:.1f} %."] if "nmi" in summary else []
    return replace(page, answer=said, curves=[loss] if loss else [])


def bound_page(page: Page, folder: Path, summary: Mapping[str, Any]) -> Page:
    """The ratios of all clusterings; `bound.png` shows the same as the chart."""
    found = BoundFindings.from_summary(summary)
    facts = found.facts
    answer = [f"Upper bound: {facts['upper bound']}. Worth training: {facts['worth training']}."]
    return replace(
        page, answer=answer, facts={**facts, **page.facts}, charts=[found.chart()], tables=found.tables, pictures={}
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
    settings = (read_settings(folder) or {}).get("settings", {})
    sampled = {key: summary[key] for key in ("steps", "nimg", "sampler") if key in summary}
    sampled |= {key: settings[key] for key in ("num", "first_seed", "seeds", "clusters", "keep") if key in settings}
    return replace(page, protocols={"generated images": sampled})


PAGES: dict[str, Callable[[Page, Path, Mapping[str, Any]], Page]] = {
    "train": train_page,
    "cluster": cluster_page,
    "bound": bound_page,
    "evaluate": evaluate_page,
    "generate": generate_page,
}


def table_of_numbers(summary: Mapping[str, Any]) -> list[Table]:
    """All plain numbers of a summary, by the names that people use."""
    numbers = {key: one for key, one in summary.items() if isinstance(one, int | float) and not isinstance(one, bool)}
    rows = [
        [NAMES.get(key, key), f"{value:,}" if isinstance(value, int) else f"{value:.4g}"]
        for key, value in numbers.items()
    ]
    return [Table("The numbers of its summary.", ["what", "value"], rows)] if rows else []


def protocols_of(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Score → how it was measured; what all of several scores share is said once."""
    whole = {
        name: {**score["protocol"], "generated": as_one(score["protocol"]["generated"])}
        for name, score in scores.items()
    }
    if len(whole) == 1:
        return whole
    shared = as_one(list(whole.values()), differing=False)
    own: dict[str, tuple[str, dict[str, Any]]] = {}  # precision and recall, density and coverage share theirs
    for name, protocol in whole.items():
        rest = {key: value for key, value in protocol.items() if key not in shared}
        names, _ = own.get(str(rest), ("", {}))
        own[str(rest)] = f"{names}, {name}" if names else name, rest
    return {"all scores": shared, **{names: rest for names, rest in own.values() if rest}}


def as_one(parts: Sequence[Mapping[str, Any]], differing: bool = True) -> dict[str, Any]:
    """All descriptions in one: a value that differs from one to another is a list, or is left out."""
    values = {key: [one.get(key) for one in parts] for key in parts[0]}
    same = {key: all(value == found[0] for value in found) for key, found in values.items()}
    return {key: found[0] if same[key] else found for key, found in values.items() if differing or same[key]}


def pictures_in(folder: Path) -> dict[str, Image.Image]:
    """The PNG files that lie in the run's folder: those that have a caption first."""
    kinds, pictures = [*PICTURES, ""], {}
    of_kind = {path: path.stem.partition("-")[0] for path in sorted(folder.glob("*.png"))}
    for path, kind in sorted(of_kind.items(), key=lambda item: kinds.index(item[1] if item[1] in PICTURES else "")):
        _, _, position = path.stem.partition("-")  # nearest-2
        caption = PICTURES.get(kind, path.stem.replace("_", " ")) + (f", set {position}." if position else "")
        with Image.open(path) as image:
            pictures[caption] = image.convert("RGB")
    return pictures


def pictures_of(train_folder: Path, name: str = "") -> tuple[dict[str, Image.Image], list[str]]:
    """Real and generated images of a training run by their captions; or a note why they are no longer to be had."""
    try:
        summary = read_any_summary(train_folder)
        words = [text for text in summary["arguments"] if not text.startswith(("-", "run_dir=", "overwrite="))]
        settings = composed("train", words, origin=str(train_folder / SUMMARY_FILE))
        denoiser = Denoiser.from_pretrained(denoiser_file(train_folder, "run")).to(device_of("auto"))
        source, dataset = open_source(settings.dataset, settings.cache_dir), settings.dataset
        labels = Condition.of(settings).pseudo_labels(source) if denoiser.label_dim else None
        store = ImageStore(source, dataset.resolution, dataset.channels, memory_gb=0)
        pictures = gallery_of(denoiser, Sampler(settings.sampler), store, labels)
        return {f"{name}: {caption}" if name else caption: image for caption, image in pictures.items()}, []
    except UserError as error:
        return {}, [f"No gallery: {error}"]
