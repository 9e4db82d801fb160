"""What came out of an evaluation: `summary.json` with the protocol of every number, the table, TensorBoard."""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from datamodules.backbones.backbone_base import Backbone
from pipeline.evaluation.measures import OTHERS, Plan
from pipeline.evaluation.metrics_table import FRECHET, Metric, best_of, label_of
from pipeline.evaluation.per_cluster import WITHIN_95, WORST, clusters_in, table_of_clusters
from pipeline.evaluation.sampling import NO_LABEL_DROPOUT_TOLD
from pipeline.pictures.table import Table

PUBLISHED_COUNT = 50_000  # images that papers compare with the training set
NO_DISTANCE = 1e-3  # between the same images in other batches; below any that a model ever had
NO_PRECISION = 0.05  # share of generated images among the real ones, below which recall says nothing
OF_WHAT = (
    "95 %, for other sets of as many generated images, drawn independently, to first order; the reference as it is"
)
EXTRACTORS = {
    "inception": "torch-fidelity's Inception-v3 (its 2048 pooled features; not NVIDIA's pickle); it resizes to 299×299 "
    "as TensorFlow 1 did (bilinear, not antialiased)",
    "transformers": "a model of the transformers library; its processor resizes the whole image, without a crop",
    "pixels": "the pixels themselves, scaled to −1…1",
}


def summarise(
    plan: Plan,
    results: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    extractors: Sequence[Backbone],
    dataset: str,
    cluster_names: Mapping[int, str],
) -> dict[str, Any]:
    """The results of all sets: each score with its values, their best and mean, and its protocol.

    A score's name alone gives the mean over the sets. Under `per_cluster` are the clusters, if they were asked for.
    """
    identities = {extractor.name: extractor.identity for extractor in extractors}
    measured = results[0]["scores"]
    scores = {
        name: summary_of(name, metric, results, reference, identities[metric.backbone])
        for metric in plan
        for score in metric.scores
        for name in (score, *(f"{score}_{other}" for other in OTHERS))
        if name in measured
    }
    by_cluster = clusters_in(results, cluster_names)
    return {
        **{name: score["mean"] for name, score in scores.items()},
        "num_sets": len(results),
        "scores": scores,
        **({} if by_cluster is None else {"per_cluster": by_cluster}),
        "memorisation": [memory for result in results if (memory := memorisation_of(result)) is not None],
        "notes": notes(plan, results, reference, scores, dataset),
    }


def memorisation_of(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The report on copies in a set; None where it was not asked for."""
    return result["scores"].get("authenticity", {}).get("report")


def summary_of(
    name: str,
    metric: Metric,
    results: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """A score on every set, with all that it depends on."""
    scores = [result["scores"][name] for result in results]
    values = [score["value"] for score in scores]
    return {
        "sets": values,
        "best": best_of(name, values),
        "mean": fmean(values),
        "protocol": {
            "extractor": {"name": metric.backbone, **identity},
            "extractor_is": EXTRACTORS.get(identity["kind"], "a frozen network with its own processing"),
            "generated": [result["generated"] for result in results],
            "reference": dict(reference) if metric.compares else None,
            "features": "of uint8 pixels, in float32; sums in float64",
            **scores[0]["protocol"],
        },
        "beside": scores[0]["beside"],
        **({} if scores[0]["std"] is None else {"std_within_set": [score["std"] for score in scores]}),
        **intervals_of(scores),
    }


def intervals_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where a score of other images would lie, for each set: [lowest, highest]; nothing where that is not known."""
    if scores[0].get("error") is None:
        return {}
    ends = [[score["value"] + side * WITHIN_95 * score["error"] for side in (-1, 1)] for score in scores]
    return {"intervals": ends, "interval_is": OF_WHAT}


def notes(
    plan: Plan,
    results: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    scores: Mapping[str, Any],
    dataset: str,
) -> list[str]:
    """What a reader of the numbers has to know beside the protocol."""
    said = []
    counts = {result["generated"]["num_images"] for result in results}
    distances = [score for metric in plan if metric.name in FRECHET for score in metric.scores]
    if distances and counts != {PUBLISHED_COUNT}:
        said.append(
            "Fréchet distances fall with the number of images: compare these, of "
            f"{' and '.join(f'{count:,}' for count in sorted(counts))} generated images, with others of as many only. "
            f"Papers take {PUBLISHED_COUNT:,}."
        )
    if reference["num_images"] is None:
        said.append(
            f"{reference['file']} does not say which images and which extractor made it. EDM's files are made with "
            "NVIDIA's Inception pickle: distances from them by another port of Inception differ slightly."
        )
    for name in distances:
        if scores[name]["best"] < NO_DISTANCE:
            said.append(f"{name} is 0 but for rounding: to this extractor, the images are the data set itself.")
    for number, result in enumerate(results, start=1):
        said += [f"Set {number}: {note}" for note in notes_on_set(result, reference, dataset)]
    return said


def trained_on_others(generated: Mapping[str, Any], reference: Mapping[str, Any], dataset: str) -> list[str]:
    """A note where a model was trained on other images than it is compared with."""
    trained_on, known = generated.get("trained_on"), generated.get("trained_on_images")
    if trained_on not in (None, dataset):
        return [f"the model was trained on {trained_on!r}, and is compared with {dataset!r}."]
    if trained_on is None or "images" not in reference or known in (None, reference["images"]):
        return []
    held_out = ": distances to images held out say nothing of memorisation" if "num_held_out" in reference else ""
    return [
        f"{generated['path']} was trained on other images of {dataset!r} than these {reference['num_images']:,}"
        f"{held_out}. Set dataset.holdout= and dataset.max_images= as they were in its training, unless noise=drop "
        "left images out there."
    ]


def notes_on_set(result: Mapping[str, Any], reference: Mapping[str, Any], dataset: str) -> list[str]:
    """The same, of one set."""
    generated, memory = result["generated"], memorisation_of(result)
    said = trained_on_others(generated, reference, dataset)
    sampler = generated.get("sampler", {"guidance": 1})  # of images that a model makes
    if sampler["guidance"] != 1 and sampler["guide"] == "label" and generated["label_dropout"] is None:
        said.append(f"{generated['path']} {NO_LABEL_DROPOUT_TOLD}")
    if lossy := generated.get("lossy"):
        said.append(
            f"{' and '.join(lossy)} files lose detail, or may: all scores are of what they kept, and distances are "
            "larger for it. Save generated images as PNG, or as an array."
        )
    precision = result["scores"].get("precision")
    if precision is not None and precision["value"] < NO_PRECISION:
        said.append(
            f"precision is {precision['value']:.3g}: hardly a generated image lies among the real ones. Recall counts "
            "the real images within reach of generated ones, and images that lie far apart reach far: it says nothing "
            "here."
        )
    if memory is None:
        return said
    count, real = generated["num_images"], memory["authenticity_of_training_images"]
    if memory["copies"] == count:
        said.append("every image is a training image, pixel by pixel: is this the data set itself?")
    elif memory["copies"]:
        said.append(f"{memory['copies']:,} of {count:,} images are training images, pixel by pixel.")
    elif memory["authenticity"] < real - 3 * sqrt(real * (1 - real) / count):
        said.append(
            f"only {memory['authenticity']:.1%} of the images are authentic, fewer than the {real:.1%} of real images "
            "that a model has not seen: this suggests memorisation. Look at the picture."
        )
    return said


def table(summary: Mapping[str, Any], folder: Path) -> str:
    """What a person reads in the terminal."""
    protocol = next(iter(summary["scores"].values()))["protocol"]
    lines = [table_of_scores(summary["scores"]).as_text()]
    if "per_cluster" in summary:
        lines.append(table_of_clusters(summary["per_cluster"], WORST).as_text())
    for made in protocol["generated"]:
        by_model = "seeds {seeds}, {steps} steps, labels: {labels}, model {path}"
        origin = ("files in {path}" if made["from"] == "files" else by_model).format_map(made)
        lines.append(f"generated   {made['num_images']:,} images, {origin}")
    if (reference := protocol["reference"]) is not None:
        whole = f"all {reference['num_images']:,} images of {reference['dataset']}" if reference["num_images"] else None
        lines.append(f"reference   {whole or reference['file']}, fingerprint {reference['fingerprint']}")
    lines += [f"picture     {memory['picture']}" for memory in summary["memorisation"]]
    lines += [f"Note: {note}" for note in summary["notes"]]
    return "\n".join([*lines, f"summary     {folder / 'summary.json'}"])


def table_of_scores(scores: Mapping[str, Any]) -> Table:
    """A line for each score: its value on every set, of several the best and the mean, and how it was measured."""
    several = len(next(iter(scores.values()))["sets"]) > 1
    sure = any("intervals" in score for score in scores.values())
    rows = []
    for name, score in scores.items():
        values = [*score["sets"], *([score["best"], score["mean"]] if several else [])]
        within = f"± {fmean(score['std_within_set']):.2g}" if "std_within_set" in score else ""
        how = (f"on {score['protocol']['extractor']['name']}", score["beside"], within)
        half = [fmean(high - low for low, high in score["intervals"]) / 2] if "intervals" in score else []
        interval = ["".join(f"± {width:.2g}" for width in half)] if sure else []
        rows.append([label_of(name), *map(number, values), *interval, ", ".join(filter(None, how))])
    sets = [f"set {position + 1}" for position in range(len(score["sets"]))]
    caption = "↓: lower is better, ↑: higher, ±: standard deviation within a set."
    if sure:
        caption += " 95 %: how far a set of other images may lie from it, drawn independently."
    judged = [*(["best", "mean"] if several else []), *(["95 %"] if sure else [])]
    return Table(caption, ["score", *sets, *judged, "measured"], rows)


def number(value: float | None) -> str:
    """Four digits at least, as tables of papers print them; whole numbers as such; nothing for None."""
    if value is None:
        return ""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1 else f"{value:,.3f}"


def show_in_tensorboard(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Scores as scalars and the pictures, a step per set."""
    with SummaryWriter(str(folder)) as writer:
        for step, result in enumerate(results, start=1):
            for name, score in result["scores"].items():
                writer.add_scalar(f"evaluate/{name}", score["value"], step)
            if (memory := memorisation_of(result)) is not None:
                pixels = np.array(Image.open(memory["picture"]).convert("RGB"))
                writer.add_image("evaluate/nearest_training_images", pixels, step, dataformats="HWC")
