"""One Lightning fit in one run folder: the same folder on every rank, resumed where it stopped."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from torch.utils.tensorboard.summary import hparams

from callbacks.snapshots import AtomicCheckpointIO, newest_snapshot
from callbacks.stopping import Stopped, queue_again, stop_between_batches
from datamodules.artifacts import UserError
from pipeline.checks import leaves
from pipeline.command import OwnProcessNeeded

RUN_FOLDER_VARIABLE = "CEDM_RUN_FOLDER"  # tells the processes that Lightning launches what their parent chose

# Lightning's tips, and its use of deprecated PyTorch names, stay out of the terminal; its own warnings come through.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the averaged weights are
warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket.*")  # costs one copy of 1×1 kernels
warnings.filterwarnings("ignore", message=".*call of `lr_scheduler.step.*")  # float16 skipped the first step
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the images lie in memory
warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # it starts at the trainer's step


@dataclass(frozen=True)
class Machine:
    """The processes of this run: how many, which of them this is, and its device."""

    world_size: int
    rank: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.world_size} × {self.device.type}"


def join(cfg: DictConfig, choose_folder: Callable[[], Path]) -> tuple[Machine, Path]:
    """Find out which processes take part, and agree with them on the run folder: rank 0 chooses.

    Under torchrun or SLURM all ranks run already, so the process group is joined here and rank 0's choice broadcast.
    Where Lightning launches the other ranks itself, they inherit the choice as an environment variable.

    Raises:
        UserError: the accelerator or the number of devices is not to be had on this machine.
        OwnProcessNeeded: this is one run of a sweep, on several devices.
    """
    adopt_torchrun(cfg)
    scout = scout_devices(cfg)
    machine = Machine(scout.world_size, scout.global_rank, scout.strategy.root_device)
    inherited = os.environ.get(RUN_FOLDER_VARIABLE)
    environment = getattr(scout.strategy, "cluster_environment", None)
    if machine.world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        if environment is not None and environment.creates_processes_externally:
            raise UserError(
                "-m (--multirun) under torchrun or SLURM, whose processes are there for one run. Type the runs one by "
                "one, or sweep without torchrun and with trainer.devices=N: each run then starts N processes."
            )
        raise OwnProcessNeeded
    if inherited and "LOCAL_RANK" in os.environ:
        return machine, Path(inherited)
    if machine.world_size > 1 and environment is not None and environment.creates_processes_externally:
        scout.strategy.setup_environment()
        choice = scout.strategy.broadcast(str(choose_folder()) if machine.rank == 0 else "")
        return machine, Path(choice)
    folder = choose_folder()
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return machine, folder


def scout_devices(cfg: DictConfig) -> Trainer:
    """A Trainer that trains nothing and knows which devices `trainer.accelerator` and `trainer.devices` mean here.

    Raises:
        UserError: they are not to be had on this machine.
    """
    settings = cfg.trainer
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except Exception as error:  # Lightning raises several kinds, each with a clear sentence
        raise UserError(
            f"trainer.accelerator={settings.accelerator} trainer.devices={settings.devices}: {error}\n"
            f"This machine has {torch.cuda.device_count()} GPUs. "
            "Type trainer.accelerator=cpu or another trainer.devices."
        ) from error


def adopt_torchrun(cfg: DictConfig) -> None:
    """Under torchrun, `trainer.devices=auto` and `trainer.num_nodes` mean the processes that it has started.

    Raises:
        UserError: `trainer.devices` says otherwise.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    started = int(os.environ["LOCAL_WORLD_SIZE"])
    if cfg.trainer.devices not in ("auto", started):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}, but torchrun started {started} processes on this machine. "
            f"Type trainer.devices={started}, or leave it out."
        )
    cfg.trainer.devices = started
    cfg.trainer.num_nodes = int(os.environ["WORLD_SIZE"]) // started


def show_hyperparameters(trainer: Trainer, cfg: DictConfig, outcomes: tuple[str, ...]) -> None:
    """Fill TensorBoard's table of hyper-parameters, beside the newest values of the `outcomes`' curves.

    Not by `logger.log_hyperparams`, which would write points of its own into those curves.
    """
    if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
        return
    groups = ("dataset", "backbone", "clustering", "network", "training", "seed")
    settings = {key: value for key, value in leaves(cfg) if key.split(".")[0] in groups}
    shown = {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }
    for summary in hparams(shown, dict.fromkeys(outcomes, 0)):
        trainer.logger.experiment.file_writer.add_summary(summary)


def fit(
    cfg: DictConfig,
    folder: Path,
    module: LightningModule,
    datamodule: LightningDataModule,
    callbacks: list[Callback],
    *,
    max_steps: int,
    precision: str,
    outcomes: tuple[str, ...],
    accumulate: int = 1,
    log_every_steps: int = 1,
) -> Trainer:
    """Train for `max_steps` optimizer steps from the newest snapshot in `folder/snapshots`, or from the start.

    SIGTERM ends the process with exit code 143 after a snapshot on all ranks, Ctrl-C at once with 130; either leaves a
    snapshot to go on from.
    """
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        precision=precision,  # type: ignore[arg-type]  # checked by Lightning
        max_steps=max_steps,
        max_epochs=-1,  # one endless epoch: the data stream is a function of the step
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=log_every_steps,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    show_hyperparameters(trainer, cfg, outcomes)
    snapshot = newest_snapshot(folder / "snapshots", trainer.global_rank)
    if snapshot is not None and trainer.is_global_zero:
        print(f"Going on from {snapshot}")
    try:
        with stop_between_batches(trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=snapshot, weights_only=True)
    except SystemExit as stop:  # ours after SIGTERM, or Lightning's answer to Ctrl-C
        if trainer.is_global_zero:
            newest = newest_snapshot(folder / "snapshots")
            print(f"Stopped. The same command goes on from {newest or 'the start'}.", file=sys.stderr)
            queue_again()
        elif RUN_FOLDER_VARIABLE in os.environ:
            sys.exit(0)  # rank 0 has launched this process, and would be killed for its crash if the code were another
        sys.exit(stop.code if isinstance(stop, Stopped) else 130)
    return trainer
