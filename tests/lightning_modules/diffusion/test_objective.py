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


def test_the_denoiser_gets_noisy_images_and_labels():
    images, sigma, noise = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 2.0]), torch.randn(2, 1, 4, 4)
    seen = []

    def denoiser(*arguments):
        seen.extend(arguments)
        return images

    class_labels, augment_labels = torch.eye(2), torch.zeros(2, 9)
    assert not EDMObjective()(denoiser, images, sigma, noise, class_labels, augment_labels).any()
    torch.testing.assert_close(seen[0], images + torch.stack([0.5 * noise[0], 2.0 * noise[1]]))
    assert seen[1] is sigma
    assert seen[2] is class_labels
    assert seen[3] is augment_labels


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
