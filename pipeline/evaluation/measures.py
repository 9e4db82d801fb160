"""From the metrics asked for to their numbers: on which extractor each is taken, whether it can be, what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.images.images import ImageStore
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.features import Features, GeneratedSet
from pipeline.evaluation.metrics_table import FRECHET, IMAGES, METRICS, REAL, Metric, Sides, frechet_metric
from storage.errors import UserError

Plan = Sequence[Metric]  # each with its extractor and its settings, in the order of the table


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
    plan: dict[str, Metric] = {}
    for name in wanted:
        metric = METRICS[name]
        backbone = metric.backbone or chosen[metric.chosen_by]
        if backbone is None:
            raise UserError(f"evaluation.backbone=null, but {name} is taken on it. Set evaluation.backbone=pixels.")
        metric = frechet_metric(backbone) if name in FRECHET else metric  # fd on Inception is fid
        scores = {score.format(backbone=backbone): arrow for score, arrow in metric.scores.items()}
        own = getattr(settings, metric.group) if metric.group else None
        plan[metric.name] = replace(metric, backbone=backbone, scores=scores, settings=own)
    check_reference_file(settings, list(plan.values()))
    return list(plan.values())


def backbones(plan: Plan, of: Sequence[str] = tuple(METRICS), side: str = "") -> list[str]:
    """The extractors, each once: of some metrics, or of those that need each image's features of a side."""
    return list(dict.fromkeys(m.backbone for m in plan if m.name in of and (not side or side in m.needs)))


def check_reference_file(settings: EvaluateSettings, plan: Plan) -> None:
    """Refuse metrics that a file of mean and covariance cannot serve.

    Raises:
        UserError: with `reference=`, a metric needs the real images; with either file, not one Fréchet distance is
            asked for.
    """
    for name in ("reference", "save_reference"):
        if getattr(settings, name) is not None and len(backbones(plan, FRECHET)) != 1:
            expected = f"it holds the statistics of one extractor: ask for one of {', '.join(FRECHET)}"
            settings.refuse(name, f"{expected}, not metrics={settings.metrics}")
    unfit = [metric.name for metric in plan if REAL in metric.needs]
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
    for metric in plan:
        own, most = metric.settings, getattr(metric.settings, "num_images", None)
        there = min(fewest, most or fewest) if metric.compares else num_generated
        for name, more in metric.sizes.items():
            if getattr(own, name) + more > there:
                limit = "" if most is None else f", and {own.key('num_images')}={most}"
                own.refuse(
                    name,
                    f"it needs at least {getattr(own, name) + more:,} images, but {sides}{limit}. Set "
                    f"{own.key(name)}={there - more} (and report it), or leave {metric.name} out of metrics=",
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
    for metric in plan:
        backbone = metric.backbone
        found = metric.measure(
            Sides(generated[backbone], real[backbone], by_name[backbone], device, images), metric.settings
        )
        scores |= {name: value for name, value in found.items() if name.removesuffix("_std") in metric.scores}
        if IMAGES in metric.needs:
            reports[metric.name] = {"backbone": backbone, **found}
    return {"scores": scores, **reports}
