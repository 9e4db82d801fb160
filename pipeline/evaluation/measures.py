"""From the metrics asked for to their numbers: on which extractor each is taken, whether it can be, what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.images.images import ImageStore
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.features import Features, GeneratedSet
from pipeline.evaluation.metrics_table import FRECHET, METRICS, NEIGHBOURS, OWN, REAL, Metric, Sides, frechet_metric
from storage.errors import UserError

Plan = Sequence[Metric]  # each with its extractor and its settings, in the order of the table


def plan_of(settings: EvaluateSettings, own_backbone: str | None) -> Plan:
    """The metrics asked for, each with its extractor, where `own_backbone` is `evaluation.backbone`.

    Raises:
        UserError: a metric's extractor is not named; with `reference=`, a metric needs the real images; with it or
            `save_reference=`, not one Fréchet distance is asked for.
    """
    asked = [*settings.metrics, *(["memorisation"] if settings.memorisation and settings.reference is None else [])]
    wanted = [metric for metric in METRICS.values() if metric.name in asked]
    fixed = [metric.backbone for metric in wanted if metric.backbone not in (OWN, NEIGHBOURS)]
    preferred = METRICS["fdd"].backbone
    neighbours = preferred if preferred in fixed else fixed[0] if fixed else own_backbone
    chosen = {OWN: own_backbone, NEIGHBOURS: settings.neighbour_backbone or neighbours}
    plan: dict[str, Metric] = {}
    for metric in wanted:
        backbone = chosen.get(metric.backbone, metric.backbone)
        if backbone is None:
            raise UserError(f"{OWN}=null, but {metric.name} is taken on it. Set {OWN}=pixels.")
        metric = frechet_metric(backbone) if metric.name in FRECHET else metric  # fd on Inception is fid
        scores = {score.format(backbone=backbone): arrow for score, arrow in metric.scores.items()}
        own = metric.settings and getattr(settings, metric.settings.group)
        plan[metric.name] = replace(metric, backbone=backbone, scores=scores, settings=own)
    for name in ("reference", "save_reference"):
        if getattr(settings, name) is not None and len(backbones(list(plan.values()), FRECHET)) != 1:
            expected = f"it holds the statistics of one extractor: ask for one of {', '.join(FRECHET)}"
            settings.refuse(name, f"{expected}, not metrics={settings.metrics}")
    unfit = [name for name, metric in plan.items() if REAL in metric.rows]
    if settings.reference is not None and unfit:
        settings.refuse(
            "reference",
            f"it holds a mean and a covariance; {' and '.join(unfit)} need the images of the data set. Leave "
            f"reference= out, or set metrics=[{', '.join(name for name in settings.metrics if name not in unfit)}]",
        )
    return list(plan.values())


def backbones(plan: Plan, of: Sequence[str] = tuple(METRICS), side: str = "") -> list[str]:
    """The extractors, each once: of some metrics, or of those that need each image's features of a side."""
    return list(dict.fromkeys(m.backbone for m in plan if m.name in of and (not side or side in m.rows)))


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
) -> dict[str, dict[str, Any]]:
    """All scores by name, as dictionaries; the arguments are those of `Sides`, features by their extractor."""
    sides = {e.name: Sides(generated[e.name], real[e.name], e, device, images) for e in extractors}
    found = [metric.measure(sides[metric.backbone], metric.settings) for metric in plan]
    return {name: asdict(score) for scores in found for name, score in scores.items()}
