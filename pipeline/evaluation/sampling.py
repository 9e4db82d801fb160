"""From settings to a function that generates images; used while training and by `cedm generate`."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import ClassifierFreeGuidance
from lightning_modules.diffusion.sampler import churn_noise, edm_sampler, latents
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from pipeline.running.run_folder import finite
from pipeline.settings.inputs import plain
from storage.errors import UserError


@dataclass(frozen=True)
class Sampler(SamplerSettings):
    """EDM's sampler with its settings: (denoiser, seeds [B], label indices [B] or None) → uint8 [B, C, H, W].

    An image depends on its seed and label alone: latents and churn noise are functions of the seed.
    """

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None) -> Tensor:
        device = next(denoiser.parameters()).device
        seeds = seeds.to(device)
        shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)
        one_hot = None
        if labels is not None:
            one_hot = F.one_hot(labels.to(device), denoiser.label_dim).float()  # [B, label_dim]
        low, high = self.guidance_interval or (0.0, math.inf)
        guided = denoiser if self.guidance == 1 else ClassifierFreeGuidance(denoiser, self.guidance, (low, high))
        low_precision = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        with torch.autocast(device.type, dtype=low_precision, enabled=self.precision != "32-true"):
            images = edm_sampler(
                guided,
                latents(seeds, shape),
                one_hot,
                solver=self.solver,
                num_steps=self.num_steps(denoiser.img_resolution),
                sigma_min=self.sigma_min,
                sigma_max=self.sigma_max,
                rho=self.rho,
                S_churn=self.churn,
                S_min=self.S_min,
                S_max=self.S_max,
                S_noise=self.S_noise,
                churn_noise=churn_noise(seeds, shape),
            )
        if not images.isfinite().all():
            broken = seeds[~images.isfinite().flatten(1).all(dim=1)].tolist()
            raise UserError(
                f"the model makes no image of the seeds {', '.join(map(str, broken[:8]))}"
                f"{', …' if len(broken) > 8 else ''}: values are not finite. "
                + (
                    "Its weights are broken, or the sampler's settings are."
                    if self.precision == "32-true"
                    else f"Type sampler.precision=32-true in place of {self.precision}."
                )
            )
        return denoiser.encoder.decode(images)


def spelled(sampler: DictConfig) -> dict[str, Any]:
    """The sampler's settings as a protocol has them: those that are set, infinity as text."""
    return {key: finite(value) for key, value in plain(sampler).items() if value is not None}


def place(denoiser: Denoiser, device: torch.device, compiled: bool) -> None:
    """Move a denoiser to where it is to work, in the memory format in which it was trained, and compile it if asked."""
    denoiser.to(device)
    if denoiser.meta.get("channels_last", True):
        denoiser.to(memory_format=torch.channels_last)
    if compiled:
        denoiser.compile()


def typed_sampler(cfg: DictConfig) -> Sampler:
    """The sampler of `sampler=`, with `steps=`, `churn=` and `guidance=` of the command written into it where typed."""
    for short in ("steps", "churn", "guidance"):
        if cfg[short] is not None:
            cfg.sampler[short] = cfg[short]
    return Sampler(**plain(cfg.sampler))
