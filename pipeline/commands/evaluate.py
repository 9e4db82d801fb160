"""`cedm evaluate`: generated images and a data set → distances, each with its whole protocol."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig

from datamodules.backbones.backbones import Backbone
from datamodules.images.images import ImageStore
from datamodules.images.sources import ImageSource
from metrics.frechet import Statistics
from pipeline.evaluation.evaluation_summary import show_in_tensorboard, summarise, table
from pipeline.evaluation.features import Features, extract
from pipeline.evaluation.generated import GeneratedByModel, GeneratedSet, generated_sets
from pipeline.evaluation.measures import Plan, check_reference_file, check_sizes, distances, plan_of, rows
from pipeline.evaluation.memorised import memorisation_report
from pipeline.evaluation.reference import build_extractor, extractor_identity, extractor_settings, reference_features
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    read_summary,
    run_settings,
    write_summary,
)
from pipeline.running.trainer_settings import TrainerSettings
from pipeline.settings.command import command
from pipeline.settings.inputs import plain, source_of
from storage.digests import file_digest
from storage.errors import DamagedArtifactError, UserError
from storage.files import read_sealed_json, write_sealed_json
from storage.fingerprints import fingerprint

GROUPS = ("dataset", "metrics", "memorisation", "neighbour_backbone", "kid", "prdc", "inception_score")
GROUPS_OF_A_MODEL = ("num", "sets", "first_seed", "clusters", "sampler")

logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Reference:
    """The other side: a data set, or a file of statistics."""

    description: dict[str, Any]
    source: ImageSource | None = None
    statistics: Statistics | None = None


@command
def evaluate(cfg: DictConfig) -> None:
    plan = plan_of(cfg)
    backbones = {name: extractor_settings(cfg, name, asked_by(cfg, name)) for name in plan.backbones}
    check_reference_file(cfg, plan)
    sets = generated_sets(cfg)
    reference = reference_of(cfg)
    for generated in sets:
        where = f"generated={generated.description['path']}"
        check_sizes(cfg, plan, len(generated), reference.description["num_images"], where)
    identities = {name: extractor_identity(cfg, settings) for name, settings in backbones.items()}
    inputs = {
        "reference": reference.description["fingerprint"],
        "generated": fingerprint([generated.fingerprint for generated in sets]),
        **{f"extractor_{name}": fingerprint(identity) for name, identity in identities.items()},
    }
    groups = GROUPS + (GROUPS_OF_A_MODEL if isinstance(sets[0], GeneratedByModel) else ())
    settings = run_settings(cfg, inputs, groups)
    devices = TrainerSettings(**plain(cfg.trainer))
    machine, folder = join(devices, lambda: choose_run_folder(cfg, "evaluate", settings))
    summary = None if cfg.overwrite else read_summary(folder, "evaluate")
    if summary is not None and (cfg.save_reference is None or Path(cfg.save_reference).exists()):
        if machine.rank == 0:
            print(f"Nothing to do: this evaluation is finished.\n{table(summary, folder)}")
        return
    extractors = [build_extractor(cfg, settings) for settings in backbones.values()]
    check_fit(cfg, plan, reference, extractors)
    with side_by_side(devices) as fabric, opened_run_folder(folder, settings, cfg.overwrite, fabric.global_rank):
        results = Evaluation(cfg, plan, reference, extractors, folder, fabric).measure(sets)
        if fabric.is_global_zero:
            show_in_tensorboard(folder, results)
            summary = summarise(cfg, plan, results, reference.description, identities)
            write_summary(folder, "evaluate", summary, inputs)
            print(table(summary, folder))


def reference_of(cfg: DictConfig) -> Reference:
    """The data set of `dataset=`, or the file of `reference=`, which needs no data set."""
    if cfg.reference is None:
        source = source_of(cfg)
        size = f"{cfg.dataset.resolution}×{cfg.dataset.resolution}"
        description = {
            "dataset": source.name,
            "fingerprint": source.fingerprint,
            "num_images": len(source),
            "resized": f"centre crop to a square and LANCZOS to {size} (Pillow), where the size differs",
        }
        return Reference(description, source=source)
    path = Path(str(cfg.reference))
    statistics = Statistics.load_npz(path)
    description = {"file": str(path), "fingerprint": file_digest(path), "num_images": None}
    return Reference(description, statistics=statistics)


def asked_by(cfg: DictConfig, backbone: str) -> str:
    """The setting that named a backbone, for the message where there is none."""
    return "neighbour_backbone" if backbone == cfg.neighbour_backbone else "evaluation.backbone"


def check_fit(cfg: DictConfig, plan: Plan, reference: Reference, extractors: Sequence[Backbone]) -> None:
    """Refuse a file of statistics of another number of features."""
    if reference.statistics is None:
        return
    found = len(reference.statistics.mean)
    (extractor,) = (e for e in extractors if e.name in plan.frechet_backbones)
    if extractor.dim != found:
        raise UserError(
            f"reference={cfg.reference} holds statistics of {found} features; {extractor.name} has {extractor.dim}. "
            "Choose the metric whose extractor made the file."
        )


def kept_result(file: Path) -> dict[str, Any] | None:
    """The result of a set that was measured before; None where it is yet to be measured."""
    try:
        return read_sealed_json(file)
    except DamagedArtifactError as error:
        print(f"{error} This set is measured again.", file=sys.stderr)
        return None


@dataclass(frozen=True)
class Evaluation:
    """Measures sets of images, one after the other; all processes together extract features, rank 0 compares them."""

    cfg: DictConfig
    plan: Plan
    reference: Reference
    extractors: Sequence[Backbone]
    folder: Path
    fabric: Fabric

    def measure(self, sets: Sequence[GeneratedSet]) -> list[dict[str, Any]]:
        """The results of every set, on rank 0; each is kept in the run folder, and a stopped run goes on after them."""
        files = [self.folder / f"set-{number}.json" for number in range(1, len(sets) + 1)]
        kept = [kept_result(file) for file in files] if self.fabric.is_global_zero else []
        done = self.fabric.broadcast([result is not None for result in kept])
        real = self.real_features()
        if self.cfg.save_reference is not None and self.fabric.is_global_zero:
            real[self.plan.frechet_backbones[0]].statistics.save_npz(self.cfg.save_reference)
            print(f"reference file    {self.cfg.save_reference}  (mu and sigma, EDM's format)")
        keep, batch_size = self.plan.keep(of_reference=False), self.cfg.batch_size
        for number, generated in enumerate(sets, start=1):
            if done[number - 1]:
                continue
            generated.to(self.fabric.device)
            features = extract(generated, self.extractors, keep, batch_size, self.fabric, f"set {number}")
            if self.fabric.is_global_zero:
                scores = distances(self.cfg, self.plan, self.extractors, features, real, self.device)
                memorised = self.memorised(generated, features, real, self.folder / f"nearest-{number}.png")
                if memorised is not None:
                    scores |= {name: memorised[name] for name in ("authenticity", "copies")}
                result = {"scores": scores, "memorisation": memorised, "generated": generated.description}
                write_sealed_json(files[number - 1], result)
        return [kept_result(file) or {} for file in files] if self.fabric.is_global_zero else []

    def real_features(self) -> dict[str, Features]:
        """Of the data set by every extractor, or what the file says."""
        if self.reference.source is None:
            assert self.reference.statistics is not None
            return {self.plan.frechet_backbones[0]: Features(self.reference.statistics)}
        keep = self.plan.keep(of_reference=True)
        return reference_features(self.cfg, self.reference.source, self.extractors, keep, self.fabric)

    def memorised(
        self, generated: GeneratedSet, features: Mapping[str, Features], real: Mapping[str, Features], picture: Path
    ) -> dict[str, Any] | None:
        """The report on copies of training images, where it is asked for."""
        backbone = self.plan.backbone_of.get("memorisation")
        if backbone is None:
            return None
        assert self.reference.source is not None
        store = ImageStore(self.reference.source, self.cfg.dataset.resolution, self.cfg.dataset.channels, memory_gb=0)
        ours, theirs = (rows(side, backbone).to(self.device) for side in (features, real))
        return {"backbone": backbone, **memorisation_report(generated, ours, store, theirs, picture)}

    @property
    def device(self) -> torch.device:
        """Where features are compared: in part in float64, which one kind of device lacks."""
        return torch.device("cpu") if self.fabric.device.type == "mps" else self.fabric.device


if __name__ == "__main__":
    evaluate()
