"""The devices that `trainer.accelerator` and `trainer.devices` name on this machine."""

import torch

from pipeline.running.trainer_settings import TrainerSettings
from storage.errors import UserError


def devices_of(trainer: TrainerSettings) -> list[torch.device]:
    """A device for each process; `trainer.devices=auto`: all GPUs, or one CPU process.

    Raises:
        UserError: this machine does not have them.
    """
    device, wanted = device_of(trainer.accelerator), trainer.devices
    here = torch.cuda.device_count() if device.type == "cuda" else 1
    if isinstance(wanted, list):
        numbers = [int(number) for number in wanted]
    else:
        count = here if wanted in ("auto", -1, "-1") else int(wanted) if str(wanted).isdigit() else 0
        numbers = list(range(count))
    if not numbers or (device.type != "cpu" and max(numbers) >= here):
        raise UserError(
            f"trainer.devices={wanted}: this machine has {here} of the kind {device.type}. "
            "Set trainer.devices=auto, a number, or a list of GPUs such as [0,1]."
        )
    return [torch.device("cuda", number) if device.type == "cuda" else device for number in numbers]


def low_precision_of(device: torch.device) -> str | None:
    """bf16-mixed on GPUs that compute in it; None elsewhere."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if fast else None


def device_of(accelerator: str) -> torch.device:
    """The kind of device that `trainer.accelerator` names; auto takes a GPU where there is one."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no GPU that PyTorch can use. Set cpu.")
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    return torch.device("mps") if accelerator == "mps" else torch.device("cpu")
