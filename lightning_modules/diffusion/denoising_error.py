"""How well a denoiser recovers given images, by noise level: the same noise for every denoiser, so that two compare."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.diffusion.objective import EDMObjective
from storage.philox import Stream, normal

LOWEST, SMALL, HIGHEST = 0.002, 0.02, 80.0  # EDM's range, and where slight differences of networks begin to weigh much
CELLS = (6, 22)  # of ln σ below and above SMALL, each about 0.38 wide
QUANTILES = 10_000  # of the training's noise levels


def noise_levels() -> tuple[Tensor, Tensor]:
    """Noise levels σ from LOWEST to HIGHEST, float64 `[L]`, and the width in ln σ of the cell that each is amid, `[L]`.

    Σ widths · f(σ) is the integral of f over ln σ (the midpoint rule); SMALL is a border of two cells.
    """
    borders = torch.tensor([LOWEST, SMALL, HIGHEST], dtype=torch.float64).log()
    widths = (borders.diff() / torch.tensor(CELLS)).repeat_interleave(torch.tensor(CELLS))  # [L]
    return (borders[0] + widths.cumsum(0) - widths / 2).exp(), widths


def shares_of_training(objective: EDMObjective, sigmas: Tensor) -> Tensor:
    """The share of the training's noise levels that is nearest (in ln σ) to each of `sigmas` `[L]`: float64 `[L]`."""
    midpoints = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    drawn = objective.sigma(torch.special.ndtri(midpoints)).log()
    nearest = (drawn[:, None] - sigmas.log()).abs().argmin(dim=1)
    return torch.bincount(nearest, minlength=len(sigmas)).double() / QUANTILES


@torch.no_grad()
def denoising_errors(
    denoiser: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    images: Tensor,
    labels: Tensor | None,
    positions: Tensor,
    sigmas: Tensor,
) -> Tensor:
    """‖D(y + σn; σ) − y‖², summed over the pixels: float32 `[B, L]`.

    Args:
        denoiser: D(x, σ, labels).
        images: y, as the network has them, `[B, C, H, W]`.
        labels: One-hot labels `[B, label_dim]`, or None.
        positions: A number of its own for each image, below 2³², int64 `[B]`; its noise n depends on it and the level.
        sigmas: Noise levels `[L]`.
    """
    errors = []
    for level, sigma in enumerate(sigmas.to(images)):
        noise = normal(0, Stream.MEASURED_NOISE, positions + (level << 32), images.shape[1:]).to(images)
        denoised = denoiser(images + sigma * noise, sigma.expand(len(images)), labels)
        errors.append((denoised - images).square().sum(dim=(1, 2, 3)))
    return torch.stack(errors, dim=1)
