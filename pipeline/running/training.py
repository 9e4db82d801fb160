"""One diffusion training in its run folder: what it will cost, the training with its callbacks, the summary."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from callbacks.along_training import AlongTraining
from callbacks.frechet import FrechetDistance
from callbacks.held_out import HeldOutLoss
from callbacks.sample_grid import SampleGrid
from callbacks.schedule import AtMostEvery, EveryKimg, OnceAtKimg, Schedule
from callbacks.snapshots import DenoiserFile, PowerAverageFiles, Snapshots
from callbacks.throughput import ImageProgressBar, Throughput
from datamodules.image_datamodule import ImageDataModule
from lightning_modules.edm_module import EDMModule
from pipeline.evaluation.evaluation_settings import EvaluationSettings
from pipeline.evaluation.metrics_table import frechet_name
from pipeline.evaluation.reference import Extractors
from pipeline.evaluation.sampling import Sampler, describe_labels
from pipeline.pictures.chart import draw_png
from pipeline.pictures.curves import history_chart
from pipeline.running.condition import Condition
from pipeline.running.cost import Cost, measure_cost
from pipeline.running.fit import fit
from pipeline.running.held_out import held_out_loss
from pipeline.running.processes import Machine
from pipeline.running.run_files import AVERAGES, BEST, DENOISER, GUIDE, HELD_OUT
from pipeline.running.trainer_settings import TrainerSettings

LARGEST_IN_PIXELS = 64
SNAPSHOT_SECONDS = 300.0  # at least, between snapshots where the user has not said how often


@dataclass
class Training:
    """A module, its data and what is watched while it trains.

    Attributes:
        condition: what decides its clusters.
        condition_name: what these are called, such as `temi-40`, or none.
        shown: settings that the loggers are given.
        loggers, more_callbacks: names of those that the user has asked for.
    """

    module: EDMModule
    data: ImageDataModule
    sampler: Sampler
    extractors: Extractors
    evaluation: EvaluationSettings
    trainer: TrainerSettings
    machine: Machine
    folder: Path
    condition: Condition
    condition_name: str
    shown: dict[str, Any]
    loggers: Sequence[str] = ("tensorboard",)
    more_callbacks: Sequence[str] = ()

    def run(self, overwrite: bool) -> dict[str, Any]:
        """Train to the end, or on from the newest snapshot; what the summary says."""
        self.data.setup()
        distance, held_out = self.distance(), self.held_out()
        along = [one for one in (distance, held_out) if one is not None]
        trainer = fit(
            self.trainer,
            self.folder,
            self.module,
            self.data,
            [*self.callbacks(), *along, *self.savers()],
            max_steps=self.total_images // self.data.batch_size,
            images_per_step=self.data.batch_size,
            precision=self.trainer.precision,
            shown=self.shown,
            outcomes=("train/loss",) if distance is None else (distance.name, "train/loss"),
            accumulate=self.data.accumulate,
            log_every_steps=max(1, round(self.evaluation.log_every_kimg * 1000 / self.data.batch_size)),
            overwrite=overwrite,
            loggers=self.loggers,
            more_callbacks=self.more_callbacks,
            afterwards=lambda trainer: self.finish(trainer, along),
        )
        if not trainer.is_global_zero:
            return {}
        return self.results(distance) | ({} if held_out is None else {"held_out": held_out.summary})

    @property
    def total_images(self) -> int:
        """Images of the whole training: whole batches, at least one."""
        batch_size = self.data.batch_size
        return batch_size * max(1, round(self.module.settings.duration_kimg * 1000 / batch_size))

    def announce(self) -> Cost:
        """Say what will be trained, on what, and what it will cost, before it starts."""
        self.data.setup()
        data, machine, store = self.data, self.machine, self.data.store
        assert store is not None
        denoiser = self.module.denoiser
        parameters = sum(p.numel() for p in denoiser.parameters()) / 1e6
        labels = f"{data.num_classes} clusters" if data.num_classes else "no condition"
        if not any(getattr(part, "num_heads", 0) for part in denoiser.modules()):
            labels += ", no attention"
        splits = "" if data.source.splits is None else f"split       {data.source.splits}\n"
        share = data.batch_size // machine.world_size // data.accumulate
        print(
            f"data        {store.description}\n{splits}"
            f"network     {denoiser.settings.architecture}, {parameters:.2f} M parameters, {labels}\n"
            f"batch       {data.batch_size} = {machine} × {share} images "
            f"× {data.accumulate} accumulated, {self.trainer.precision}{', compiled' * bool(self.trainer.compile)}"
        )
        if data.resolution > LARGEST_IN_PIXELS:
            print(
                f"Warning: EDM in pixels is meant for images of up to {LARGEST_IN_PIXELS}×{LARGEST_IN_PIXELS}; at "
                f"{data.resolution}×{data.resolution} its noise levels are too low and a step costs "
                f"{(data.resolution / LARGEST_IN_PIXELS) ** 2:.0f} times as much. "
                f"Set dataset.resolution={LARGEST_IN_PIXELS}."
            )
        cost = self.cost(share)
        print(f"cost        {cost}")
        return cost

    def cost(self, share: int) -> Cost:
        """What the training will cost, with passes of `share` images on each device."""
        images, positions = self.data.labelled_images(), torch.arange(share)
        batch = images[positions]  # this one waits for the order of the images, too
        start = time.perf_counter()
        images[positions + share]
        return measure_cost(
            self.module,
            batch,
            self.machine.device,
            self.machine.world_size,
            self.total_images,
            self.trainer.precision,
            self.data.accumulate,
            loading=time.perf_counter() - start,
            num_workers=self.data.workers(self.machine.world_size),
        )

    def callbacks(self) -> list[Callback]:
        """What is watched, but for the distance."""
        data, evaluation = self.data, self.evaluation
        grids = self.folder / "grids"
        return [
            ImageProgressBar(data.batch_size // data.accumulate, self.total_images, "EDM"),
            Throughput(evaluation.log_every_kimg),
            SampleGrid(self.sampler, grids, evaluation.grid_every_kimg, batch_size=evaluation.batch_size),
        ]

    def distance(self) -> FrechetDistance | None:
        """What measures the Fréchet distance; None for `evaluation.backbone=null`."""
        evaluation, data = self.evaluation, self.data
        if evaluation.backbone is None:
            return None
        assert data.store is not None
        store = data.store
        say = print if self.machine.rank == 0 else lambda _: None
        extractor = self.extractors.build_or_own(evaluation.backbone, say)
        reference = self.extractors.reference(
            data.source, lambda: store, [extractor], (), evaluation.batch_size, self.machine.device
        )
        sampling = {
            "steps": self.sampler.settings.num_steps(data.resolution),
            "sampler": self.sampler.protocol,
            "labels": describe_labels("frequencies", self.module.denoiser, self.sampler.settings.labels),
        }
        return FrechetDistance(
            frechet_name(extractor.name),
            extractor,
            reference[extractor.name].statistics,
            self.sampler,
            evaluation.every_kimg,
            evaluation.num_images,
            evaluation.batch_size,
            sampling,
            self.sampler.settings.labels,
            DenoiserFile(self.folder / BEST, None, self.file_meta),
        )

    def held_out(self) -> HeldOutLoss | None:
        """What measures the loss on images held out; None where there are none."""
        say = print if self.machine.rank == 0 else lambda _: None
        evaluation = self.evaluation
        path = self.folder / HELD_OUT
        return held_out_loss(self.condition, self.data, evaluation.every_kimg, evaluation.batch_size, path, say)

    def savers(self) -> list[Callback]:
        """What writes the model and the snapshots: last, so that a snapshot holds what the others have seen."""
        training, evaluation = self.module.settings, self.evaluation
        files: list[Callback] = [self.model_file]
        if training.keep_guide:
            early = OnceAtKimg(training.duration_kimg / 8)
            files.append(DenoiserFile(self.folder / GUIDE, early, self.file_meta))
        if training.posthoc_snapshots:
            often = EveryKimg(training.duration_kimg / training.posthoc_snapshots)
            files.append(PowerAverageFiles(self.folder / AVERAGES, often))
        snapshots = self.folder / "snapshots", self.snapshots_due, evaluation.keep_snapshots
        return [*files, Snapshots(*snapshots, self.trainer.identity())]

    @cached_property
    def snapshots_due(self) -> Schedule:
        """When snapshots and the model are written: the default number of images takes many GPUs less than a minute."""
        every_kimg = self.evaluation.snapshot_every_kimg
        due = EveryKimg(every_kimg)
        return AtMostEvery(SNAPSHOT_SECONDS, due) if every_kimg == EvaluationSettings.snapshot_every_kimg else due

    @property
    def model_file(self) -> DenoiserFile:
        """What writes the model into the run folder."""
        return DenoiserFile(self.folder / DENOISER, self.snapshots_due, self.file_meta)

    @property
    def file_meta(self) -> dict[str, Any]:
        """What the model's file says of the training beside what the module knows."""
        return {"sampler": self.sampler.settings.identity()}

    def finish(self, trainer: Trainer, along: Sequence[AlongTraining]) -> None:
        """What the last step leaves to do, where it was stopped before that or a file was lost since."""
        for one in along:
            one.measure_if_missing(trainer, self.module)
        if trainer.is_global_zero and not self.model_file.is_whole():
            self.model_file.write(self.module)

    def results(self, distance: FrechetDistance | None) -> dict[str, Any]:
        """What the summary says; the curve of distances is drawn."""
        found: dict[str, Any] = {
            "nimg": self.total_images,
            "loss": float(self.module.recent_loss),
            "denoiser": str(self.folder / DENOISER),
            "batch_size": self.data.batch_size,
            "parameters": sum(p.numel() for p in self.module.denoiser.parameters()),
        }
        if distance is not None and distance.history:
            title = f"{self.data.source.name}, {self.condition_name}: {distance.num_images:,} generated images"
            y_name = f"Fréchet distance ({distance.name})"
            draw_png(
                history_chart("distance", distance.history, title, "kimg seen", y_name), self.folder / "distance.png"
            )
            found[distance.name] = distance.history[-1][1]
            kimg, least = distance.best_so_far
            found["best"] = {"kimg": kimg, distance.name: least, "denoiser": str(self.folder / BEST)}
            found["distances"] = {"name": distance.name, "kimg_and_distance": distance.history, **distance.protocol}
        return found
