"""Guided denoisers against their formulas, computed from separate evaluations."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lightning_modules.diffusion.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    SlidingWindows,
    window_starts,
)
from lightning_modules.diffusion.sampler import latents, sample


def test_classifier_free_guidance(golden_network):
    golden = golden_network("ddpmpp")
    denoiser, inputs = golden.denoiser(), golden.inputs
    x, sigma, labels = inputs["noisy"], inputs["sigma"], inputs["class_labels"]
    with_labels, without = denoiser(x, sigma, labels), denoiser(x, sigma)
    torch.testing.assert_close(
        ClassifierFreeGuidance(denoiser, scale=2.5)(x, sigma, labels), 2.5 * with_labels - 1.5 * without
    )
    torch.testing.assert_close(ClassifierFreeGuidance(denoiser, scale=1)(x, sigma, labels), with_labels)
    torch.testing.assert_close(ClassifierFreeGuidance(denoiser, scale=0)(x, sigma, labels), without)


def test_guidance_acts_within_its_interval_alone(golden_network):
    """At other noise levels an image is denoised with its label; where none is guided, once instead of twice."""
    golden = golden_network("ddpmpp")
    denoiser, inputs = golden.denoiser(), golden.inputs
    x, labels = inputs["noisy"][:3], inputs["class_labels"][:3]
    sigma = torch.tensor([0.1, 1.0, 10.0])[: len(x)]
    batches = []

    def counting(x, *rest):
        batches.append(len(x))
        return denoiser(x, *rest)

    guided = ClassifierFreeGuidance(counting, scale=3, interval=(0.5, 2.0))(x, sigma, labels)
    with_labels, without = denoiser(x, sigma, labels), denoiser(x, sigma)
    expected = with_labels.clone()
    expected[1] = 3 * with_labels[1] - 2 * without[1]
    torch.testing.assert_close(guided, expected)
    outside = ClassifierFreeGuidance(counting, scale=3, interval=(20.0, 30.0))(x, sigma, labels)
    torch.testing.assert_close(outside, with_labels)
    assert batches == [2 * len(x), len(x)]


def gaussian_pair(x, sigma, class_labels):
    """Denoisers of two Gaussians: N(1, ¼) with the label, N(−1, 1) without."""
    labelled = class_labels.sum(dim=1).reshape(-1, 1, 1, 1)
    mean, variance = 2 * labelled - 1, 1 - 0.75 * labelled
    return mean + (x - mean) * variance / (variance + (sigma**2).reshape(-1, 1, 1, 1))


def test_guided_sampling_converges_to_the_exact_solution():
    """Both denoisers are linear in x, so the guided ODE has a closed form by parts: it is solved exactly by scipy."""
    scale, sigma_max = 2.0, 80.0

    def slope(t: float, x: np.ndarray) -> np.ndarray:
        with_label = 1 + (x - 1) * 0.25 / (0.25 + t**2)
        without = -1 + (x + 1) / (1 + t**2)
        return (x - without - scale * (with_label - without)) / t

    start = latents(torch.arange(4), (1, 2, 2))
    exact = solve_ivp(slope, (sigma_max, 1e-6), start.double().flatten().numpy() * sigma_max, rtol=1e-10, atol=1e-10)
    guided = ClassifierFreeGuidance(gaussian_pair, scale)
    errors = [
        np.abs(sample(guided, start, torch.ones(4, 1), num_steps=n).flatten().numpy() - exact.y[:, -1]).max()
        for n in (50, 100, 200)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.3)


def test_classifier_free_guidance_needs_labels(golden_network):
    guided = ClassifierFreeGuidance(golden_network("ddpmpp").denoiser(), scale=2)
    with pytest.raises(ValueError, match="needs class labels"):
        guided(torch.zeros(1, 3, 16, 16), torch.ones(1))


def test_autoguidance(golden_network):
    golden = golden_network("ddpmpp")
    good, bad, inputs = golden.denoiser(), golden_network("ncsnpp").denoiser(), golden.inputs
    x, sigma, labels = inputs["noisy"], inputs["sigma"], inputs["class_labels"]
    guided = Autoguidance(good, guide=bad, scale=2)(x, sigma, labels)
    torch.testing.assert_close(guided, 2 * good(x, sigma, labels) - bad(x, sigma, labels))
    torch.testing.assert_close(Autoguidance(good, guide=bad, scale=1)(x, sigma, labels), good(x, sigma, labels))


def test_an_unconditional_guide_gets_no_labels():
    def denoiser(x, sigma, class_labels=None):
        return x if class_labels is None else x + 1

    class Unconditional:
        label_dim = 0

        def __call__(self, x, sigma, class_labels=None):
            return denoiser(x, sigma, class_labels)

    x, labels = torch.randn(2, 1, 4, 4), torch.eye(2)
    guided = Autoguidance(denoiser, guide=Unconditional(), scale=3)(x, torch.ones(2), labels)
    torch.testing.assert_close(guided, x + 3)


def test_autoguidance_acts_within_its_interval_alone(golden_network):
    """At other noise levels an image is what the denoiser says; where none is guided, the guide is not asked."""
    golden = golden_network("ddpmpp")
    good, bad, inputs = golden.denoiser(), golden_network("ncsnpp").denoiser(), golden.inputs
    x, labels, sigma = inputs["noisy"][:3], inputs["class_labels"][:3], torch.tensor([0.1, 1.0, 10.0])
    asked = []

    def guide(*arguments):
        asked.append(len(arguments[0]))
        return bad(*arguments)

    expected = good(x, sigma, labels)
    expected[1] = 3 * expected[1] - 2 * bad(x, sigma, labels)[1]
    torch.testing.assert_close(Autoguidance(good, guide, 3, (0.5, 2.0))(x, sigma, labels), expected)
    Autoguidance(good, guide, 3, (20.0, 30.0))(x, sigma, labels)
    assert asked == [3]


@pytest.mark.parametrize(("length", "size", "starts"), [(8, 6, [0, 2]), (32, 16, [0, 16]), (32, 12, [0, 10, 20])])
def test_windows_cover_the_image_evenly(length, size, starts):
    assert window_starts(length, size) == starts


def test_sliding_windows_average_what_each_window_says():
    """A denoiser that gives the mean of what it sees: each pixel gets the mean over its windows of their means."""

    def mean_of_all(x, sigma, class_labels=None):
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x) + 100 * class_labels[:, :1, None, None] + sigma[0]

    x, labels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.eye(2)
    found = SlidingWindows(mean_of_all, 6)(x, torch.ones(2), labels)
    corners = [(top, left) for top in (0, 2) for left in (0, 2)]
    windows = {(top, left): x[..., top : top + 6, left : left + 6].mean(dim=(2, 3)) for top, left in corners}
    for row in range(8):
        for column in range(8):
            seen = [mean for (top, left), mean in windows.items() if top <= row < top + 6 and left <= column < left + 6]
            expected = torch.stack(seen).mean(dim=0) + torch.tensor([[100.0], [0.0]]) + 1
            torch.testing.assert_close(found[..., row, column], expected)


def test_a_denoiser_takes_windows(golden_network):
    """With one window in place of four, the windows' denoiser is the denoiser on that part of the image."""
    golden = golden_network("ddpmpp")
    denoiser, x = golden.denoiser(), golden.inputs["noisy"]
    sigma, labels = golden.inputs["sigma"], golden.inputs["class_labels"]
    found = SlidingWindows(denoiser, 8)(x, sigma, labels)
    torch.testing.assert_close(found[..., 8:, :8], denoiser(x[..., 8:, :8], sigma, labels), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_clean_images_guides_to_the_mean_of_its_images():
    """Known for normal data, N(0, s²): a likelihood exp(a x₀) moves the mean of x₀ given x by its variance times a."""
    variance, a = 0.25, torch.tensor([1.5, -2.0])

    def denoiser(x, sigma, class_labels):
        return x * (variance / (variance + sigma**2))[:, None, None, None]

    def log_likelihood(images, class_labels):
        return (class_labels @ a) * images.flatten(1).sum(dim=1)

    x, labels = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.eye(2)
    for sigma in (0.1, 1.0, 30.0):
        level = torch.full((2,), sigma, dtype=torch.float64)
        left = variance * sigma**2 / (variance + sigma**2)
        for scale in (2, 3.5):
            found = ClassifierGuidance(denoiser, log_likelihood, scale)(x, level, labels)
            expected = denoiser(x, level, None) + (scale - 1) * left * a[:, None, None, None]
            torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)
    alone = ClassifierGuidance(denoiser, log_likelihood, 3, interval=(0, 5))(x, torch.tensor([2.0, 10.0]), labels)
    plain = denoiser(x, torch.tensor([2.0, 10.0]), None)
    assert torch.equal(alone[1], plain[1])
    assert not torch.allclose(alone[0], plain[0])
    with pytest.raises(ValueError, match="needs class labels"):
        ClassifierGuidance(denoiser, log_likelihood, 3)(x, level)


def test_guidance_by_a_classifier_in_the_sampler():
    """Which asks for no gradients. Guided samples of N(0, s²) are of N(s² a, s²), with exp(a x) as the likelihood."""
    a, weight = torch.tensor([1.0, -2.0]), torch.ones((), requires_grad=True)

    def denoiser(x, sigma, class_labels):
        return weight * x * (0.25 / (0.25 + sigma**2))[:, None, None, None]

    def log_likelihood(images, class_labels):
        return (class_labels @ a) * images.flatten(1).sum(dim=1)

    seeds = torch.arange(400)
    labels = torch.eye(2)[seeds % 2]
    made = sample(ClassifierGuidance(denoiser, log_likelihood, 2), latents(seeds, (1, 4, 4)), labels, num_steps=18)
    for label in (0, 1):
        of_label = made[seeds % 2 == label]
        assert float(of_label.mean()) == pytest.approx(0.25 * float(a[label]), abs=0.03)
        assert float(of_label.std()) == pytest.approx(0.5, abs=0.03)
    assert weight.grad is None
    assert not made.requires_grad
