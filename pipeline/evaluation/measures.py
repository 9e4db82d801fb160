"""From the metrics asked for to their numbers: on which extractor each is taken, whether it can be, what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.images.images import ImageStore
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.features import Features, GeneratedSet
from pipeline.evaluation.metrics_table import FRECHET, IMAGES, METRICS, REAL, Metric, Score, Sides, frechet_metric
from storage.errors import UserError


@dataclass(frozen=True)
class Measurement:
    """A metric on an extractor, with the metric's own settings."""

    metric: Metric
    backbone: str
    settings: Any

    @property
    def scores(self) -> list[Score]:
        """The numbers that it gives."""
        return self.metric.scores_on(self.backbone)


@dataclass(frozen=True)
class Plan:
    """All that is measured, in the order of the table."""

    measurements: Sequence[Measurement]

    @property
    def backbones(self) -> list[str]:
        """Each extractor once."""
        return list(dict.fromkeys(one.backbone for one in self.measurements))

    @property
    def frechet_backbones(self) -> list[str]:
        """Those that a Fréchet distance is taken on."""
        return [one.backbone for one in self.measurements if one.metric.name in FRECHET]

    def keep(self, side: str) -> set[str]:
        """Extractors whose features of each image of this side are needed."""
        return {one.backbone for one in self.measurements if side in one.metric.needs}


def plan_of(settings: EvaluateSettings, own_backbone: str | None) -> Plan:
    """The metrics asked for, each with its extractor, where `own_backbone` is `evaluation.backbone`.

    Raises:
        UserError: a metric's extractor is not named, or the file of `reference=` or `save_reference=` can't serve it.
    """
    wanted = [name for name in METRICS if name in settings.metrics]
    fixed = [METRICS[name].backbone for name in wanted if METRICS[name].backbone]
    preferred = METRICS["fdd"].backbone
    neighbours = preferred if preferred in fixed else fixed[0] if fixed else own_backbone
    chosen = {"evaluation.backbone": own_backbone, "neighbour_backbone": settings.neighbour_backbone or neighbours}
    if settings.memorisation and settings.reference is None:
        wanted.append("memorisation")
    measurements = {}
    for name in dict.fromkeys(wanted):
        metric = METRICS[name]
        backbone = metric.backbone or chosen[metric.chosen_by]
        if backbone is None:
            raise UserError(f"evaluation.backbone=null, but {name} is taken on it. Set evaluation.backbone=pixels.")
        metric = frechet_metric(backbone) if name in FRECHET else metric  # fd on Inception is fid
        own = None if metric.settings is None else getattr(settings, metric.settings.group)
        measurements[metric.name] = Measurement(metric, backbone, own)
    plan = Plan(list(measurements.values()))
    check_reference_file(settings, plan)
    return plan


def check_reference_file(settings: EvaluateSettings, plan: Plan) -> None:
    """Refuse metrics that a file of mean and covariance cannot serve.

    Raises:
        UserError: with `reference=`, a metric needs the real images; with either file, not one Fréchet distance is
            asked for.
    """
    for name in ("reference", "save_reference"):
        if getattr(settings, name) is not None and len(plan.frechet_backbones) != 1:
            settings.refuse(
                name,
                f"it holds the statistics of one extractor: ask for one of {', '.join(FRECHET)}, not "
                f"metrics={settings.metrics}",
            )
    unfit = [one.metric.name for one in plan.measurements if REAL in one.metric.needs]
    if settings.reference is not None and unfit:
        settings.refuse(
            "reference",
            f"it holds a mean and a covariance; {' and '.join(unfit)} need the images of the data set. Leave "
            f"reference= out, or set metrics=[{', '.join(name for name in settings.metrics if name not in unfit)}]",
        )


def check_sizes(plan: Plan, num_generated: int, num_real: int | None, generated: str, dataset: str) -> None:
    """Refuse metrics that the number of images does not allow, before anything is computed.

    Args:
        num_real: images of the data set; None where a file of statistics stands for it.
        generated, dataset: what the two sides are called in the message.

    Raises:
        UserError: names the setting, the number of images, and what would do.
    """
    fewest = num_generated if num_real is None else min(num_generated, num_real)
    sides = f"{generated} has {num_generated:,} images" + ("" if num_real is None else f" and {dataset} {num_real:,}")
    if fewest < 2:
        raise UserError(f"{sides}: a distance needs at least 2 on each side, and some thousands to mean much.")
    for one in plan.measurements:
        most = getattr(one.settings, "num_images", None)
        there = min(fewest, most or fewest) if one.metric.compares else num_generated
        for name, more in one.metric.sizes.items():
            needed = getattr(one.settings, name) + more
            if needed > there:
                key = one.settings.key(name)
                limit = "" if most is None else f", and {one.settings.key('num_images')}={most}"
                raise UserError(
                    f"{key}={needed - more} needs at least {needed:,} images, but {sides}{limit}. "
                    f"Set {key}={there - more} or less (and report it), or leave {one.metric.name} out of metrics=."
                )


def measure(
    plan: Plan,
    extractors: Sequence[Backbone],
    generated: Mapping[str, Features],
    real: Mapping[str, Features],
    device: torch.device,
    images: tuple[GeneratedSet, ImageStore, Path] | None,
) -> dict[str, Any]:
    """`scores`: all numbers by name; `memorisation`: the report on copies, None where it is not asked for.

    Args:
        generated, real: features of both sides by extractor.
        device: where they are compared.
        images: the generated images, the real ones, and the picture of copies to write; None without real images.
    """
    by_name = {extractor.name: extractor for extractor in extractors}
    scores: dict[str, float] = {}
    reports: dict[str, Any] = {"memorisation": None}
    for one in plan.measurements:
        sides = Sides(generated[one.backbone], real[one.backbone], by_name[one.backbone], device, images)
        found = one.metric.measure(sides, one.settings)
        names = {name for score in one.scores for name in (score.name, f"{score.name}_std")}
        scores |= {name: value for name, value in found.items() if name in names}
        if IMAGES in one.metric.needs:
            reports[one.metric.name] = {"backbone": one.backbone, **found}
    return {"scores": scores, **reports}
