"""What `cedm evaluate` measures: which metric takes which features, whether there are enough of them, the numbers."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbones import frechet_name
from datamodules.backbones.inception_backbone import InceptionBackbone
from datamodules.images.sources import evenly_spaced
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel import kernel_distance
from metrics.prdc import prdc
from pipeline.evaluation.features import Features
from storage.errors import UserError

METRICS = ("fid", "fdd", "fd", "kid", "is", "prdc")
BACKBONES = {"fid": "inception", "fdd": "dinov2_vitl14", "kid": "inception", "is": "inception"}
METRIC_OF_SCORE = {
    "inception_score": "is",
    **dict.fromkeys(("authenticity", "copies"), "memorisation"),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), "prdc"),
}
HIGHER_IS_BETTER = ("inception_score", "precision", "recall", "density", "coverage")
NEITHER_IS_BETTER = ("authenticity", "copies")


@dataclass(frozen=True)
class Plan:
    """Which backbone each metric is taken on; `memorisation` among them where it is asked for."""

    backbone_of: dict[str, str]

    @property
    def backbones(self) -> list[str]:
        """Each backbone once."""
        return list(dict.fromkeys(self.backbone_of.values()))

    @property
    def frechet_backbones(self) -> list[str]:
        """Those that a Fréchet distance is taken on."""
        return list(dict.fromkeys(self.backbone_of[name] for name in ("fid", "fdd", "fd") if name in self.backbone_of))

    def backbone_of_score(self, score: str) -> str:
        """The backbone that a number was taken on."""
        for backbone in self.frechet_backbones:
            if frechet_name(backbone) == score:
                return backbone
        return self.backbone_of[METRIC_OF_SCORE.get(score, score)]

    def keep(self, of_reference: bool) -> set[str]:
        """Backbones whose features are needed one by one, on the generated side or on the reference's."""
        metrics = ("kid", "prdc", "memorisation") if of_reference else ("kid", "is", "prdc", "memorisation")
        return {self.backbone_of[name] for name in metrics if name in self.backbone_of}


def plan_of(cfg: DictConfig) -> Plan:
    """The metrics asked for, each with its backbone.

    Raises:
        UserError: there is no such metric, or its backbone is not named.
    """
    wanted = list(cfg.metrics)
    for name in wanted:
        if name not in METRICS:
            near = difflib.get_close_matches(str(name), METRICS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"metrics={wanted}: there is no metric {name!r}.{hint} There are: {', '.join(METRICS)}.")
    if not wanted:
        raise UserError(f"metrics=[]: name at least one of {', '.join(METRICS)}.")
    if cfg.neighbour_backbone is not None:
        neighbours = cfg.neighbour_backbone
    elif "fdd" in wanted:
        neighbours = BACKBONES["fdd"]
    else:
        neighbours = "inception" if {"fid", "kid", "is"} & set(wanted) else cfg.evaluation.backbone
    backbones: dict[str, str | None] = {**BACKBONES, "fd": cfg.evaluation.backbone, "prdc": neighbours}
    backbone_of = {name: backbones[name] for name in METRICS if name in wanted}
    if cfg.memorisation and cfg.reference is None:
        backbone_of["memorisation"] = neighbours
    for name, backbone in backbone_of.items():
        if backbone is None:
            raise UserError(f"evaluation.backbone=null, but {name} is taken on it. Type evaluation.backbone=pixels.")
    return Plan({name: str(backbone) for name, backbone in backbone_of.items()})


def check_sizes(cfg: DictConfig, plan: Plan, num_generated: int, num_reference: int | None, where: str) -> None:
    """Refuse metrics that the number of images does not allow, before anything is computed.

    Args:
        num_reference: images of the data set; None where a file of statistics stands for it.
        where: the set of generated images, for the message.

    Raises:
        UserError: names the setting, the number of images, and what would do.
    """
    fewest = num_generated if num_reference is None else min(num_generated, num_reference)
    sides = f"{where} has {num_generated:,} images" + (
        "" if num_reference is None else f" and dataset={cfg.dataset.name} {num_reference:,}"
    )
    if fewest < 2:
        raise UserError(f"{sides}: a distance needs at least 2 on each side, and some thousands to mean much.")
    if "kid" in plan.backbone_of and fewest < cfg.kid.subset_size:
        raise UserError(
            f"kid.subset_size={cfg.kid.subset_size}, but {sides}. Type kid.subset_size={min(fewest, 100)} (and report "
            "it: KID depends on it but little), or leave kid out."
        )
    if "is" in plan.backbone_of and num_generated < cfg.inception_score.num_splits:
        raise UserError(f"inception_score.num_splits={cfg.inception_score.num_splits}, but {sides}.")
    if "prdc" in plan.backbone_of:
        used = min(fewest, cfg.prdc.num_images or fewest)
        for key in ("k_precision_recall", "k_density_coverage"):
            if cfg.prdc[key] >= used:
                raise UserError(
                    f"prdc.{key}={cfg.prdc[key]} needs more than {cfg.prdc[key]} images on each side, but {sides}"
                    + (f" and prdc.num_images={cfg.prdc.num_images}." if cfg.prdc.num_images else ".")
                )


def check_reference_file(cfg: DictConfig, plan: Plan) -> None:
    """Refuse metrics that a file of mean and covariance cannot serve.

    Raises:
        UserError: with `reference=`, anything but one Fréchet distance and the Inception score is asked for; or with
            `save_reference=`, not one Fréchet distance.
    """
    for setting, path in (("reference", cfg.reference), ("save_reference", cfg.save_reference)):
        if path is None:
            continue
        if not str(path).endswith(".npz") or "=" in str(path).rsplit("/", 1)[-1]:
            raise UserError(f"{setting}={path}: the name of an .npz file (without '=') is expected.")
        if len(plan.frechet_backbones) != 1:
            raise UserError(
                f"{setting}={path} holds the statistics of one extractor: ask for one of fid, fdd and fd, "
                f"not metrics={list(cfg.metrics)}."
            )
    if cfg.reference is None:
        return
    if cfg.save_reference is not None:
        raise UserError("save_reference= writes the statistics of the data set: leave reference= out.")
    unfit = [name for name in ("kid", "prdc") if name in plan.backbone_of]
    if unfit:
        raise UserError(
            f"reference={cfg.reference} holds a mean and a covariance; {' and '.join(unfit)} need the images of the "
            f"data set. Leave reference= out, or type metrics=[{', '.join(m for m in cfg.metrics if m not in unfit)}]."
        )


def distances(
    cfg: DictConfig,
    plan: Plan,
    extractors: Sequence[Backbone],
    generated: Mapping[str, Features],
    reference: Mapping[str, Features],
    device: torch.device,
) -> dict[str, float]:
    """All numbers but those on memorisation, by name; KID and Inception score with their standard deviation."""
    scores: dict[str, float] = {}
    for backbone in plan.frechet_backbones:
        scores[frechet_name(backbone)] = frechet_distance(
            generated[backbone].statistics, reference[backbone].statistics
        )
    if "kid" in plan.backbone_of:
        ours, theirs = (rows(side, plan.backbone_of["kid"]) for side in (generated, reference))
        kid = kernel_distance(ours.to(device), theirs.to(device), cfg.kid.num_subsets, cfg.kid.subset_size)
        scores |= {"kid": kid.mean, "kid_std": kid.std}
    if "is" in plan.backbone_of:
        backbone = plan.backbone_of["is"]
        (extractor,) = (e for e in extractors if e.name == backbone)
        assert isinstance(extractor, InceptionBackbone)
        logits = extractor.logits(rows(generated, backbone).to(device))
        inception = inception_score(logits, cfg.inception_score.num_splits)
        scores |= {"inception_score": inception.mean, "inception_score_std": inception.std}
    if "prdc" in plan.backbone_of:
        backbone = plan.backbone_of["prdc"]
        ours, theirs = (
            features[evenly_spaced(len(features), cfg.prdc.num_images)].to(device)
            for features in (rows(side, backbone) for side in (generated, reference))
        )
        by_k = {k: prdc(ours, theirs, k) for k in {cfg.prdc.k_precision_recall, cfg.prdc.k_density_coverage}}
        scores |= {name: by_k[cfg.prdc.k_precision_recall][name] for name in ("precision", "recall")}
        scores |= {name: by_k[cfg.prdc.k_density_coverage][name] for name in ("density", "coverage")}
    return scores


def rows(side: Mapping[str, Features], backbone: str) -> Tensor:
    """The features themselves, [N, D]."""
    kept = side[backbone].rows
    assert kept is not None
    return kept


def best(score: str, values: Sequence[float]) -> float | None:
    """The highest or the lowest, whichever is better; None where neither is."""
    if score in NEITHER_IS_BETTER:
        return None
    return max(values) if score in HIGHER_IS_BETTER else min(values)
