"""Loggers by name: Lightning's own, whose x axis is the training images seen, and what pictures are for each.

They are given optimizer steps, as Lightning and its callbacks count, and write images.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

Metrics = Mapping[str, Any]
MLFLOW_RUN = "mlflow_run_id"  # file in the run folder: the run of MLflow's that another start goes on with


class TensorBoard(TensorBoardLogger):
    """Its files lie in the run folder itself, after which TensorBoard calls a run. The step is the images seen."""

    def __init__(self, folder: Path, images_per_step: int) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self.images_per_step = images_per_step

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        super().log_metrics(metrics, (step or 0) * self.images_per_step)

    def save(self) -> None:
        """Without the file of hyper-parameters: the run folder has its settings already."""
        super(TensorBoardLogger, self).save()


class CSV(CSVLogger):
    """`csv/version_0/metrics.csv` with the columns `step` and `nimg`; another start of the run has the next version."""

    def __init__(self, folder: Path, images_per_step: int) -> None:
        super().__init__(folder, name="csv", flush_logs_every_n_steps=1)
        self.images_per_step = images_per_step

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        super().log_metrics({**metrics, "nimg": (step or 0) * self.images_per_step}, step)


class Wandb(WandbLogger):
    """Weights & Biases, over `nimg`. Another start of a run goes on with the same run there."""

    def __init__(self, folder: Path, images_per_step: int) -> None:
        before = sorted(folder.glob("wandb/*run-*-*"))  # run-TIME-ID, or offline-run-TIME-ID
        identity = before[-1].name.rsplit("-", 1)[1] if before else None
        name = folder.as_posix().removeprefix("runs/")
        super().__init__(name, folder, identity, project=None if "WANDB_PROJECT" in os.environ else "cedm")
        self.images_per_step = images_per_step

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        super().log_metrics({**metrics, "nimg": (step or 0) * self.images_per_step}, step)


class MLFlow(MLFlowLogger):
    """MLflow, whose step is the images seen. Another start of a run goes on with the same run there."""

    def __init__(self, folder: Path, images_per_step: int) -> None:
        self.file = folder / MLFLOW_RUN
        identity = self.file.read_text().strip() if self.file.exists() else None
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cedm")
        place = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        super().__init__(experiment, folder.as_posix().removeprefix("runs/"), place, run_id=identity)
        self.images_per_step = images_per_step

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        super().log_metrics(metrics, (step or 0) * self.images_per_step)


def close(loggers: list[Logger]) -> None:
    """End the run at W&B, which another training in this process would go on with."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.experiment.finish()


def log_image(trainer: Trainer, tag: str, picture: Image.Image) -> None:
    """Show a picture in every logger that can; called on rank 0."""
    for logger in trainer.loggers:
        match logger:
            case TensorBoard():
                nimg = trainer.global_step * logger.images_per_step
                logger.experiment.add_image(tag, np.array(picture), nimg, dataformats="HWC")
            case Wandb():
                logger.log_image(tag, [picture], trainer.global_step)
            case MLFlow():
                nimg = trainer.global_step * logger.images_per_step
                logger.experiment.log_image(logger.run_id, picture, key=tag.replace("/", "_"), step=nimg)


def log_histogram(trainer: Trainer, tag: str, values: Tensor) -> None:
    """Show how values `[N]` are distributed in every logger that can; called on rank 0."""
    for logger in trainer.loggers:
        match logger:
            case TensorBoard():
                logger.experiment.add_histogram(tag, values, trainer.global_step * logger.images_per_step)
            case Wandb():
                import wandb

                logger.log_metrics({tag: wandb.Histogram(values.tolist())}, trainer.global_step)


def log_settings(loggers: list[Logger], shown: dict[str, Any], outcomes: tuple[str, ...]) -> None:
    """Give every logger the hyper-parameters; TensorBoard's table shows the newest `outcomes` beside them.

    Not by its `log_hyperparams`, which would write points of its own into those curves.
    """
    for logger in loggers:
        match logger:
            case TensorBoard():
                for summary in hparams(shown, dict.fromkeys(outcomes, 0)):
                    logger.experiment.file_writer.add_summary(summary)
            case Wandb():
                logger.experiment.define_metric("*", step_metric="nimg")
                logger.log_hyperparams(shown)
            case MLFlow():
                assert logger.run_id is not None
                known = logger.experiment.get_run(logger.run_id).data.params  # which cannot change any more
                logger.log_hyperparams({key: value for key, value in shown.items() if key not in known})
                logger.file.write_text(logger.run_id)
            case _:
                logger.log_hyperparams(shown)
