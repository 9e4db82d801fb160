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
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from tqdm import tqdm

from callbacks.lightning_internals import set_ddp_options
from callbacks.loggers import close, log_settings
from callbacks.snapshots import ThreadedCheckpointIO, newest_snapshot
from callbacks.stop_request import Stopped, TimeIsUp
from callbacks.stopping import queue_again, stop_between_batches
from callbacks.turns import TakeTurns
from pipeline.running.processes import RUN_FOLDER_VARIABLE, adopt_torchrun
from pipeline.running.trainer_settings import CALLBACKS, LOGGERS, PROFILERS, More, TrainerSettings
from storage.errors import UserError
from storage.settings import Settings

# Lightning's use of deprecated PyTorch names stays out of the terminal; its own warnings come through.
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the averaged weights are
warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket.*")  # costs one copy of 1×1 kernels
warnings.filterwarnings("ignore", message=".*call of `lr_scheduler.step.*")  # float16 skipped the first step
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the images lie in memory
warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # it starts at the trainer's step


# TensorBoard sorts by the alphabet, capitals before all others, and shows the first five until one chooses.
FIRST = {"clustering.num_clusters": "C", "training.lr": "Learning rate", "clustering.method": "Method"}


def hyperparameters(*groups: Settings, **others: Any) -> dict[str, Any]:
    """What tables of hyper-parameters show: the settings that tell one run from another, those of `FIRST` first."""
    leaves = {group.key(name): value for group in groups for name, value in group.identity().items()} | others
    named = {FIRST[key]: leaves[key] for key in FIRST if key in leaves} | leaves
    shown = {name: value for name, value in named.items() if name not in FIRST}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in shown.items()}


def loggers_of(names: Sequence[str], folder: Path, images_per_step: int) -> list[Logger]:
    """The loggers of these names, each started on rank 0, so that what it lacks is told before the training.

    Raises:
        UserError: one of them needs a package that is not installed, or cannot start.
    """
    made: list[Logger] = []
    for name in names:
        look_for(LOGGERS[name], f"logger={name}", f"cluster-conditioned-diffusion[{name}]")
        try:
            logger = resolve_name(LOGGERS[name].target)(folder, images_per_step)
            logger.experiment  # noqa: B018, as it starts it
        except OSError:
            raise
        except Exception as error:
            raise UserError(f"logger={name} cannot start: {error}\nLeave it out, or set logger=csv.") from error
        made.append(logger)
    return made


def look_for(entry: More, setting: str, requirement: str) -> None:
    """Raise a `UserError` where the package that an entry needs is not installed."""
    if entry.package and importlib.util.find_spec(entry.package) is None:
        raise UserError(f'{setting} needs {entry.package}, which is not installed. Run: pip install "{requirement}"')


def with_more(callbacks: Sequence[Callback], names: Sequence[str], enable_progress_bar: bool) -> list[Callback]:
    """The callbacks and those of these names, with one progress bar at most: the one that was asked for.

    Raises:
        UserError: one of them needs a package that is not installed.
    """
    for name in names:
        look_for(CALLBACKS[name], f"callbacks={name}", CALLBACKS[name].package)
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
    images_per_step: int,
    precision: str,
    shown: dict[str, Any],
    outcomes: tuple[str, ...],
    accumulate: int = 1,
    log_every_steps: int = 1,
    overwrite: bool = False,
    loggers: Sequence[str] = ("tensorboard",),
    more_callbacks: Sequence[str] = (),
    afterwards: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Train for `max_steps` steps of `images_per_step` images from the newest snapshot in `folder/snapshots`, if any.

    `shown` are the settings that loggers are given, `outcomes` the curves beside them in TensorBoard's table. `loggers`
    and `more_callbacks` are names in `LOGGERS` and `CALLBACKS`. SIGTERM ends the process with exit code 143 after a
    snapshot on all ranks, Ctrl-C at once with 130; either leaves a snapshot to go on from. `afterwards` is called on
    all ranks when the last step is done, now or in an earlier try.

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
        benchmark=not settings.deterministic if settings.benchmark is None else settings.benchmark,
        detect_anomaly=settings.detect_anomaly,
        profiler=profiler(settings.profiler, folder),
        max_steps=max_steps,
        max_epochs=-1,  # one endless epoch: the data stream is a function of the step
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=loggers_of(loggers, folder, images_per_step),
        enable_autolog_hparams=False,
        callbacks=with_more([TakeTurns(), *callbacks], more_callbacks, settings.enable_progress_bar),
        plugins=[ThreadedCheckpointIO()],
        log_every_n_steps=log_every_steps,
        num_sanity_val_steps=0,
        enable_progress_bar=settings.enable_progress_bar,
        enable_model_summary=settings.enable_model_summary,
        default_root_dir=folder,
    )
    set_ddp_options(
        trainer,
        gradient_as_bucket_view=True,  # one copy of the gradients, not two
        broadcast_buffers=any("running_mean" in name for name, _ in module.named_buffers()),  # others are equal anyway
        # With accumulated passes a static graph stops the gradients' way between the processes (pytorch#187732).
        static_graph=accumulate == 1 and not settings.strategy.endswith("true"),
    )
    if trainer.is_global_zero:
        log_settings(trainer.loggers, shown, outcomes)
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
    finally:
        close(trainer.loggers)
    return trainer
