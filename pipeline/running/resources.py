"""What jobs run on: the devices of this machine, or of a Ray cluster."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.running.ray_cluster import check_ray, devices_of_cluster
from pipeline.running.trainer_settings import TrainerSettings
from storage.cores import cores_of_each
from storage.errors import UserError


@dataclass(frozen=True)
class Resources:
    """The devices that jobs share.

    Attributes:
        kind: cpu (then a device is a process), gpu or mps.
        devices: how many.
        devices_per_job: how many of them work on one job.
        visible: this machine's GPUs, as CUDA_VISIBLE_DEVICES names them; empty: not to be told.
        address: of a Ray cluster; None: this machine.
    """

    kind: str
    devices: int = 1
    devices_per_job: int = 1
    visible: str = ""
    address: str | None = None

    def __post_init__(self) -> None:
        if self.devices_per_job > self.devices:
            raise UserError(
                f"study.devices_per_job={self.devices_per_job}, but there are {self.devices} devices. "
                f"Set study.devices_per_job={self.devices} or less, or another trainer.devices."
            )
        if self.on_ray:
            check_ray()

    def __str__(self) -> str:
        return f"{self.devices} × {self.kind}"

    @property
    def slots(self) -> int:
        """Jobs at a time."""
        return self.devices // self.devices_per_job

    @property
    def on_ray(self) -> bool:
        """Whether Ray runs the jobs; else one worker process does."""
        return self.address is not None or self.slots > 1

    @property
    def settings(self) -> list[str]:
        """What tells a job its devices."""
        return [f"trainer.accelerator={self.kind}", f"trainer.devices={self.devices_per_job}"]

    @property
    def threads(self) -> int:
        """PyTorch's threads for each device: its share of the cores, or what the user has set."""
        return int(os.environ.get("OMP_NUM_THREADS", cores_of_each(self.devices)))

    @property
    def environment(self) -> dict[str, str]:
        """What gives a job its devices, and its share of the cores."""
        told = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if self.visible and not self.on_ray:  # which chooses the GPUs itself
            told["CUDA_VISIBLE_DEVICES"] = self.visible
        return told


def resources_of(settings: TrainerSettings, devices_per_job: int = 1, address: str | None = None) -> Resources:
    """What `trainer.accelerator` and `trainer.devices` mean for jobs: each GPU or each process on a CPU is a device.

    Raises:
        UserError: not as many devices, `devices` is neither a number nor a list of GPUs, or Ray is needed and absent.
    """
    if address is not None:
        gpus, nodes = devices_of_cluster(address)
        kind = "gpu" if settings.accelerator in ("gpu", "cuda") or (settings.accelerator == "auto" and gpus) else "cpu"
        devices = number_of(settings.devices, gpus if kind == "gpu" else nodes)
        if kind == "gpu" and not 1 <= devices <= gpus:
            raise UserError(f"trainer.devices={settings.devices}: the Ray cluster at {address} has {gpus} GPUs.")
        return Resources(kind, devices, devices_per_job, address=address)
    gpus = torch.cuda.device_count()
    if settings.accelerator in ("gpu", "cuda") or (settings.accelerator == "auto" and gpus):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible[:gpus] if visible[0] else [str(index) for index in range(gpus)]
        wanted = settings.devices
        chosen = range(number_of(wanted, gpus)) if isinstance(wanted, int | str) else list(wanted)
        if not chosen or not set(chosen) <= set(range(gpus)):
            raise UserError(f"trainer.devices={wanted}: this machine has {gpus} GPUs. Set trainer.accelerator=cpu.")
        return Resources("gpu", len(chosen), devices_per_job, ",".join(names[index] for index in chosen))
    count = number_of(settings.devices, devices_per_job)
    if count < 1:
        raise UserError(f"trainer.devices={count}: set a number of processes from 1 on, such as trainer.devices=2.")
    return Resources("mps" if settings.accelerator == "mps" else "cpu", count, devices_per_job)


def number_of(devices: Any, every: int) -> int:
    """`devices` as a number; auto and -1 mean every one.

    Raises:
        UserError: it is no number.
    """
    if devices in ("auto", -1, "-1"):
        return every
    try:
        return int(devices)
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer.devices={devices}: set a number, such as trainer.devices=2, or auto.") from error
