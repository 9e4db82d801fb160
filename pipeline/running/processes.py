"""The processes that work on a command together, one per device, and the run folder that they agree on."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning import Fabric, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment

from callbacks.stop_request import Stopped
from pipeline.running.parents import end_with_parent, end_with_starter, in_sweep
from pipeline.running.trainer_settings import TrainerSettings
from pipeline.settings.door import OwnProcessNeeded
from storage.errors import UserError

T = TypeVar("T")
RUN_FOLDER_VARIABLE = "CEDM_RUN_FOLDER"  # tells the processes that Lightning launches what their parent chose

for library in ("lightning.pytorch", "lightning.fabric"):  # its tips stay out of the terminal
    logging.getLogger(library).setLevel(logging.WARNING)
logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # it was asked for


@dataclass(frozen=True)
class Machine:
    """The processes of this run: how many, which of them this is, and its device."""

    world_size: int
    rank: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.world_size} × {self.device.type}"


def join(
    settings: TrainerSettings, choose_folder: Callable[[], Path], one_process: bool = False
) -> tuple[Machine, Path]:
    """Find out which processes take part, and agree with them on the run folder: rank 0 chooses.

    Under torchrun or SLURM all ranks run already, so the process group is joined here and rank 0's choice broadcast.
    Where Lightning launches the other ranks itself, they inherit the choice as an environment variable.

    Args:
        settings: which devices.
        choose_folder: called by rank 0.
        one_process: the work needs no others, and so no `srun` in a SLURM allocation of several tasks.

    Raises:
        UserError: the accelerator or the number of devices is not to be had on this machine, or SLURM has not started
            the tasks of its allocation.
        OwnProcessNeeded: this is one run of a sweep, on several devices.
    """
    end_with_starter()
    if tasks := tasks_without_srun():
        if one_process:
            return Machine(1, 0, torch.device("cpu")), choose_folder()
        raise UserError(
            f"This SLURM allocation has {tasks} tasks (SLURM_NTASKS), and only this process of them runs: it would "
            "wait for the others. Put srun in front of the command, or ask SLURM for one task (--ntasks=1)."
        )
    scout = scout_devices(settings)
    machine = Machine(scout.world_size, scout.global_rank, scout.strategy.root_device)
    inherited = os.environ.get(RUN_FOLDER_VARIABLE)
    environment = getattr(scout.strategy, "cluster_environment", None)
    if machine.world_size > 1 and in_sweep():
        if environment is not None and environment.creates_processes_externally:
            raise UserError(
                "-m (--multirun) under torchrun or SLURM, whose processes are there for one run. Run them one by "
                "one, or sweep without torchrun and with trainer.devices=N: each run then starts N processes."
            )
        raise OwnProcessNeeded
    if inherited and "LOCAL_RANK" in os.environ:
        end_with_parent(os.getppid())  # rank 0: without it, this process would wait for an answer
        return machine, Path(inherited)
    if machine.world_size > 1 and environment is not None and environment.creates_processes_externally:
        scout.strategy.setup_environment()
        choice = scout.strategy.broadcast(str(choose_folder()) if machine.rank == 0 else "")
        return machine, Path(choice)
    folder = choose_folder()
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return machine, folder


def as_rank_0(value: T) -> T:
    """Rank 0's value where all ranks run already; those that Lightning starts later, on this machine, find the same."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def tasks_without_srun() -> int:
    """The number of tasks that a SLURM allocation has and that nobody has started; 0 where all is well.

    Lightning would wait for the other tasks, but in an interactive job (`salloc`, or one that is named so).
    """
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return 0 if tasks == 1 or interactive or started == tasks else tasks


def scout_devices(settings: TrainerSettings) -> Trainer:
    """A Trainer that trains nothing and knows which devices `trainer.accelerator` and `trainer.devices` mean here.

    Raises:
        UserError: they are not to be had on this machine.
    """
    settings = adopt_torchrun(settings)
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except Exception as error:  # Lightning raises several kinds, each with a clear sentence
        raise UserError(
            f"trainer.accelerator={settings.accelerator} trainer.devices={settings.devices}: {error}\n"
            f"This machine has {torch.cuda.device_count()} GPUs. "
            "Set trainer.accelerator=cpu or another trainer.devices."
        ) from error


@contextmanager
def side_by_side(settings: TrainerSettings) -> Iterator[Fabric]:
    """Start the processes of `trainer.devices` for work that needs no Trainer; SIGTERM to one of them ends them all."""
    settings = adopt_torchrun(settings)
    fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.num_nodes)
    fabric.launch()
    try:
        yield fabric
    except Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the others answer in kind
        if isinstance(getattr(fabric.strategy, "cluster_environment", None), LightningEnvironment):
            if fabric.local_rank != 0:
                os.kill(os.getppid(), signal.SIGTERM)
                sys.exit(0)  # the parent would be killed for another code, before it can end by itself
            for process in getattr(fabric.strategy.launcher, "procs", []):
                process.terminate()
        raise


def adopt_torchrun(settings: TrainerSettings) -> TrainerSettings:
    """The settings, where under torchrun `devices=auto` and `num_nodes` mean the processes that it has started.

    Raises:
        UserError: `trainer.devices` says otherwise.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return settings
    started = int(os.environ["LOCAL_WORLD_SIZE"])
    if settings.devices not in ("auto", started):
        raise UserError(
            f"trainer.devices={settings.devices}, but torchrun started {started} processes on this machine. "
            f"Set trainer.devices={started}, or leave it out."
        )
    return replace(settings, devices=started, num_nodes=int(os.environ["WORLD_SIZE"]) // started)
