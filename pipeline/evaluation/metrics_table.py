"""The table of metrics. What `cedm evaluate` knows of a metric stands in its entry of `METRICS`, and nowhere else.

To add a metric, add an entry: plan, checks of sizes, protocol, summary, table and `--help` follow from it. A function
imports what it computes with when it is called, so that the names are known without loading PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.evaluation_settings import InceptionScoreSettings, KIDSettings, PRDCSettings
from storage.settings import plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from datamodules.backbones.backbone_base import Backbone
    from datamodules.images.images import ImageStore
    from pipeline.evaluation.features import Features, GeneratedSet

SEED = 2020  # of random subsets and parts, torch-fidelity's
AUTHENTIC = (
    "share of generated images whose distance to the nearest training image is at least that image's distance to its "
    "nearest other training image (arXiv 2102.08921)"
)
# What a metric needs beside mean and covariance of both sides' features.
GENERATED, REAL = "generated", "real"  # the features of each generated, or of each real image
IMAGES = "images"  # the images themselves, of both sides


@dataclass(frozen=True)
class Sides:
    """What a metric is computed from: both sides, seen by one feature extractor.

    Attributes:
        generated, real: their features.
        extractor: what the features come from.
        device: where rows are compared.
        images: the generated images, the real ones, and the picture to write; None where there are no real ones.
    """

    generated: "Features"
    real: "Features"
    extractor: "Backbone"
    device: "torch.device"
    images: "tuple[GeneratedSet, ImageStore, Path] | None" = None

    @property
    def rows(self) -> "tuple[Tensor, Tensor]":
        """The features of each image, [N, D] and [M, D]."""
        assert self.generated.rows is not None
        assert self.real.rows is not None
        return self.generated.rows.to(self.device), self.real.rows.to(self.device)


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        name: as typed, in `metrics=`.
        meaning: for `--help`.
        measure: both sides and the metric's settings → its scores by name, with `NAME_std` for a score's standard
            deviation. With `IMAGES`, more than its scores: the report that stands in the summary.
        scores: the names of its numbers (`{backbone}` is the extractor's), each with ↓ where lower is better, ↑ where
            higher is, nothing where neither is.
        needs: beside means and covariances: `GENERATED`, `REAL`, `IMAGES`.
        compares: whether it looks at the data set at all.
        backbone: the extractor; empty: the one of the setting `chosen_by`.
        group: the config group of its settings.
        settings: these, once they are known.
        sizes: settings that ask for so many images of each side, and how many more it takes.
        protocol: (score, settings, result of a set, number of real images) → what belongs beside the score in the
            summary.
        beside: that protocol → what belongs beside the score in a table.
    """

    name: str
    meaning: str
    measure: Callable[[Sides, Any], Mapping[str, Any]]
    scores: Mapping[str, str]
    needs: frozenset[str] = frozenset()
    compares: bool = True
    backbone: str = ""
    chosen_by: str = "evaluation.backbone"
    group: str = ""
    settings: Any = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    protocol: Callable[[str, Any, Mapping[str, Any], int | None], Mapping[str, Any]] = lambda *_: {}
    beside: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: ()


def frechet(sides: Sides, settings: None) -> dict[str, float]:
    from metrics.frechet import frechet_distance

    distance = frechet_distance(sides.generated.statistics, sides.real.statistics)
    return {frechet_name(sides.extractor.name): distance}


def kid(sides: Sides, settings: KIDSettings) -> dict[str, float]:
    from metrics.kernel import kernel_distance

    found = kernel_distance(*sides.rows, settings.num_subsets, settings.subset_size, SEED)
    return {"kid": found.mean, "kid_std": found.std}


def inception(sides: Sides, settings: InceptionScoreSettings) -> dict[str, float]:
    from datamodules.backbones.inception_backbone import InceptionBackbone
    from metrics.inception_score import inception_score

    assert isinstance(sides.extractor, InceptionBackbone)
    assert sides.generated.rows is not None
    logits = sides.extractor.logits(sides.generated.rows.to(sides.device))
    found = inception_score(logits, settings.num_splits, SEED)
    return {"inception_score": found.mean, "inception_score_std": found.std}


def neighbourhoods(sides: Sides, settings: PRDCSettings) -> dict[str, float]:
    from datamodules.images.sources import evenly_spaced
    from metrics.prdc import prdc

    ours, theirs = (rows[evenly_spaced(len(rows), settings.num_images).to(rows.device)] for rows in sides.rows)
    by_k = {k: prdc(ours, theirs, k) for k in {settings.k_precision_recall, settings.k_density_coverage}}
    return {score: by_k[k_of(score, settings)][score] for score in METRICS["prdc"].scores}


def k_of(score: str, settings: PRDCSettings) -> int:
    return settings.k_precision_recall if score in ("precision", "recall") else settings.k_density_coverage


def neighbourhood_protocol(
    score: str, settings: PRDCSettings, result: Mapping[str, Any], num_real: int | None
) -> dict[str, Any]:
    assert num_real is not None  # a file of statistics has no neighbours
    ours, theirs = (min(n, settings.num_images or n) for n in (result["generated"]["num_images"], num_real))
    return {"k": k_of(score, settings), "generated_images_used": ours, "real_images_used": theirs}


def beside_neighbourhood(protocol: Mapping[str, Any]) -> list[str]:
    if "generated_images_used" not in protocol:  # older summaries lack it
        return [f"k = {protocol['k']}"]
    used = protocol["generated_images_used"], protocol["real_images_used"]
    everything = used == (protocol["generated"][0]["num_images"], protocol["reference"]["num_images"])
    return [f"k = {protocol['k']}", "all images" if everything else f"{used[0]:,} and {used[1]:,} real images"]


def memorised(sides: Sides, settings: None) -> dict[str, Any]:
    from pipeline.evaluation.memorised import memorisation_report

    assert sides.images is not None
    return memorisation_report(*sides.images, *sides.rows)


def memorised_protocol(score: str, settings: None, result: Mapping[str, Any], num_real: int | None) -> dict[str, Any]:
    if score == "copies":
        return {"criterion": "equal to the nearest training image, pixel by pixel"}
    share = result["memorisation"]["authenticity_of_training_images"]
    return {"criterion": AUTHENTIC, "of_training_images": share}


ENTRIES = (
    Metric("fid", "Fréchet distance on Inception", frechet, {"fid": "↓"}, backbone="inception"),
    Metric("fdd", "Fréchet distance on DINOv2 ViT-L/14", frechet, {"fdd": "↓"}, backbone="dinov2_vitl14"),
    Metric("fd", "Fréchet distance on evaluation.backbone", frechet, {"fd_{backbone}": "↓"}),
    Metric(
        "kid",
        "kernel distance on Inception",
        kid,
        {"kid": "↓"},
        needs=frozenset({GENERATED, REAL}),
        backbone="inception",
        group=KIDSettings.group,
        sizes={"subset_size": 0},
        protocol=lambda _, settings, *__: {**plain(settings), "kernel": "(⟨x, y⟩ / D + 1)³", "seed": SEED},
        beside=lambda protocol: [f"{protocol['num_subsets']} subsets of {protocol['subset_size']:,}"],
    ),
    Metric(
        "is",
        "Inception score",
        inception,
        {"inception_score": "↑"},
        needs=frozenset({GENERATED}),
        compares=False,
        backbone="inception",
        group=InceptionScoreSettings.group,
        sizes={"num_splits": 0},
        protocol=lambda _, settings, *__: {**plain(settings), "seed": SEED},
    ),
    Metric(
        "prdc",
        "precision, recall, density, coverage",
        neighbourhoods,
        dict.fromkeys(("precision", "recall", "density", "coverage"), "↑"),
        needs=frozenset({GENERATED, REAL}),
        chosen_by="neighbour_backbone",
        group=PRDCSettings.group,
        sizes={"k_precision_recall": 1, "k_density_coverage": 1},
        protocol=neighbourhood_protocol,
        beside=beside_neighbourhood,
    ),
    Metric(
        "memorisation",
        "copies of training images",
        memorised,
        {"authenticity": "", "copies": ""},
        needs=frozenset({GENERATED, REAL, IMAGES}),
        chosen_by="neighbour_backbone",
        protocol=memorised_protocol,
        beside=lambda protocol: (
            [f"of real unseen images {protocol['of_training_images']:.4g}"] if "of_training_images" in protocol else []
        ),
    ),
)
METRICS = {entry.name: entry for entry in ENTRIES}
FRECHET = tuple(entry.name for entry in ENTRIES if entry.measure is frechet)


def frechet_metric(backbone: str) -> Metric:
    """The Fréchet distance on an extractor: the metric that is defined on it, or `fd`."""
    return next((METRICS[name] for name in FRECHET if METRICS[name].backbone == backbone), METRICS["fd"])


def frechet_name(backbone: str) -> str:
    """What the Fréchet distance on an extractor is called: `fid` on Inception, `fdd` on DINOv2 ViT-L, else `fd_…`."""
    return next(iter(frechet_metric(backbone).scores)).format(backbone=backbone)


def metric_of(score: str) -> Metric:
    """The metric that gives a score of this name; where none has it, the Fréchet distance of some extractor."""
    return next((entry for entry in ENTRIES if score in entry.scores), METRICS["fd"])


def arrow_of(score: str) -> str:
    """↓ where lower is better, ↑ where higher is; empty where neither is."""
    return metric_of(score).scores.get(score, "↓")


def label_of(score: str) -> str:
    """The score as tables have it: `fid ↓`."""
    return f"{score} {arrow_of(score)}".rstrip()


def best_of(score: str, values: Sequence[float]) -> float | None:
    """The highest or the lowest, whichever is better; None where neither is."""
    arrow = arrow_of(score)
    return max(values) if arrow == "↑" else min(values) if arrow == "↓" else None
