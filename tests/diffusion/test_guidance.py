"""Guided denoisers against their formulas, computed from separate evaluations."""

import pytest
import torch

from lightning_modules.diffusion.guidance import Autoguidance, ClassifierFreeGuidance
from lightning_modules.diffusion.sampler import heun_sampler, latents


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


def test_the_sampler_takes_a_guided_denoiser(golden_network):
    golden = golden_network("ddpmpp")
    denoiser, labels = golden.denoiser(), golden.inputs["class_labels"]
    start = latents(torch.arange(3), (3, 16, 16))
    plain = heun_sampler(denoiser, start, labels, num_steps=4)
    torch.testing.assert_close(heun_sampler(ClassifierFreeGuidance(denoiser, 1.0), start, labels, num_steps=4), plain)
    assert not torch.allclose(heun_sampler(ClassifierFreeGuidance(denoiser, 2.0), start, labels, num_steps=4), plain)
