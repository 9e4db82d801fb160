"""Settings of the devices that a command works on, and of Lightning's Trainer."""

from dataclasses import dataclass
from typing import Any

from storage.settings import Settings, setting


@dataclass(frozen=True)
class TrainerSettings(Settings):
    """The config group `trainer`."""

    group = "trainer"

    accelerator: str = setting(
        "auto",
        "kind of device; auto: GPUs where there are some",
        choices=("auto", "cpu", "gpu", "cuda", "mps"),
        identifies=False,
    )
    devices: Any = setting(
        "auto", "number of devices of this machine (on a CPU: processes), a list of GPUs, or auto", identifies=False
    )
    num_nodes: int = setting(1, "machines that take part", low=1, identifies=False)
    precision: str = setting(
        "32-true",
        "of the networks' arithmetic; the mixed ones are faster on GPUs",
        choices=("32-true", "bf16-mixed", "16-mixed"),
    )
    compile: bool = setting(False, "torch.compile the network")
    channels_last: bool = setting(True, "keep images in memory as [height, width, channels]")
