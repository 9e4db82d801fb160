"""Samplers: pure functions of a denoiser, from noise to images (arXiv 2206.00364, algorithms 1 and 2)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from storage import philox
from storage.philox import Stream

DenoiserFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # D(x, σ, class_labels)
Slope = Callable[[Tensor, float], Tensor]  # dx/dt at (x, t)


def latents(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal starting points `[B, *shape]`, float32; each depends on its own seed (int64 `[B]`) alone."""
    return philox.normal(0, Stream.LATENTS, seeds, shape)


def churn_noise(seeds: Tensor, shape: Sequence[int]) -> Callable[[int], Tensor]:
    """The fresh standard normal noise `[B, *shape]` of each step of stochastic sampling, from the images' seeds."""
    return lambda step: philox.normal(step, Stream.CHURN, seeds, shape)


def time_steps(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Noise levels t_0 = sigma_max … t_{N−1} = sigma_min, t_N = 0 (equation 5), `[num_steps + 1]`."""
    roots = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64)
    steps = F.pad(roots**rho, (0, 1))
    no_float64 = torch.device(device).type == "mps"
    return steps.to(device, torch.float32 if no_float64 else torch.float64)


def euler_step(slope: Slope, x: Tensor, t: float, t_next: float) -> Tensor:
    """Euler's step from noise level t to t_next, of first order."""
    return x + (t_next - t) * slope(x, t)


def heun_step(slope: Slope, x: Tensor, t: float, t_next: float) -> Tensor:
    """Heun's step, of second order; Euler's where it ends at 0, where the slope is not defined."""
    d = slope(x, t)
    euler = x + (t_next - t) * d
    return x + (t_next - t) * (d + slope(euler, t_next)) / 2 if t_next > 0 else euler


SOLVERS: dict[str, Callable[[Slope, Tensor, float, float], Tensor]] = {"heun": heun_step, "euler": euler_step}


@torch.no_grad()
def sample(
    denoiser: DenoiserFunction,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    solver: str = "heun",
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_tmin: float = 0,
    S_tmax: float = math.inf,
    S_noise: float = 1,
    churn_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """From noise to images in steps of first (Euler) or second order (Heun), deterministic or stochastic.

    Args:
        denoiser: D(x, σ, class_labels); computes in its own precision, the solver in float64.
        latents: Standard normal `[B, C, H, W]`.
        class_labels: `[B, label_dim]` or None.
        solver: One of `SOLVERS`: heun evaluates the denoiser 2·num_steps − 1 times, euler num_steps times.
        num_steps: Steps N of the solver; the last one, to σ = 0, is of first order.
        sigma_min, sigma_max: Lowest (but for 0) and highest noise level.
        rho: The larger, the shorter the steps near sigma_min.
        S_churn: Strength of the stochasticity; 0: the deterministic ODE.
        S_tmin, S_tmax: Noise levels between which noise is added.
        S_noise: Standard deviation of that noise.
        churn_noise: Step index → standard normal in the shape of the latents; needed where S_churn > 0.

    Returns:
        Images in [-1, 1], more or less, float64 `[B, C, H, W]` (float32 on devices without float64).

    Examples:
        >>> grey = lambda x, sigma, class_labels: torch.full_like(x, 0.25)  # the denoiser of grey images
        >>> images = sample(grey, latents(torch.arange(2), (1, 4, 4)), num_steps=5)
        >>> images.shape, images.mean().item()
        (torch.Size([2, 1, 4, 4]), 0.25)
    """
    t = time_steps(num_steps, sigma_min, sigma_max, rho, latents.device)

    def slope(x: Tensor, t: float) -> Tensor:
        """dx/dt = (x − D(x; t)) / t of the probability flow ODE (equation 3 with σ(t) = t)."""
        sigma = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        return (x - denoiser(x, sigma, class_labels).to(x.dtype)) / t

    x = latents.to(t.dtype) * t[0]
    for step, (t_i, t_next) in enumerate(pairwise(t.tolist())):
        t_hat = t_i
        if S_churn > 0 and S_tmin <= t_i <= S_tmax:  # algorithm 2, lines 4 to 6
            if churn_noise is None:
                raise ValueError("S_churn > 0 needs fresh noise: pass churn_noise=sampler.churn_noise(seeds, shape)")
            t_hat = t_i * (1 + min(S_churn / num_steps, math.sqrt(2) - 1))
            x = x + math.sqrt(t_hat**2 - t_i**2) * S_noise * churn_noise(step).to(x)
        x = SOLVERS[solver](slope, x, t_hat, t_next)
    return x
