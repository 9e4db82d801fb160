"""EDM: a training step, and what the optimizer and the average add to it."""

import torch
from timing import seconds, show

from lightning_modules.diffusion.denoiser import build_denoiser
from lightning_modules.diffusion.ema import EMA
from lightning_modules.diffusion.loss import EDMLoss

CIFAR_NETWORK = {
    "architecture": "ddpmpp",
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.13,
}


def bench_edm(batch: int = 4) -> None:
    """A training step of EDM's CIFAR network: plain float32, channels last, and bf16."""
    images = torch.rand(batch, 3, 32, 32) * 2 - 1
    sigma, noise = torch.full((batch,), 0.5), torch.randn(batch, 3, 32, 32)
    labels, augmented = torch.eye(10)[:batch], torch.zeros(batch, 9)

    def step_time(channels_last: bool, bf16: bool) -> float:
        torch.manual_seed(0)
        denoiser = build_denoiser(CIFAR_NETWORK, 32, 3, label_dim=10, augment_dim=9)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                EDMLoss()(denoiser, images, sigma, noise, labels, augmented).mean().backward()

        return seconds(step, repeats=2)

    plain = step_time(channels_last=False, bf16=False)
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | channels last", plain, step_time(True, False))
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | bf16", plain, step_time(False, True))
    show(f"EDM step, DDPM++ 55.7 M, batch {batch}: fp32 | bf16 channels last", plain, step_time(True, True))
    bench_overhead(plain)


def bench_overhead(step: float) -> None:
    """What Adam and the EMA add to a step."""
    denoiser = build_denoiser(CIFAR_NETWORK, 32, 3, label_dim=10, augment_dim=9)
    ema, optimizer = EMA(denoiser), torch.optim.Adam(denoiser.parameters())
    for parameter in denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        optimizer.step()
        ema.update(denoiser, nimg=10_000, batch_size=1024)

    added: float = seconds(update)
    print(f"{'EDM: Adam and EMA, as a share of that fp32 step':<58} {'':9} {added:9.3f} s    {added / step:6.1%}")
