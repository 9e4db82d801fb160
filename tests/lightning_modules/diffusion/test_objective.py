"""The parts of the objective that the golden numbers do not fix."""

import pytest
import torch

from lightning_modules.diffusion.objective import EDMObjective, drop_labels
from storage import philox


def test_training_noise_levels_are_log_normal():
    normals = philox.normal(0, philox.Stream.SIGMA, torch.arange(20000))
    log_sigma = EDMObjective(P_mean=-0.8, P_std=1.6).sigma(normals).log()
    assert float(log_sigma.mean()) == pytest.approx(-0.8, abs=0.05)
    assert float(log_sigma.std()) == pytest.approx(1.6, abs=0.05)


def test_a_pixel_is_weighted_by_the_noise_level_of_its_image():
    """A denoiser that is off by 1 everywhere: (σ² + 0.25) / (0.25 σ²)."""
    images, sigma = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0])
    loss = EDMObjective()(lambda x, sigma, *labels: images + 1, images, sigma, torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(loss, torch.tensor([8.0, 4.25])[:, None, None, None].expand(2, 3, 4, 4))


def test_a_variant_is_a_few_lines():
    """Here of constant weight, and with a preconditioning that passes all through the network."""

    class Plain(EDMObjective):
        def weight(self, sigma):
            return torch.ones_like(sigma)

        def scalings(self, sigma):
            return torch.zeros_like(sigma), torch.ones_like(sigma), torch.ones_like(sigma), sigma

    images, sigma, noise = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 2.0]), torch.randn(2, 1, 4, 4)
    objective = Plain()
    loss = objective(lambda x, sigma: objective.denoise(lambda x, c_noise: x, x, sigma), images, sigma, noise)
    torch.testing.assert_close(loss, (sigma[:, None, None, None] * noise) ** 2)


def test_labels_are_dropped_at_the_given_rate():
    labels = torch.eye(3).repeat(10000, 1)
    uniforms = philox.uniform(0, philox.Stream.LABEL_DROPOUT, torch.arange(30000))
    dropped = drop_labels(labels, uniforms, probability=0.1)
    kept = dropped.sum(dim=1) == 1
    assert float(kept.float().mean()) == pytest.approx(0.9, abs=0.01)
    assert torch.equal(dropped[kept], labels[kept])
    assert not dropped[~kept].any()
    assert torch.equal(drop_labels(labels, uniforms, probability=0.0), labels)
    assert not drop_labels(labels, uniforms, probability=1.0).any()
