"""The samplers on a problem with known solution: data that are Gaussian, N(μ, s²) in every pixel.

There D(x; σ) = μ + (x − μ) s² / (s² + σ²), and the probability flow ODE from noise level T to 0 has the solution
x(0) = μ + (x(T) − μ) √(s² / (s² + T²)).
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.sampler import (
    churn_noise,
    latents,
    sample,
    time_steps,
)

MEAN, STD, SIGMA_MAX = 0.3, 0.5, 80.0
EULER = partial(sample, solver="euler")


def gaussian_denoiser(x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
    variance = (sigma**2).reshape(-1, 1, 1, 1)
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + variance)


def exact_solution(x: Tensor) -> Tensor:
    return MEAN + (x.double() * SIGMA_MAX - MEAN) * STD / math.hypot(STD, SIGMA_MAX)


@pytest.mark.parametrize(("sampler", "order"), [(sample, 2), (EULER, 1)])
def test_order_of_convergence(sampler, order):
    start = latents(torch.arange(64), (1, 4, 4))
    step_counts = [50, 100, 200]
    errors = [
        float((sampler(gaussian_denoiser, start, num_steps=n, sigma_min=0.002) - exact_solution(start)).abs().max())
        for n in step_counts
    ]
    measured = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert measured == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "evaluations"),
    [(sample, 18, 35), (sample, 40, 79), (sample, 1, 1), (EULER, 18, 18)],
)
def test_number_of_evaluations(sampler, num_steps, evaluations):
    calls = []

    def counting(x, sigma, class_labels):
        calls.append(sigma)
        return gaussian_denoiser(x, sigma)

    sampler(counting, torch.zeros(2, 1, 4, 4), num_steps=num_steps)
    assert len(calls) == evaluations


def test_labels_reach_the_denoiser():
    labels = torch.eye(2)
    sample(lambda x, sigma, given: x if given is labels else None, torch.zeros(2, 1, 4, 4), labels, num_steps=2)


@pytest.mark.parametrize(("sampler", "num_steps"), [(sample, 60), (EULER, 400)])
def test_stochastic_sampling_keeps_the_distribution(sampler, num_steps):
    seeds = torch.arange(256)
    images = sampler(
        gaussian_denoiser,
        latents(seeds, (1, 8, 8)),
        num_steps=num_steps,
        S_churn=40,
        S_tmin=0.05,
        S_tmax=50,
        churn_noise=churn_noise(seeds, (1, 8, 8)),
    )
    deterministic = sampler(gaussian_denoiser, latents(seeds, (1, 8, 8)), num_steps=num_steps)
    assert abs(float(torch.corrcoef(torch.stack([images.flatten(), deterministic.flatten()]))[0, 1])) < 0.1
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(images.std()) == pytest.approx(STD, abs=0.02)


def test_stochastic_sampling_without_noise_is_refused():
    with pytest.raises(ValueError, match="churn_noise"):
        sample(gaussian_denoiser, torch.zeros(1, 1, 4, 4), S_churn=10)


def test_time_steps():
    steps = time_steps(18, sigma_min=0.002, sigma_max=80, rho=7)
    assert steps.dtype == torch.float64
    assert len(steps) == 19
    assert [float(steps[0]), float(steps[17]), float(steps[18])] == pytest.approx([80, 0.002, 0])
    roots = steps[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(17))
    assert time_steps(1, 0.002, 80, 7).tolist() == pytest.approx([80, 0])


def test_an_image_depends_on_its_seed_alone():
    seeds = torch.tensor([5, 1000, 7])
    assert torch.equal(latents(seeds, (3, 8, 8))[1], latents(torch.tensor([1000]), (3, 8, 8))[0])
    noise = churn_noise(seeds, (3, 8, 8))
    assert torch.equal(noise(4)[1], churn_noise(torch.tensor([1000]), (3, 8, 8))(4)[0])
    assert not torch.equal(noise(4), noise(5))
    assert not torch.equal(noise(0), latents(seeds, (3, 8, 8)))
