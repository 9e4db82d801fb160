"""The table of metrics. What `cedm evaluate` knows of a metric stands in its entry of `METRICS`, and nowhere else.

To add a metric, add an entry: plan, checks of sizes, protocol, summary, table and `--help` follow from it. A function
imports what it computes with when it is called, so that the names are known without loading PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.evaluation_settings import InceptionScoreSettings, KIDSettings, PRDCSettings
from storage.settings import plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from datamodules.backbones.backbone_base import Backbone
    from datamodules.images.image_store import ImageStore
    from pipeline.evaluation.features import Features, GeneratedSet

SEED = 2020  # of random subsets, parts and directions, torch-fidelity's
KERNEL = "(⟨x, y⟩ / D + 1)³"
DIRECTIONS = 1000  # of the sliced Wasserstein distance, the paper's
AUTHENTIC = (
    "share of generated images whose distance to the nearest training image is at least that image's distance to its "
    "nearest other training image (arXiv 2102.08921)"
)
GENERATED, REAL = "generated", "real"  # the sides that are compared
LOWER = "↓"  # of a score: lower is better
OWN, NEIGHBOURS = "evaluation.backbone", "neighbour_backbone"  # settings that name a metric's extractor


@dataclass(frozen=True)
class Sides:
    """What a metric is computed from: the features of both sides by one extractor, and where rows are compared."""

    generated: "Features"
    real: "Features"
    extractor: "Backbone"
    device: "torch.device"
    images: "tuple[GeneratedSet, ImageStore, Path] | None"  # of both sides, and the picture to write; None without real
    clusters: "tuple[Tensor, Tensor] | None" = None  # of each image of both sides, [N] and [M]; None: not known

    @property
    def rows(self) -> "tuple[Tensor, Tensor]":
        """The features of each image, [N, D] and [M, D]."""
        assert self.real.rows is not None
        return self.own_rows, self.real.rows.to(self.device)

    @property
    def own_rows(self) -> "Tensor":
        """The features of each generated image, [N, D]."""
        assert self.generated.rows is not None
        return self.generated.rows.to(self.device)


@dataclass(frozen=True)
class Score:
    """A number, and what belongs beside it."""

    value: float
    protocol: Mapping[str, Any] = field(default_factory=dict)  # for the summary, beyond the extractor and both sides
    beside: str = ""  # of the same, for a table
    std: float | None = None  # standard deviation over random parts of a set; None where there are none
    error: float | None = None  # standard error over the generated images; None where it is not known
    report: Mapping[str, Any] | None = None  # more than the score, for the summary


@dataclass(frozen=True)
class Metric:
    """An entry of the table."""

    name: str  # as typed, in `metrics=`
    meaning: str  # for `--help`
    measure: Callable[[Sides, Any], Mapping[str, Score]]  # both sides and the metric's settings → its scores
    scores: Mapping[str, str]  # names (`{backbone}` is the extractor's) → ↓ where lower is better, ↑ higher, or nothing
    rows: Sequence[str] = ()  # the sides of which it needs each image's features; of others mean and covariance do
    backbone: str = OWN  # the extractor, or the setting that names it
    settings: Any = None  # the class of its settings; in a plan, these
    sizes: Mapping[str, int] = field(default_factory=dict)  # settings of so many images of a side, and how many more
    fewest: int = 2  # images of a side
    compares: bool = True  # whether it looks at the data set at all


def frechet(sides: Sides, settings: None) -> dict[str, Score]:
    from metrics.frechet import frechet_distance, frechet_error

    both = sides.generated.statistics, sides.real.statistics
    error = frechet_error(sides.own_rows, *both)
    return {frechet_name(sides.extractor.name): Score(frechet_distance(*both), error=error)}


def extrapolated(sides: Sides, settings: None) -> dict[str, Score]:
    from metrics.frechet import frechet_error, frechet_extrapolated

    found = frechet_extrapolated(sides.own_rows, sides.real.statistics, seed=SEED)
    error = hypot(found.error, frechet_error(sides.own_rows, sides.generated.statistics, sides.real.statistics))
    protocol = {"extrapolated": "linearly in 1/N, from 15 random parts of a tenth of the set to all", "seed": SEED}
    score = Score(found.value, {**protocol, "slope": found.slope}, "N → ∞", error=error)
    return {f"fd_inf_{sides.extractor.name}": score}


def kernel(sides: Sides, settings: KIDSettings) -> dict[str, Score]:
    from metrics.kernel import kernel_distance

    found = kernel_distance(*sides.rows, settings.num_subsets, settings.subset_size, SEED)
    protocol = {**plain(settings), "kernel": KERNEL, "seed": SEED}
    beside = f"{settings.num_subsets} subsets of {settings.subset_size:,}"
    name = next(one.name for one in ENTRIES if one.measure is kernel and one.backbone == sides.extractor.name)
    return {name: Score(found.mean, protocol, beside, found.std, found.error)}


def sliced(sides: Sides, settings: None) -> dict[str, Score]:
    from metrics.sliced import sliced_wasserstein

    found = sliced_wasserstein(*sides.rows, DIRECTIONS, SEED)
    protocol = {"factor": "3 D", "num_directions": DIRECTIONS, "seed": SEED}
    return {f"sw_{sides.extractor.name}": Score(found.value, protocol, f"{DIRECTIONS:,} directions", error=found.error)}


def rank(sides: Sides, settings: None) -> dict[str, Score]:
    from metrics.frechet import effective_rank

    generated, real = (effective_rank(side.statistics.cov) for side in (sides.generated, sides.real))
    beside = f"of {len(sides.real.statistics.mean):,} features"
    return {"rank": Score(generated, beside=beside), "rank_of_reference": Score(real, beside=beside)}


def inception(sides: Sides, settings: InceptionScoreSettings) -> dict[str, Score]:
    from datamodules.backbones.inception_backbone import InceptionBackbone
    from metrics.inception_score import inception_score

    assert isinstance(sides.extractor, InceptionBackbone)
    logits = sides.extractor.logits(sides.own_rows)
    found = inception_score(logits, settings.num_splits, SEED)
    return {"inception_score": Score(found.mean, {**plain(settings), "seed": SEED}, std=found.std)}


def thinned(sides: Sides, settings: PRDCSettings) -> "tuple[Tensor, Tensor, dict[str, int], str]":
    """The features of `prdc.num_images` of either side, with their numbers, for the protocol and for a table."""
    from datamodules.images.sources import evenly_spaced

    ours, theirs = (rows[evenly_spaced(len(rows), settings.num_images).to(rows.device)] for rows in sides.rows)
    used = {"generated_images_used": len(ours), "real_images_used": len(theirs)}
    return ours, theirs, used, f"{len(ours):,} and {len(theirs):,} real images"


def neighbourhoods(sides: Sides, settings: PRDCSettings) -> dict[str, Score]:
    from metrics.prdc import prdc

    ours, theirs, used, images = thinned(sides, settings)
    ks = dict.fromkeys(("precision", "recall"), settings.k_precision_recall)
    ks |= dict.fromkeys(("density", "coverage"), settings.k_density_coverage)
    by_k = {k: prdc(ours, theirs, k) for k in set(ks.values())}
    return {score: Score(by_k[k][score], {"k": k, **used}, f"k = {k}, {images}") for score, k in ks.items()}


def clipped(sides: Sides, settings: PRDCSettings) -> dict[str, Score]:
    from metrics.clipped import clipped_scores

    ours, theirs, used, images = thinned(sides, settings)
    k = settings.k_density_coverage
    found = clipped_scores(ours, theirs, k)
    scores = {"clipped_density": found.density, "clipped_coverage": found.coverage}
    return {name: Score(value, {"k": k, **used}, f"k = {k}, {images}") for name, value in scores.items()}


def memorised(sides: Sides, settings: None) -> dict[str, Score]:
    from pipeline.evaluation.memorised import memorisation_report

    assert sides.images is not None
    report = memorisation_report(*sides.images, *sides.rows)
    of_training = report["authenticity_of_training_images"]
    protocol = {"criterion": AUTHENTIC, "of_training_images": of_training}
    beside = f"of real unseen images {of_training:.4g}"
    return {
        "authenticity": Score(report["authenticity"], protocol, beside, report=report),
        "copies": Score(report["copies"], {"criterion": "equal to a training image, pixel by pixel"}),
    }


def per_cluster(sides: Sides, settings: None) -> dict[str, Score]:
    from pipeline.evaluation.per_cluster import FEWEST, distances_of_clusters

    if sides.clusters is None:  # as of images held out
        return {}
    found = distances_of_clusters(sides.clusters, *sides.rows)
    shares = [one["real"] / sum(each["real"] for each in found["clusters"]) for one in found["clusters"]]
    value = sum(share * one["distance"] for share, one in zip(shares, found["clusters"], strict=True))
    error = hypot(*(share * one["error"] for share, one in zip(shares, found["clusters"], strict=True)))
    protocol = {
        "distance": "unbiased squared MMD of a cluster's images to the data set's of the same cluster, all pairs; the "
        "mean over the clusters, each with the weight of its real images",
        "kernel": KERNEL,
        "fewest_images": FEWEST,
        "error": "jackknife over the generated images",
    }
    beside = f"mean of {len(shares):,} clusters"
    return {f"kd_per_cluster_{sides.extractor.name}": Score(value, protocol, beside, error=error, report=found)}


ENTRIES = (
    Metric("fid", "Fréchet distance on Inception", frechet, {"fid": "↓"}, rows=(GENERATED,), backbone="inception"),
    Metric(
        "fdd",
        "Fréchet distance on DINOv2 ViT-L/14",
        frechet,
        {"fdd": "↓"},
        rows=(GENERATED,),
        backbone="dinov2_vitl14",
    ),
    Metric("fd", "Fréchet distance on evaluation.backbone", frechet, {"fd_{backbone}": "↓"}, rows=(GENERATED,)),
    Metric(
        "fd_inf",
        "the same, extrapolated to infinitely many images",
        extrapolated,
        {"fd_inf_{backbone}": "↓"},
        rows=(GENERATED,),
        fewest=20,
    ),
    Metric(
        "sw",
        "sliced Wasserstein distance on evaluation.backbone (MIND)",
        sliced,
        {"sw_{backbone}": "↓"},
        rows=(GENERATED, REAL),
    ),
    *(
        Metric(
            name,
            f"kernel distance on {where}",
            kernel,
            {name: "↓"},
            rows=(GENERATED, REAL),
            backbone=backbone,
            settings=KIDSettings,
            sizes={"subset_size": 0},
        )
        for name, where, backbone in (
            ("kid", "Inception", "inception"),
            ("kdd", "DINOv2 ViT-L/14", "dinov2_vitl14"),
        )
    ),
    Metric(
        "is",
        "Inception score",
        inception,
        {"inception_score": "↑"},
        rows=(GENERATED,),
        backbone="inception",
        settings=InceptionScoreSettings,
        sizes={"num_splits": 0},
        compares=False,
    ),
    Metric(
        "prdc",
        "precision, recall, density, coverage",
        neighbourhoods,
        dict.fromkeys(("precision", "recall", "density", "coverage"), "↑"),
        rows=(GENERATED, REAL),
        backbone=NEIGHBOURS,
        settings=PRDCSettings,
        sizes={"k_precision_recall": 1, "k_density_coverage": 1},
    ),
    Metric(
        "clipped",
        "clipped density and coverage",
        clipped,
        dict.fromkeys(("clipped_density", "clipped_coverage"), "↑"),
        rows=(GENERATED, REAL),
        backbone=NEIGHBOURS,
        settings=PRDCSettings,
        sizes={"k_density_coverage": 1},
    ),
    Metric(
        "rank",
        "effective rank of both sides' covariances",
        rank,
        {"rank": "", "rank_of_reference": ""},
    ),
    Metric(
        "memorisation",
        "copies of training images",
        memorised,
        {"authenticity": "", "copies": ""},
        rows=(GENERATED, REAL),
        backbone=NEIGHBOURS,
    ),
)
METRICS = {entry.name: entry for entry in ENTRIES}
PER_CLUSTER = Metric(  # not by name in `metrics=`: a study has models without clusters, too
    "per_cluster",
    "kernel distance of each cluster",
    per_cluster,
    {"kd_per_cluster_{backbone}": LOWER},
    rows=(GENERATED, REAL),
    fewest=3,
)
FRECHET = tuple(entry.name for entry in ENTRIES if entry.measure is frechet)


def frechet_metric(backbone: str) -> Metric:
    """The Fréchet distance on an extractor: the metric that is defined on it, or `fd`."""
    return next((METRICS[name] for name in FRECHET if METRICS[name].backbone == backbone), METRICS["fd"])


def frechet_name(backbone: str) -> str:
    """What the Fréchet distance on an extractor is called: `fid` on Inception, `fdd` on DINOv2 ViT-L, else `fd_…`."""
    return next(iter(frechet_metric(backbone).scores)).format(backbone=backbone)


def arrow_of(score: str) -> str:
    """↓ where lower is better, as of a Fréchet distance on any extractor; ↑ where higher is; empty where neither is."""
    return next((entry.scores[score] for entry in ENTRIES if score in entry.scores), "↓")


def label_of(score: str) -> str:
    """The score as tables have it: `fid ↓`."""
    return f"{score} {arrow_of(score)}".rstrip()


def best_of(score: str, values: Sequence[float]) -> float | None:
    """The highest or the lowest, whichever is better; None where neither is."""
    best = {"↑": max, "↓": min}.get(arrow_of(score))
    return None if best is None else best(values)
