"""What jobs run on: the devices of this machine, or of a Ray cluster."""

import os
from dataclasses import dataclass

import torch

from pipeline.running.devices import devices_of
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


def resources_of(trainer: TrainerSettings, devices_per_job: int = 1, address: str | None = None) -> Resources:
    """What `trainer.accelerator` and `trainer.devices` mean for jobs: each GPU or each process on a CPU is a device.

    Raises:
        UserError: there are not as many devices, or Ray is needed and not installed.
    """
    every, wanted = trainer.devices in ("auto", -1, "-1"), trainer.devices
    if address is None:
        devices = devices_of(trainer)
        if devices[0].type != "cuda":
            return Resources(devices[0].type, devices_per_job if every else len(devices), devices_per_job)
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        visible = ",".join(names.split(",")[device.index] for device in devices)
        return Resources("gpu", len(devices), devices_per_job, visible)
    gpus, nodes = devices_of_cluster(address)
    kind = "gpu" if trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and gpus) else "cpu"
    count = (gpus if kind == "gpu" else nodes) if every else int(wanted) if str(wanted).isdigit() else 0
    if not 1 <= count <= (gpus if kind == "gpu" else count):
        raise UserError(
            f"trainer.devices={wanted}: the Ray cluster at {address} has {gpus} GPUs. Set a number of devices, or auto."
        )
    return Resources(kind, count, devices_per_job, address=address)
