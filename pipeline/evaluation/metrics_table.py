"""The table of metrics. What `cedm evaluate` knows of a metric stands in its entry of `METRICS`, and nowhere else.

To add a metric, add an entry: plan, checks of sizes, protocol, summary, table and `--help` follow from it. A function
imports what it computes with when it is called, so that the names are known without loading PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.evaluation_settings import InceptionScoreSettings, KIDSettings, PRDCSettings
from storage.settings import Settings, plain

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
        images: the generated images, the real ones, and the picture to write; None where the metric needs none.
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
class Score:
    """A number that a metric gives, and how it is printed."""

    name: str
    arrow: str  # ↓: lower is better, ↑: higher is; empty: neither

    @property
    def label(self) -> str:
        """`fid ↓`, as tables have it."""
        return f"{self.name} {self.arrow}".rstrip()

    def best(self, values: Sequence[float]) -> float | None:
        """The highest or the lowest, whichever is better; None where neither is."""
        return max(values) if self.arrow == "↑" else min(values) if self.arrow == "↓" else None


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        name: as typed, in `metrics=`.
        meaning: for `--help`.
        measure: both sides and the metric's settings → its scores by name, with `NAME_std` for a score's standard
            deviation. With `IMAGES`, more than its scores: the report that stands in the summary.
        scores: the numbers; `fd_{backbone}` is named after its extractor.
        needs: beside means and covariances: `GENERATED`, `REAL`, `IMAGES`.
        backbone: the extractor that it is defined on; empty: that of the setting `chosen_by`.
        settings: class of its settings.
        sizes: settings that ask for so many images of each side, and how many more it takes.
        compares: whether it looks at the data set at all.
        protocol: (score, settings, result of a set, number of real images) → what belongs beside the score in the
            summary.
        beside: that protocol → what belongs beside the score in a table.
    """

    name: str
    meaning: str
    measure: Callable[[Sides, Any], Mapping[str, Any]]
    scores: tuple[Score, ...]
    needs: frozenset[str] = frozenset()
    backbone: str = ""
    chosen_by: str = "evaluation.backbone"
    settings: type[Settings] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    compares: bool = True
    protocol: Callable[[str, Any, Mapping[str, Any], int | None], Mapping[str, Any]] = lambda *_: {}
    beside: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: ()

    def scores_on(self, backbone: str) -> list[Score]:
        """Its scores where it is taken on this extractor."""
        return [Score(score.name.format(backbone=backbone), score.arrow) for score in self.scores]


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
    return {score.name: by_k[k_of(score.name, settings)][score.name] for score in METRICS["prdc"].scores}


def k_of(score: str, settings: PRDCSettings) -> int:
    """The neighbour that a score takes."""
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
    Metric("fid", "Fréchet distance on Inception", frechet, (Score("fid", "↓"),), backbone="inception"),
    Metric("fdd", "Fréchet distance on DINOv2 ViT-L/14", frechet, (Score("fdd", "↓"),), backbone="dinov2_vitl14"),
    Metric("fd", "Fréchet distance on evaluation.backbone", frechet, (Score("fd_{backbone}", "↓"),)),
    Metric(
        "kid",
        "kernel distance on Inception",
        kid,
        (Score("kid", "↓"),),
        frozenset({GENERATED, REAL}),
        backbone="inception",
        settings=KIDSettings,
        sizes={"subset_size": 0},
        protocol=lambda _, settings, *__: {**plain(settings), "kernel": "(⟨x, y⟩ / D + 1)³", "seed": SEED},
        beside=lambda protocol: [f"{protocol['num_subsets']} subsets of {protocol['subset_size']:,}"],
    ),
    Metric(
        "is",
        "Inception score",
        inception,
        (Score("inception_score", "↑"),),
        frozenset({GENERATED}),
        backbone="inception",
        settings=InceptionScoreSettings,
        sizes={"num_splits": 0},
        compares=False,
        protocol=lambda _, settings, *__: {**plain(settings), "seed": SEED},
    ),
    Metric(
        "prdc",
        "precision, recall, density, coverage",
        neighbourhoods,
        tuple(Score(name, "↑") for name in ("precision", "recall", "density", "coverage")),
        frozenset({GENERATED, REAL}),
        chosen_by="neighbour_backbone",
        settings=PRDCSettings,
        sizes={"k_precision_recall": 1, "k_density_coverage": 1},
        protocol=neighbourhood_protocol,
        beside=beside_neighbourhood,
    ),
    Metric(
        "memorisation",
        "copies of training images",
        memorised,
        (Score("authenticity", ""), Score("copies", "")),
        frozenset({GENERATED, REAL, IMAGES}),
        chosen_by="neighbour_backbone",
        protocol=memorised_protocol,
        beside=lambda protocol: (
            [f"of real unseen images {protocol['of_training_images']:.4g}"] if "of_training_images" in protocol else []
        ),
    ),
)
METRICS = {entry.name: entry for entry in ENTRIES}


def frechet_metric(backbone: str) -> Metric:
    """The Fréchet distance on an extractor: the metric that is defined on it, or `fd`."""
    own = (entry for entry in ENTRIES if entry.measure is frechet and entry.backbone == backbone)
    return next(own, METRICS["fd"])


def frechet_name(backbone: str) -> str:
    """What the Fréchet distance on an extractor is called: `fid` on Inception, `fdd` on DINOv2 ViT-L, else `fd_…`."""
    return frechet_metric(backbone).scores_on(backbone)[0].name


def metric_of(score: str) -> Metric:
    """The metric that gives a score of this name; a Fréchet distance for a name that no metric has."""
    return next((entry for entry in ENTRIES if score in (own.name for own in entry.scores)), METRICS["fd"])


def score_of(name: str) -> Score:
    """The score of this name; of a summary's Fréchet distance too, whatever its extractor."""
    return next((score for score in metric_of(name).scores if score.name == name), Score(name, "↓"))


FRECHET = tuple(entry.name for entry in ENTRIES if entry.measure is frechet)
