"""The page of a single run: its numbers, its pictures, its curves, and the protocol of every number."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.images.decoding import load_image
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import open_source
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.evaluation_summary import table_of_scores
from pipeline.evaluation.generated import name_clusters
from pipeline.evaluation.per_cluster import chart_of_clusters
from pipeline.evaluation.sampling import Sampler
from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.curves import held_out_chart, history_chart, loss_chart
from pipeline.pictures.gallery import gallery_of
from pipeline.pictures.table import Table
from pipeline.running.condition import Condition
from pipeline.running.devices import device_of
from pipeline.running.finished_run import read_any_summary, settings_of
from pipeline.running.run_files import denoiser_file
from pipeline.running.run_folder import read_settings
from pipeline.studies.analysis import spread
from pipeline.studies.page import Page
from pipeline.studies.results import as_one
from storage.errors import UserError

Parts = dict[str, Any]  # of a page, by their names
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
PICTURES = {  # by the names of their files, in the order of a page
    "data": "Some of the images.",
    "gallery": "Images of the largest clusters.",
    "clusters": "Sizes of the clusters, the largest first.",
    "map": "Map of the embeddings; the colours are clusters.",
    "utilization": "The utilization ratio along the training.",
    "grid": "Generated images.",
    "nearest": "Generated images beside their nearest training images",
}


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
    return replace(page, **PARTS[command](folder, summary)) if command in PARTS else page


def typed(summary: Mapping[str, Any]) -> str:
    """The command that made a run, for any machine."""
    return shlex.join(["cedm", summary["command"], *summary["arguments"]])


def of_training(folder: Path, summary: Mapping[str, Any]) -> Parts:
    """The distance along the training, the gallery and the loss."""
    pictures, notes = pictures_of(folder, summary)
    curves = loss_chart({folder.name: (folder, "temi")})
    if curves:  # the page has one loss: not the summary's too, which is averaged in another way
        summary = {**summary, "loss": curves[0].series[0].y[-1]}
    parts: Parts = {"pictures": pictures, "notes": notes, "curves": curves, "tables": table_of_numbers(summary)}
    if along := dict(summary.get("distances") or {}):
        name, points = along.pop("name"), along.pop("kimg_and_distance")
        kimg, distance = points[-1]
        counts = f"{along['num_generated']:,} generated images against {along['num_reference']:,} real ones"
        y_name = f"{name} (lower is better)"
        chart = history_chart("distance", points, "Distance against images seen", "kimg seen", y_name)
        how = "Every point is measured on the same sampling seeds."
        parts["charts"] = [replace(chart, y_log=True, how=how)] if len(points) > 1 else []
        parts |= {
            "answer": [f"After {kimg:g} kimg its {name} is {distance:.3g} ({counts})."],
            "protocols": {name: along},
        }
    if held_out := summary.get("held_out"):
        chart = held_out_chart(held_out)
        parts["curves"] = [chart, *curves]
        parts["answer"] = [*parts.get("answer", []), f"{chart.title}: {chart.finding[0].lower()}{chart.finding[1:]}"]
    return parts


def of_clustering(folder: Path, summary: Mapping[str, Any]) -> Parts:
    """How many clusters are used, and the loss of TEMI's heads where they were trained here."""
    said = []
    if "num_used" in summary:
        said.append(f"{summary['num_used']:,} of {summary['num_clusters']:,} clusters are used.")
    if "nmi" in summary:
        said.append(f"Compared with the labels, their NMI is {summary['nmi']:.1f} %.")
    return {"answer": said, "curves": loss_chart({folder.name: (folder, "temi")}, "TEMI loss")}


def of_bound(folder: Path, summary: Mapping[str, Any]) -> Parts:
    """The ratios of all clusterings."""
    found = BoundFindings.from_summary(summary)
    facts = found.facts
    answer = [f"Upper bound: {facts['upper bound']}. Worth training: {facts['worth training']}."]
    facts = {**facts, "run folder": str(folder)}
    return {"answer": answer, "facts": facts, "charts": [found.chart()], "tables": found.tables}


def of_evaluation(folder: Path, summary: Mapping[str, Any]) -> Parts:
    """Every score on every set, and the protocol of each."""
    scores = summary["scores"]
    name, first = next(iter(scores.items()))
    generated, reference = first["protocol"]["generated"], first["protocol"]["reference"]
    sets = f"on average over {len(generated)} sets of" if len(generated) > 1 else "of"
    real = f" against {reference['num_images']:,} real ones" if reference and reference["num_images"] else ""
    said = f"{name} is {spread(first['sets'])}, {sets} {generated[0]['num_images']:,} generated images{real}."
    parts: Parts = {"tables": [table_of_scores(scores)], "protocols": protocols_of(scores)}
    if found := summary.get("per_cluster"):
        parts["charts"] = [chart_of_clusters(found)]
    return {"answer": [said], **parts, "notes": summary["notes"]}


def of_generation(folder: Path, summary: Mapping[str, Any]) -> Parts:
    """How the images were sampled."""
    settings = {**(read_settings(folder) or {}).get("settings", {}), **summary}
    keys = ("steps", "nimg", "sampler", "num", "first_seed", "seeds", "clusters", "keep")
    return {"protocols": {"generated images": {key: settings[key] for key in keys if key in settings}}}


PARTS: dict[str, Callable[[Path, Mapping[str, Any]], Parts]] = {
    "train": of_training,
    "cluster": of_clustering,
    "bound": of_bound,
    "evaluate": of_evaluation,
    "generate": of_generation,
}


def table_of_numbers(summary: Mapping[str, Any]) -> list[Table]:
    """All plain numbers of a summary, by the names that people use."""
    rows = [
        [NAMES.get(key, key), f"{value:,}" if isinstance(value, int) else f"{value:.4g}"]
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return [Table("The numbers of its summary.", ["what", "value"], rows)] if rows else []


def protocols_of(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores → how they were measured: what they all share, and what is a score's own."""
    whole = {
        name: {**score["protocol"], "generated": as_one(score["protocol"]["generated"])}
        for name, score in scores.items()
    }
    shared = as_one(list(whole.values()), differing=False)
    own = {name: {key: value for key, value in one.items() if key not in shared} for name, one in whole.items()}
    return {", ".join(scores): shared, **{name: rest for name, rest in own.items() if rest}}


def pictures_in(folder: Path) -> dict[str, Image.Image]:
    """Caption → picture, of the PNG files that commands write into their run folder."""
    pictures = {}
    for kind, caption in PICTURES.items():
        for path in sorted(folder.glob(f"{kind}*.png")):
            _, _, position = path.stem.partition("-")  # nearest-2
            try:
                image = load_image(path, path.name)
            except UserError as error:
                raise UserError(f"{path}: {error}. Remove it, or draw it again.") from error
            pictures[caption + (f", set {position}." if position else "")] = image.convert("RGB")
    return pictures


def pictures_of(
    train_folder: Path, summary: Mapping[str, Any] | None = None, name: str = "", cluster_names: str | None = None
) -> tuple[dict[str, Image.Image], list[str]]:
    """Real and generated images of a training run by their captions; or a note why they are no longer to be had."""
    try:
        settings = settings_of(train_folder, summary or read_any_summary(train_folder))
        denoiser = Denoiser.from_pretrained(denoiser_file(train_folder, "run")).to(device_of("auto"))
        name_clusters(denoiser, cluster_names or settings.cluster_names)
        source, dataset = open_source(settings.dataset, settings.cache_dir), settings.dataset
        labels = Condition.of(settings).pseudo_labels(source) if denoiser.label_dim else None
        source = source if labels is None else source.only(labels.ids)
        store = ImageStore(source, dataset.resolution, dataset.channels, memory_gb=0)
        pictures = gallery_of(denoiser, Sampler(settings.sampler.while_training), store, labels)
    except UserError as error:
        return {}, [f"No gallery: {error}"]
    return {f"{name}: {caption}" if name else caption: image for caption, image in pictures.items()}, []
