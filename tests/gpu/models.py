"""The networks and batches that the check trains and samples with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from measuring import arithmetic
from runner import Check
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.augment import AUGMENT_DIM
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.ema import EMA
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings

CIFAR = NetworkSettings()  # DDPM++ for 32×32 images, 55.7 M parameters
SMALL = NetworkSettings(model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], dropout=0.1)
TINY = replace(SMALL, model_channels=16, channel_mult=[1], attn_resolutions=[8])  # for dry runs
CIFAR_64 = replace(CIFAR, channel_mult=[1, 2, 2, 2], dropout=0.05)  # 61.8 M parameters
ADM_64 = NetworkSettings("adm", 192, [1, 2, 3, 4], 3, [32, 16, 8], 0.1)  # 296 M parameters
CLUSTERS = 100
BATCH_SIZES = (512, 256, 128, 64)  # tried in turn, until one fits into memory


def edm_module(
    check: Check, network: NetworkSettings = CIFAR, resolution: int = 32, channels_last: bool = True, **settings: Any
) -> EDMModule:
    """A fresh module in training mode on the device; in a dry run of a tiny network at 8×8."""
    torch.manual_seed(0)
    if check.dry:
        network = replace(TINY, architecture=network.architecture, dropout=network.dropout)
        resolution = 8
    denoiser = Denoiser(network, resolution, 3, label_dim=CLUSTERS, augment_dim=AUGMENT_DIM)
    module = EDMModule(denoiser, TrainingSettings(**settings)).to(check.device).train()
    return module.to(memory_format=torch.channels_last) if channels_last else module


def image_batch(module: EDMModule, size: int) -> ImageBatch:
    """Random images with labels, on the module's device."""
    device, denoiser = module.device, module.denoiser
    shape = size, denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution
    positions = torch.arange(size, device=device)
    return ImageBatch(
        torch.randint(0, 256, shape, dtype=torch.uint8, device=device), positions % denoiser.label_dim, positions
    )


def to_cpu(batch: ImageBatch) -> ImageBatch:
    return ImageBatch(*(field.cpu() for field in batch))


def training_step(module: EDMModule, batch: ImageBatch, precision: str) -> Callable[[], Tensor]:
    """One whole step without Lightning: loss, gradients, Adam, average. The loss stays on the device."""
    configured: Any = module.configure_optimizers()
    optimizer = configured["optimizer"]

    def step() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what a CUDA graph has returned before may be overwritten
        with arithmetic(precision, module.device.type):
            loss = module.loss_of(batch).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(module, 10**6, len(batch.positions))
        return loss.detach()

    return step


def follow(module: EDMModule, nimg: int, batch_size: int) -> None:
    """Move the averaged weights, as after a step."""
    cast(EMA, module.emas[0]).update(module.denoiser, nimg, batch_size)


def optimizer_with_gradients(module: EDMModule) -> torch.optim.Optimizer:
    """The module's optimizer, ready for a step."""
    for parameter in module.denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)
    configured: Any = module.configure_optimizers()
    return configured["optimizer"]


def training_flop(module: EDMModule) -> int:
    """Floating-point operations of the products that one image takes, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        module.loss_of(image_batch(module, 1)).sum().backward()
    module.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def denoising_flop(denoiser: Denoiser, device: str) -> int:
    """Floating-point operations of the products of one evaluation for one image."""
    size = denoiser.img_resolution
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(torch.randn(1, denoiser.img_channels, size, size, device=device), 1.0)
    return int(counter.get_total_flops())


def compile_network(denoiser: Denoiser, check: Check, **options: Any) -> None:
    """Compile in place as `trainer.compile=true` does; a dry run traces, and leaves the compiler out.

    Forgets what was compiled before: else a second batch size would be compiled for sizes of any kind.
    """
    torch._dynamo.reset()
    counters.clear()
    denoiser.compile(dynamic=False, **({"backend": "eager"} if check.dry else options))


def at_largest_batch(check: Check, what: str, measure: Callable[[int], None]) -> None:
    """Measure with the largest batch that fits into memory; those that do not are recorded."""
    for size in (2,) if check.dry else BATCH_SIZES:
        try:
            with check.tried(f"{what}, batch {size}"):
                try:
                    measure(size)
                except torch.OutOfMemoryError:
                    check.record(what, table="out of memory", batch=size)
                    continue
        finally:
            torch._dynamo.reset()
        return
