"""Networks that people train on a CPU, against a plain loop: whole steps, with what a training adds to the network."""

import itertools
from collections.abc import Callable

import torch
from timing import seconds, show
from torch import Tensor

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.training_settings import TrainingSettings

NETWORKS = {  # name: settings, resolution, channels, batch
    "digits, 0.75 M parameters": ({"channel_mult": [1, 2], "attn_resolutions": [4]}, 8, 1, 128),
    "32×32, 1.3 M parameters": ({"channel_mult": [1, 2, 2], "attn_resolutions": [8]}, 32, 3, 32),
    "32×32, 5 M parameters": ({"channel_mult": [1, 2, 2], "attn_resolutions": [8], "model_channels": 64}, 32, 3, 32),
}
SMALL = {"model_channels": 32, "num_blocks": 1, "dropout": 0.0}
CLUSTERS = 10


def bench_small() -> None:
    """A step of each network in float32 and bf16, eager and compiled, channels first and last."""
    for name, (settings, resolution, channels, batch) in NETWORKS.items():
        network = NetworkSettings(**(SMALL | settings))  # type: ignore[arg-type]
        denoiser = Denoiser(network, resolution, channels, label_dim=CLUSTERS)
        pixels = torch.randint(0, 256, (batch, channels, resolution, resolution), dtype=torch.uint8)
        images = ImageBatch(pixels, torch.arange(batch) % CLUSTERS, torch.arange(batch))
        usual = seconds_of(plain_step(denoiser, images))
        for bf16, compiled, last in itertools.product((False, True), repeat=3):
            torch.compiler.reset()  # or the second network's shapes count as variable
            denoiser = Denoiser(network, resolution, channels, label_dim=CLUSTERS)
            ours = seconds_of(our_step(denoiser, images, bf16, compiled, last))
            how = f"{'bf16' if bf16 else 'float32'}{', compiled' * compiled}{', channels last' * last}"
            show(f"{name}: plain | {how}", 1000 * usual, 1000 * ours, "ms")


def seconds_of(step: Callable[[], None]) -> float:
    """Of one step: the best of ten times five, after five."""

    def steps() -> None:
        for _ in range(5):
            step()

    return seconds(steps, repeats=10) / 5


def plain_step(denoiser: Denoiser, images: ImageBatch) -> Callable[[], None]:
    """A step as one would write it down: noise, weighted squared error (EDM, table 1), Adam, one average."""
    average = [parameter.detach().clone() for parameter in denoiser.parameters()]
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    labels = torch.eye(CLUSTERS)[images.labels]

    def step() -> None:
        clean = images.images.float() / 127.5 - 1
        sigma = (torch.randn(len(clean)) * 1.2 - 1.2).exp()
        noisy = clean + torch.randn_like(clean) * sigma[:, None, None, None]
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        error: Tensor = (denoiser(noisy, sigma, labels) - clean) ** 2
        (weight * error.sum((1, 2, 3))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, parameter in zip(average, denoiser.parameters(), strict=True):
                mean.lerp_(parameter, 0.01)

    return step


def our_step(
    denoiser: Denoiser, images: ImageBatch, bf16: bool, compiled: bool, channels_last: bool
) -> Callable[[], None]:
    """The same with this project's parts: its noise from the seed, loss, optimizer and averages."""
    settings = TrainingSettings(batch_size=len(images.images), augment_probability=0.0)
    module = EDMModule(denoiser, settings, OptimizerSettings())
    if channels_last:
        module.denoiser.to(memory_format=torch.channels_last)
    optimizer = module.configure_optimizers()["optimizer"]
    if compiled:
        module.denoiser.compile()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = module.loss_of(images).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for average in module.emas:
            average.update(module.denoiser, nimg=10_000, batch_size=settings.batch_size)  # type: ignore[operator]

    return step
