"""The gain of ideal denoisers of a Gaussian mixture against the mutual information, by independent quadrature."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import norm
from torch import Tensor

from lightning_modules.diffusion.denoising_error import LOWEST, SMALL, denoising_errors, noise_levels
from metrics.denoising_errors import DenoisingErrors
from metrics.description_length import entropy, gain, gains

STD, SHARES = 0.3, torch.tensor([0.3, 0.7])  # of each component; the second is more likely
APART = 1.0  # distance of the two means
MEANS = (
    APART
    / 2
    * F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(0)), dim=0)
    * torch.tensor([[-1.0], [1.0]])
)  # [2, 16]
SIGMAS, WIDTHS = noise_levels()


def denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """The best denoiser of the mixture; of the component that a label names, where there is one."""
    x, variance = x.flatten(1).double(), STD**2 + sigma[:, None].double() ** 2
    posterior = labels
    if labels is None:
        posterior = (SHARES.log() - torch.cdist(x, MEANS.double()).square() / (2 * variance)).softmax(dim=1)
    assert posterior is not None
    mean = posterior.double() @ MEANS.double()
    return (mean + STD**2 / variance * (x - mean)).view(-1, 1, 4, 4)


def information(sigma: float) -> float:
    """I(component; image with noise of σ): all of it lies along the line through the means, so it is an integral."""
    variance, p = STD**2 + sigma**2, float(SHARES[1])

    def uncertainty(t: float) -> float:
        """Density × entropy of the component, at the place t along the line from the midpoint of the means."""
        sides = [norm.pdf(t, side * APART / 2, math.sqrt(variance)) for side in (-1, 1)]
        posterior = expit(logit(p) + APART * t / variance)
        found = -sum(q * math.log(q) for q in (posterior, 1 - posterior) if q > 0)
        return ((1 - p) * sides[0] + p * sides[1]) * found

    reach = APART + 10 * math.sqrt(variance)
    return entropy(SHARES) - quad(uncertainty, -reach, reach, points=[0.0], limit=400)[0]


def drawn(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of the mixture [N, 1, 4, 4], their components [N], and both kinds of errors [2, N, L]."""
    generator = torch.Generator().manual_seed(1)
    components = (torch.rand(count, generator=generator) >= SHARES[0]).long()
    noise = torch.randn(count, 16, generator=generator)
    images = (MEANS[components] + STD * noise).view(-1, 1, 4, 4)
    conditions = (None, F.one_hot(components, 2).float())
    errors = [denoising_errors(denoiser, images, one, torch.arange(count), SIGMAS) for one in conditions]
    return images, components, torch.stack(errors)


@pytest.mark.parametrize("lowest", [SMALL, LOWEST])
def test_the_gain_of_ideal_denoisers_is_the_mutual_information(lowest: float) -> None:
    """Within 4 standard errors, which are small beside it; and clusters of this overlap cost more than they save."""
    _, _, (without, errors) = drawn(6000)
    found = gain(without, errors, SIGMAS, WIDTHS, lowest)
    expected = information(lowest) - information(80.0)
    assert found.error < 0.05 * expected
    assert abs(found.value - expected) < 4 * found.error
    assert 0.3 < expected < 0.9 * entropy(SHARES)


def test_the_noise_levels_lie_closely_enough() -> None:
    """The gap of the two errors is (σ²/v)² E|mean of c − mean given the image|², v = STD² + σ²: another quadrature."""
    p = float(SHARES[1])

    def gap(sigma: float) -> float:
        variance = STD**2 + sigma**2

        def integrand(t: float) -> float:
            posterior = expit(logit(p) + APART * t / variance)
            density = (1 - p) * norm.pdf(t, -APART / 2, variance**0.5) + p * norm.pdf(t, APART / 2, variance**0.5)
            return density * posterior * (1 - posterior) * APART**2

        reach = APART + 10 * variance**0.5
        return (sigma**2 / variance) ** 2 * quad(integrand, -reach, reach, points=[0.0], limit=400)[0]

    kept = SIGMAS > SMALL
    weights = (WIDTHS / SIGMAS**2)[kept].numpy()
    found = float(np.dot(weights, [gap(sigma) for sigma in SIGMAS[kept].tolist()]))
    assert found == pytest.approx(information(SMALL) - information(80.0), rel=2e-3)


def test_a_condition_that_tells_nothing_gains_nothing_and_a_wrong_one_loses() -> None:
    images, components, (without, _) = drawn(2000)
    assert gain(without, without, SIGMAS, WIDTHS, LOWEST) == (0.0, 0.0)
    wrong = F.one_hot(1 - components, 2).float()
    lost = denoising_errors(denoiser, images, wrong, torch.arange(2000), SIGMAS)
    assert gain(without, lost, SIGMAS, WIDTHS, LOWEST).value < -1


def test_models_are_compared_on_the_images_that_both_were_measured_on() -> None:
    _, _, (without, errors) = drawn(60)
    places, some = torch.arange(60), torch.tensor([1, 5, 20, 21, 59])
    all_of_them = DenoisingErrors(SIGMAS, WIDTHS, without, without, places, places, {})
    few = DenoisingErrors(SIGMAS, WIDTHS, errors[some], errors[some[2:]], some, some[2:], {})
    held_out, training = gains(all_of_them, few, SMALL)
    assert held_out == gain(without[some], errors[some], SIGMAS, WIDTHS, SMALL)
    assert training == gain(without[some[2:]], errors[some[2:]], SIGMAS, WIDTHS, SMALL)


def test_the_price_is_the_entropy() -> None:
    assert entropy(torch.tensor([0.5, 0.25, 0.25, 0.0])) == pytest.approx(1.5 * math.log(2))
    assert entropy(torch.ones(40)) == pytest.approx(math.log(40))  # shares need not sum to 1
