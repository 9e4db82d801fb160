"""What came out of an evaluation: `summary.json` with the protocol of every number, the table, TensorBoard."""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from PIL import Image

from datamodules.backbones.backbones import frechet_name
from pipeline.evaluation.measures import HIGHER_IS_BETTER, NEITHER_IS_BETTER, Plan, best
from pipeline.settings.inputs import plain

PUBLISHED_COUNT = 50_000  # images that papers compare with the training set
AUTHENTIC = (
    "share of generated images whose distance to the nearest training image is at least that image's distance to its "
    "nearest other training image (arXiv 2102.08921)"
)
NO_DISTANCE = 1e-3  # between the same images in other batches; below any that a model ever had
EXTRACTORS = {
    "inception": "torch-fidelity's Inception-v3 (its 2048 pooled features; not NVIDIA's pickle); it resizes to 299×299 "
    "as TensorFlow 1 did (bilinear, not antialiased)",
    "transformers": "a model of the transformers library; its processor resizes the whole image, without a crop",
    "pixels": "the pixels themselves, scaled to −1…1",
}


def summarise(
    cfg: DictConfig,
    plan: Plan,
    results: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    identities: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The results of all sets: each score with its values, their best and mean, and its protocol.

    A score's name alone gives the mean over the sets.
    """
    generated = [result["generated"] for result in results]
    scores: dict[str, Any] = {}
    for name in results[0]["scores"]:
        if name.endswith("_std"):
            continue
        values = [result["scores"][name] for result in results]
        backbone = plan.backbone_of_score(name)
        scores[name] = {
            "sets": values,
            "best": best(name, values),
            "mean": fmean(values),
            "protocol": {
                "extractor": {"name": backbone, **identities[backbone]},
                "extractor_is": EXTRACTORS.get(
                    identities[backbone]["kind"], "a frozen network with its own processing"
                ),
                "generated": generated,
                "reference": None if name == "inception_score" else dict(reference),
                "features": "of uint8 pixels, in float32; sums in float64",
                **settings_of(
                    cfg, name, results[0]["memorisation"], generated[0]["num_images"], reference["num_images"]
                ),
            },
        }
        if f"{name}_std" in results[0]["scores"]:
            scores[name]["std_within_set"] = [result["scores"][f"{name}_std"] for result in results]
    return {
        **{name: score["mean"] for name, score in scores.items()},
        "num_sets": len(results),
        "scores": scores,
        "memorisation": [result["memorisation"] for result in results if result["memorisation"] is not None],
        "notes": notes(cfg, plan, results, reference, scores),
    }


def settings_of(
    cfg: DictConfig, score: str, memory: Mapping[str, Any], generated: int, reference: int | None
) -> dict[str, Any]:
    """The settings that a score depends on beside its features.

    `memory` is what is known of the training images, `generated` and `reference` are the numbers of images.
    """
    if score == "kid":
        return {**plain(cfg.kid), "kernel": "(⟨x, y⟩ / D + 1)³", "seed": 2020}
    if score == "inception_score":
        return {**plain(cfg.inception_score), "seed": 2020}
    if score in ("precision", "recall", "density", "coverage"):
        k = cfg.prdc.k_precision_recall if score in ("precision", "recall") else cfg.prdc.k_density_coverage
        used = [min(count, cfg.prdc.num_images or count) for count in (generated, reference) if count is not None]
        return {"k": k, **dict(zip(("generated_images_used", "real_images_used"), used, strict=False))}
    if score == "authenticity":
        return {"criterion": AUTHENTIC, "of_training_images": memory["authenticity_of_training_images"]}
    if score == "copies":
        return {"criterion": "equal to the nearest training image, pixel by pixel"}
    return {}


def notes(
    cfg: DictConfig,
    plan: Plan,
    results: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> list[str]:
    """What a reader of the numbers has to know beside the protocol."""
    said = []
    counts = {result["generated"]["num_images"] for result in results}
    if plan.frechet_backbones and counts != {PUBLISHED_COUNT}:
        said.append(
            f"Fréchet distances fall with the number of images: compare these, of {listed(counts)} generated images, "
            f"with others of as many only. Papers take {PUBLISHED_COUNT:,}."
        )
    if reference["num_images"] is None:
        said.append(
            f"{reference['file']} does not say which images and which extractor made it. EDM's files are made with "
            "NVIDIA's Inception pickle: distances from them by another port of Inception differ slightly."
        )
    frechet_names = [frechet_name(backbone) for backbone in plan.frechet_backbones]
    for name in scores:
        if name in frechet_names and scores[name]["best"] < NO_DISTANCE:
            said.append(f"{name} is 0 but for rounding: to this extractor, the images are the data set itself.")
    for number, result in enumerate(results, start=1):
        said += [f"Set {number}: {note}" for note in notes_on_set(cfg, result)]
    return said


def notes_on_set(cfg: DictConfig, result: Mapping[str, Any]) -> list[str]:
    """The same, of one set."""
    said, generated, memory = [], result["generated"], result["memorisation"]
    trained_on = generated.get("trained_on")
    if trained_on not in (None, cfg.dataset.name):
        said.append(f"the model was trained on {trained_on!r}, and is compared with {cfg.dataset.name!r}.")
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
            "that a model has not seen: it leans on its training images. Look at the picture."
        )
    return said


def listed(counts: set[int]) -> str:
    """`1,000` or `1,000 and 2,000`."""
    return " and ".join(f"{count:,}" for count in sorted(counts))


def table(summary: Mapping[str, Any], folder: Path) -> str:
    """What a person reads in the terminal."""
    num_sets = summary["num_sets"]
    heads = [f"set {number}" for number in range(1, num_sets + 1)] + (["best", "mean"] if num_sets > 1 else [])
    lines = [" " * 18 + "".join(f"{head:>10}" for head in heads)]
    for name, score in summary["scores"].items():
        values = score["sets"] + ([score["best"], score["mean"]] if num_sets > 1 else [])
        arrow = "" if name in NEITHER_IS_BETTER else " ↑" if name in HIGHER_IS_BETTER else " ↓"
        lines.append(f"{name + arrow:<18}" + "".join(f" {number(v):>9}" for v in values) + "   " + how(score))
    first = next(iter(summary["scores"].values()))["protocol"]
    generated, reference = first["generated"], first["reference"]
    made = "".join(f"\ngenerated         {g['num_images']:,} images, {origin(g)}" for g in generated)
    against = "" if reference is None else f"\nreference         {described(reference)}"
    said = "".join(f"\npicture           {memory['picture']}" for memory in summary["memorisation"])
    said += "".join(f"\nNote: {note}" for note in summary["notes"])
    return "\n".join(lines) + made + against + said + f"\nsummary           {folder / 'summary.json'}"


def number(value: float | None) -> str:
    """Four digits at least, as tables of papers print them; whole numbers as such; nothing for None."""
    if value is None:
        return ""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1 else f"{value:,.3f}"


def how(score: Mapping[str, Any]) -> str:
    """The settings that belong beside a number in a table."""
    protocol = score["protocol"]
    words = [f"on {protocol['extractor']['name']}"]
    if "k" in protocol:
        words.append(f"k = {protocol['k']}")
    if "generated_images_used" in protocol:  # older summaries lack it
        used = protocol["generated_images_used"], protocol["real_images_used"]
        everything = used == (protocol["generated"][0]["num_images"], protocol["reference"]["num_images"])
        words.append("all images" if everything else f"{used[0]:,} and {used[1]:,} real images")
    if "subset_size" in protocol:
        words.append(f"{protocol['num_subsets']} subsets of {protocol['subset_size']:,}")
    if "of_training_images" in protocol:
        words.append(f"of real unseen images {protocol['of_training_images']:.4g}")
    if "std_within_set" in score:
        words.append(f"± {fmean(score['std_within_set']):.2g}")
    return ", ".join(words)


def origin(generated: Mapping[str, Any]) -> str:
    """Where a set comes from, in a line."""
    if generated["from"] == "files":
        return f"files in {generated['path']}"
    labels = "" if generated["labels"] == "none" else f", labels {generated['labels']}"
    return f"seeds {generated['seeds']}, {generated['steps']} steps{labels}, model {generated['path']}"


def described(reference: Mapping[str, Any]) -> str:
    """The other side, in a line."""
    if reference["num_images"] is None:
        return f"{reference['file']} (mean and covariance)"
    return f"all {reference['num_images']:,} images of {reference['dataset']}, fingerprint {reference['fingerprint']}"


def show_in_tensorboard(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Scores as scalars and the pictures, a step per set."""
    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    for number, result in enumerate(results, start=1):
        logger.log_metrics({f"evaluate/{name}": value for name, value in result["scores"].items()}, step=number)
        if result["memorisation"] is not None:
            with Image.open(result["memorisation"]["picture"]) as picture:
                pixels = np.array(picture.convert("RGB"))
            logger.experiment.add_image("evaluate/nearest_training_images", pixels, number, dataformats="HWC")
    logger.finalize("success")
