"""Errors by noise level against closed forms of Gaussian data."""

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.denoising_error import (
    HIGHEST,
    LOWEST,
    SMALL,
    denoising_errors,
    noise_levels,
    shares_of_training,
)
from lightning_modules.diffusion.objective import EDMObjective

STD = 0.3  # of the data


def ideal(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """The best denoiser of N(0, STD²)."""
    return x * (STD**2 / (STD**2 + sigma**2))[:, None, None, None]


def test_errors_of_the_ideal_denoiser() -> None:
    """An image's error is then (STD² n − σ y)² in the mean σ² STD² / (σ² + STD²) for each pixel."""
    sigmas, _ = noise_levels()
    images = STD * torch.randn(2000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(2000) + 2**31
    errors = denoising_errors(ideal, images, None, positions, sigmas)
    expected = 16 * sigmas**2 * STD**2 / (sigmas**2 + STD**2)
    torch.testing.assert_close(errors.double().mean(dim=0), expected, rtol=0.04, atol=0)
    part = torch.tensor([1999, 7])  # in whatever batch: the noise is the image's own
    torch.testing.assert_close(denoising_errors(ideal, images[part], None, positions[part], sigmas), errors[part])
    of_levels = torch.corrcoef(errors[:, 3:6].T)  # each level has noise of its own
    assert of_levels[0, 1].abs() < 0.1


def test_the_levels_integrate_over_the_logarithm_of_the_noise() -> None:
    sigmas, widths = noise_levels()
    assert widths.sum().item() == pytest.approx(math.log(HIGHEST / LOWEST))
    assert widths[sigmas < SMALL].sum().item() == pytest.approx(math.log(SMALL / LOWEST))
    # ∫ [s²/(s² + σ²)] d ln σ = ½ ln(1 + s²/σ²), the information of a Gaussian channel
    integral = (widths * STD**2 / (STD**2 + sigmas**2)).sum().item()
    closed = 0.5 * (math.log1p((STD / LOWEST) ** 2) - math.log1p((STD / HIGHEST) ** 2))
    assert integral == pytest.approx(closed, rel=1e-3)


@pytest.mark.parametrize(("P_std", "close"), [(1.2, 0.01), (0.5, 0.01), (0.0, 0.06)])  # one level alone is rounded
def test_losses_are_weighted_as_in_training(P_std: float, close: float) -> None:
    """The mean training loss of the ideal denoiser, against one over many noise levels drawn as training draws them."""
    sigmas, _ = noise_levels()
    objective = EDMObjective(P_mean=-1.2, P_std=P_std)
    drawn = objective.sigma(torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def loss(sigma: Tensor) -> Tensor:
        return objective.weight(sigma) * sigma**2 * STD**2 / (sigma**2 + STD**2)

    found = (shares_of_training(objective, sigmas) * loss(sigmas)).sum().item()
    assert found == pytest.approx(loss(drawn).mean().item(), rel=close)
