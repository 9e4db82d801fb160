"""What `auto` stands for in the settings of a training: decided from the device, its memory and the network."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.augment import AUGMENT_DIM
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from pipeline.running.devices import device_of, devices_of, low_precision_of
from pipeline.running.trainer_settings import AUTO, CUDA_GRAPHS, TrainerSettings
from pipeline.settings.schemas import SharedSettings

S = TypeVar("S", bound=SharedSettings)
COMPILED_FROM = {"cuda": (5_000_000, 16)}  # device: parameters, and height and width of the images
BF16_FROM = 16  # height and width of the images
USUAL_PASS, LARGEST_PASS = 128, 512  # images
STATE = 20  # bytes for each parameter: weight, gradient, two moments, average


def compiles(device: str, parameters: int, resolution: int) -> bool:
    """Whether `trainer.compile=auto` compiles a network: where it works so long that minutes of compiling are little.

    | device   | compiled                                   |
    |----------|--------------------------------------------|
    | cuda     | from 5 M parameters and 16×16 pixels on    |
    | cpu, mps | never                                      |
    """
    if device not in COMPILED_FROM:
        return False
    least_parameters, least_resolution = COMPILED_FROM[device]
    return parameters >= least_parameters and resolution >= least_resolution


def precision_of(device: torch.device, resolution: int) -> str:
    """What `trainer.precision=auto` computes in: bf16-mixed where that is faster and changes no distance.

    | device   | bf16-mixed, from 16×16 pixels on                   | 32-true   |
    |----------|----------------------------------------------------|-----------|
    | cuda     | GPUs that compute in bfloat16 (Ampere and newer)   | all else  |
    | cpu      | processors with AVX-512 BF16 or AMX                | all else  |
    | mps      |                                                    | always    |
    """
    if resolution < BF16_FROM:
        return "32-true"
    if device.type == "cpu":
        # Newer than the oldest PyTorch that will do
        known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16-mixed" if known.get("avx512_bf16") or known.get("amx_bf16") else "32-true"
    return low_precision_of(device) or "32-true"


def images_per_pass(memory: int | None, parameters: int, image: int) -> int:
    """How many images `training.max_batch_per_device=auto` takes at once.

    | device   | images                                                                                            |
    |----------|---------------------------------------------------------------------------------------------------|
    | cuda     | a power of two up to 512: they fill 3/5 of the card, together with weights, moments and average   |
    | cpu, mps | 128                                                                                               |

    The rest is for what is not counted: workspaces, gaps, the images that are generated and measured meanwhile.

    Args:
        memory: bytes of the smallest card; None: no CUDA.
        parameters: of the network.
        image: bytes that are kept of one image between the forward and the backward pass; 0: not known.
    """
    if memory is None or not image:
        return USUAL_PASS
    fitting = (memory * 3 // 5 - STATE * parameters) // image
    return 1 << (max(1, min(LARGEST_PASS, fitting)).bit_length() - 1)


def decided(settings: S, before: Mapping[str, Any] | None = None) -> S:
    """The settings of a training with what is left at `auto` decided; `before`: as in the run that goes on.

    Raises:
        UserError: this machine has no such device, or it has no CUDA graphs.
    """
    trainer, training = settings.trainer, settings.training
    device, stored = device_of(trainer.accelerator), (before or {}).get("settings", {})
    kept = {name: value for name, value in stored.get("trainer", {}).items() if value != AUTO}
    size = settings.network, settings.dataset.resolution, settings.dataset.channels
    if trainer.precision == AUTO:
        trainer = replace(trainer, precision=kept.get("precision") or precision_of(device, settings.dataset.resolution))
    if trainer.compile == AUTO:
        known = kept.get("compile")
        rule = compiles(device.type, parameters_of(*size), settings.dataset.resolution) if known is None else known
        trainer = replace(trainer, compile=rule)
    if trainer.compile == CUDA_GRAPHS and device.type != "cuda":
        trainer.refuse("compile", f"this training is on {device}, and a CUDA GPU is expected. Set trainer.compile=true")
    if training.max_batch_per_device == AUTO:
        memory, image = smallest_card(trainer), 0
        if memory is not None:
            image = bytes_of_an_image(*size) // (1 if trainer.precision == "32-true" else 2)
        fitting = images_per_pass(memory, parameters_of(*size), image)
        known = stored.get("training", {}).get("max_batch_per_device")
        training = replace(training, max_batch_per_device=min(fitting, known or fitting))
    return replace(settings, trainer=trainer, training=training)


def as_in_study(settings: S, study: SharedSettings) -> tuple[S, list[str]]:
    """The settings of a study's job with what is left at `auto` as decided for the study, and the words that say so.

    Jobs with another network take as many images at once as their own device can.
    """
    words = []
    for group, name in (("trainer", "precision"), ("trainer", "compile"), ("training", "max_batch_per_device")):
        own, value = getattr(settings, group), getattr(getattr(study, group), name)
        if getattr(own, name) != AUTO or (group == "training" and settings.network != study.network):
            continue
        settings = replace(settings, **{group: replace(own, **{name: value})})
        words.append(f"{own.key(name)}={str(value).lower() if isinstance(value, bool) else value}")
    return settings, words


def smallest_card(trainer: TrainerSettings) -> int | None:
    """Bytes of the GPU that has the least, of those that will work; None without CUDA."""
    if device_of(trainer.accelerator).type != "cuda":
        return None
    return min(torch.cuda.get_device_properties(device).total_memory for device in devices_of(trainer))


def parameters_of(network: NetworkSettings, resolution: int, channels: int) -> int:
    """Parameters of an unconditional network, which takes no memory here; 0 where they cannot be told.

    What is wrong with a network is told when it is built.
    """
    with suppress(Exception), torch.device("meta"):
        return sum(weight.numel() for weight in Denoiser(network, resolution, channels, 0, AUGMENT_DIM).parameters())
    return 0


def bytes_of_an_image(network: NetworkSettings, resolution: int, channels: int) -> int:
    """Bytes in float32 that are kept of one image for the backward pass, counted without computing; 0: not known."""
    from torch._subclasses import FakeTensorMode  # takes a while to import

    kept: dict[int, Tensor] = {}  # by storage

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def count(images: int) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            denoiser(torch.zeros(images, channels, resolution, resolution), torch.ones(images))
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    with suppress(Exception), FakeTensorMode():
        denoiser: nn.Module = Denoiser(network, resolution, channels, 0, AUGMENT_DIM)
        return count(2) - count(1)  # without the weights, which are kept once
    return 0
