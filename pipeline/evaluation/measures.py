"""From the metrics asked for to their numbers: on which extractor each is taken, whether it can be, what comes out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric

from datamodules.backbones.backbone_base import Backbone
from datamodules.images.image_store import ImageStore
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.features import Features, GeneratedSet, extract
from pipeline.evaluation.metrics_table import (
    FRECHET,
    GENERATED,
    LOWER,
    METRICS,
    NEIGHBOURS,
    OWN,
    PER_CLUSTER,
    REAL,
    Metric,
    Score,
    Sides,
    frechet_metric,
)
from storage.errors import DamagedArtifactError, UserError
from storage.files import read_sealed_json, write_sealed_json

Plan = Sequence[Metric]  # each with its extractor and its settings, in the order of the table


HELD_OUT, SAMPLE = OTHERS = ("held_out", "training_sample")  # what the names of scores against other images end in


@dataclass(frozen=True)
class OtherReference:
    """Other real images that distances are taken to, beside the data set's."""

    name: str  # what the names of these scores end in
    said: str  # beside them in a table
    description: Mapping[str, Any]  # in their protocol
    num_images: int
    features: Mapping[str, Features]  # by extractor

    def scores(self, plan: Plan, sides: Mapping[str, Sides]) -> dict[str, Score]:
        """All distances of the plan to these images that so few allow; `sides` are by extractor."""
        found = {}
        for metric in distances(plan):
            sizes = [metric.fewest, *(getattr(metric.settings, size) + more for size, more in metric.sizes.items())]
            if max(sizes) > self.num_images:
                continue
            real = self.features[metric.backbone]
            compared = replace(sides[metric.backbone], real=real, images=None, clusters=None)
            for name, score in metric.measure(compared, metric.settings).items():
                if metric.scores[name] == LOWER:
                    protocol = {**score.protocol, "reference": dict(self.description)}
                    beside = ", ".join(filter(None, (score.beside, self.said)))
                    found[f"{name}_{self.name}"] = replace(score, protocol=protocol, beside=beside)
        return found


def distances(plan: Plan) -> Plan:
    """The metrics that compare with real images, and are lower for images more like these."""
    return [metric for metric in plan if metric.compares and LOWER in metric.scores.values()]


def plan_of(settings: EvaluateSettings, own_backbone: str | None) -> Plan:
    """The metrics asked for, each with its extractor, where `own_backbone` is `evaluation.backbone`.

    Raises:
        UserError: a metric's extractor is not named; with `reference=`, a metric needs the real images; with it or
            `save_reference=`, not one Fréchet distance is asked for.
    """
    asked = [*settings.metrics, *(["memorisation"] if settings.memorisation and settings.reference is None else [])]
    wanted = [metric for metric in METRICS.values() if metric.name in asked]
    wanted += [PER_CLUSTER] if settings.per_cluster else []
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


def backbones(plan: Plan, of: Sequence[str] = (*METRICS, PER_CLUSTER.name), side: str = "") -> list[str]:
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
        if there < metric.fewest:
            raise UserError(f"{sides}: {metric.name} needs at least {metric.fewest}. Leave it out of metrics=")
        for name, more in metric.sizes.items():
            if getattr(own, name) + more > there:
                limit = "" if most is None else f", and {own.key('num_images')}={most}"
                own.refuse(
                    name,
                    f"it needs at least {getattr(own, name) + more:,} images, but {sides}{limit}. Set "
                    f"{own.key(name)}={there - more} (and report it), or leave {metric.name} out of metrics=",
                )


def measure_sets(
    sets: Sequence[GeneratedSet],
    plan: Plan,
    extractors: Sequence[Backbone],
    real: Mapping[str, Features],
    others: Sequence[OtherReference],
    store: ImageStore | None,
    clusters: torch.Tensor | None,
    batch_size: int,
    folder: Path,
    fabric: Fabric,
) -> list[dict[str, Any]]:
    """The results of every set, on rank 0: all processes together extract features, rank 0 compares them.

    Each result is kept in the run folder, and a stopped run goes on after them.

    Args:
        real: features of the other side by extractor.
        others: what distances are taken to beside it.
        store: its images, for the few that are looked at; None where a file of statistics stands for them.
        clusters: of each of its images, [M], where they are compared cluster by cluster.

    Returns:
        For each set `scores`, each `Score` as a dictionary by its name, and `generated`, the set's description.
    """
    results, device = [], fabric.device
    comparing = torch.device("cpu") if device.type == "mps" else device  # in part in float64, which MPS lacks
    for number, generated in enumerate(sets, start=1):
        file = folder / f"set-{number}.json"
        result = kept_result(file) if fabric.is_global_zero else None
        if not fabric.broadcast(result is not None):
            generated.to(device)
            keep = backbones(plan, side=GENERATED)
            found = extract(generated, extractors, keep, batch_size, device, f"set {number}")
            if fabric.is_global_zero:
                images = None if store is None else (generated, store, folder / f"nearest-{number}.png")
                ids = None if clusters is None else (torch.tensor(generated.cluster_ids), clusters)
                sides = {e.name: Sides(found[e.name], real[e.name], e, comparing, images, ids) for e in extractors}
                measured = [metric.measure(sides[metric.backbone], metric.settings) for metric in plan]
                measured += [other.scores(plan, sides) for other in others]
                scores = {name: asdict(score) for several in measured for name, score in several.items()}
                result = {"scores": scores, "generated": generated.description}
                write_sealed_json(file, result)
        if result is not None:
            results.append(result)
    return results


def kept_result(file: Path) -> dict[str, Any] | None:
    """The result of a set that was measured before; None where it is yet to be measured."""
    try:
        return read_sealed_json(file)
    except DamagedArtifactError as error:
        print(f"{error} This set is measured again.", file=sys.stderr)
        return None
