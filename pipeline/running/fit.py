"""One Lightning fit in one run folder, resumed where it stopped."""

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import Profiler
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from callbacks.snapshots import AtomicCheckpointIO, newest_snapshot
from callbacks.stop_request import Stopped, TimeIsUp
from callbacks.stopping import queue_again, stop_between_batches
from pipeline.running.processes import RUN_FOLDER_VARIABLE, adopt_torchrun
from pipeline.running.trainer_settings import CALLBACKS, PROFILERS, TrainerSettings
from storage.errors import UserError
from storage.settings import Settings

# Lightning's use of deprecated PyTorch names stays out of the terminal; its own warnings come through.
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the averaged weights are
warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket.*")  # costs one copy of 1×1 kernels
warnings.filterwarnings("ignore", message=".*call of `lr_scheduler.step.*")  # float16 skipped the first step
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the images lie in memory
warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # it starts at the trainer's step


# What curves and pictures are written to, by name.
LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": lambda folder: TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
}


def hyperparameters(*groups: Settings, **others: Any) -> dict[str, Any]:
    """What TensorBoard's table of hyper-parameters shows: the settings that tell one run from another."""
    leaves = {group.key(name): value for group in groups for name, value in group.identity().items()} | others
    return {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in leaves.items()}


def show_hyperparameters(trainer: Trainer, shown: dict[str, Any], outcomes: tuple[str, ...]) -> None:
    """Fill TensorBoard's table of hyper-parameters, beside the newest values of the `outcomes`' curves.

    Not by `logger.log_hyperparams`, which would write points of its own into those curves.
    """
    if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
        for summary in hparams(shown, dict.fromkeys(outcomes, 0)):
            trainer.logger.experiment.file_writer.add_summary(summary)


def with_more(callbacks: Sequence[Callback], names: Sequence[str], enable_progress_bar: bool) -> list[Callback]:
    """The callbacks and those of these names, with one progress bar at most: the one that was asked for.

    Raises:
        UserError: one of them needs a package that is not installed.
    """
    for name in names:
        if (package := CALLBACKS[name].package) and importlib.util.find_spec(package) is None:
            raise UserError(f"callbacks={name} needs {package}, which is not installed. Run: pip install {package}")
    more = [resolve_name(CALLBACKS[name].target)() for name in names]
    if any(isinstance(one, ProgressBar) for one in more) or not enable_progress_bar:
        callbacks = [one for one in callbacks if not isinstance(one, ProgressBar)]
    return [*callbacks, *more]


def profiler(name: str | None, folder: Path) -> Profiler | None:
    """The profiler of this name, which writes a report of this try into the run folder."""
    if name is None:
        return None
    # Its hooks, by which PyTorch's profiler learns the modules' names, could not be copied along with averages.
    own = {"record_module_names": False} if name == "pytorch" else {}
    return resolve_name(PROFILERS[name])(dirpath=folder / "profile", filename=time.strftime("%Y%m%d-%H%M%S"), **own)


def fit(
    settings: TrainerSettings,
    folder: Path,
    module: LightningModule,
    datamodule: LightningDataModule,
    callbacks: list[Callback],
    *,
    max_steps: int,
    precision: str,
    shown: dict[str, Any],
    outcomes: tuple[str, ...],
    accumulate: int = 1,
    log_every_steps: int = 1,
    overwrite: bool = False,
    more_callbacks: Sequence[str] = (),
    afterwards: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Train for `max_steps` optimizer steps from the newest snapshot in `folder/snapshots`, or from the start.

    `shown` are the settings in TensorBoard's table of hyper-parameters, `outcomes` the curves beside them.
    SIGTERM ends the process with exit code 143 after a snapshot on all ranks, Ctrl-C at once with 130; either leaves a
    snapshot to go on from. `more_callbacks` are names in `CALLBACKS`. `afterwards` is called on all ranks when the last
    step is done, now or in an earlier try.

    Raises:
        TimeIsUp: `trainer.max_time` was over before the last step, and a snapshot is written.
        UserError: a callback needs a package that is not installed.
    """
    settings = adopt_torchrun(settings)
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=precision,  # type: ignore[arg-type]  # checked by Lightning
        gradient_clip_val=settings.gradient_clip_val,
        gradient_clip_algorithm=settings.gradient_clip_algorithm,
        sync_batchnorm=settings.sync_batchnorm,
        deterministic=settings.deterministic,
        benchmark=settings.benchmark,
        detect_anomaly=settings.detect_anomaly,
        profiler=profiler(settings.profiler, folder),
        max_steps=max_steps,
        max_epochs=-1,  # one endless epoch: the data stream is a function of the step
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=[make(folder) for make in LOGGERS.values()],
        callbacks=with_more(callbacks, more_callbacks, settings.enable_progress_bar),
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=log_every_steps,
        num_sanity_val_steps=0,
        enable_progress_bar=settings.enable_progress_bar,
        enable_model_summary=settings.enable_model_summary,
        default_root_dir=folder,
    )
    show_hyperparameters(trainer, shown, outcomes)
    snapshot = newest_snapshot(folder / "snapshots", trainer.global_rank)
    if snapshot is not None and trainer.is_global_zero:
        print(f"Resuming from {snapshot}")

    def again() -> str:
        newest = newest_snapshot(folder / "snapshots")
        without = " without overwrite=true" if overwrite else ""
        return f"Run the same command{without} again to continue from {newest or 'the start'}."

    try:
        with stop_between_batches(trainer, settings.seconds):
            trainer.fit(module, datamodule=datamodule, ckpt_path=snapshot, weights_only=True)
            if trainer.global_step < max_steps:
                raise TimeIsUp
            module.to(trainer.strategy.root_device)  # Lightning has taken it away from there
            afterwards(trainer)
    except TimeIsUp:
        if trainer.is_global_zero:
            limit = f"trainer.max_time={settings.max_time}"
            print(f"Not finished: {limit} is up at step {trainer.global_step:,} of {max_steps:,}. {again()}")
        raise
    except SystemExit as stop:  # ours after SIGTERM, or Lightning's answer to Ctrl-C
        if trainer.is_global_zero:
            tqdm.write(f"Stopped. {again()}", file=sys.stderr)  # not into the bar
            queue_again()
        elif RUN_FOLDER_VARIABLE in os.environ:
            sys.exit(0)  # rank 0 has launched this process, and would be killed for its crash if the code were another
        sys.exit(stop.code if isinstance(stop, Stopped) else 130)
    return trainer
