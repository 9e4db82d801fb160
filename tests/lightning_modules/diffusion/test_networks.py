"""Building networks from settings: sizes, initialisation, and messages about settings that cannot work."""

from dataclasses import replace

import pytest
import torch

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.networks import ARCHITECTURES
from lightning_modules.diffusion.objective import EDMObjective

CIFAR = NetworkSettings()
FFHQ = replace(CIFAR, channel_mult=[1, 2, 2, 2])
IMAGENET = NetworkSettings("adm", 192, [1, 2, 3, 4], num_blocks=3, attn_resolutions=[32, 16, 8])
SMALL = NetworkSettings(model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8], dropout=0.1)


@pytest.mark.parametrize(
    ("settings", "img_resolution", "label_dim", "augment_dim", "millions"),
    [
        (CIFAR, 32, 0, 9, 55.7),
        (CIFAR, 32, 10, 9, 55.7),
        (FFHQ, 64, 0, 9, 61.8),
        (IMAGENET, 64, 1000, 0, 295.9),  # table 7 of the EDM paper: 296 M
    ],
)
def test_parameter_counts_are_the_published_ones(settings, img_resolution, label_dim, augment_dim, millions):
    with torch.device("meta"):
        denoiser = Denoiser(settings, img_resolution, 3, label_dim, augment_dim)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initial_loss_is_one_at_every_noise_level(architecture):
    """λ(σ) equalises the loss of a network that outputs 0, as one does after initialisation (EDM, section 5)."""
    torch.manual_seed(0)
    denoiser = Denoiser(replace(SMALL, architecture=architecture), 16, 3, label_dim=4, augment_dim=9).eval()
    images = 0.5 * torch.randn(32, 3, 16, 16)
    for sigma in (0.01, 0.3, 2.0, 40.0):
        per_pixel = EDMObjective()(denoiser, images, torch.full((32,), sigma), torch.randn_like(images))
        assert float(per_pixel.detach().mean()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_odd_shapes_train(architecture):
    """One channel, one level, a size that no power of two divides; every parameter gets a gradient."""
    torch.manual_seed(0)
    settings = replace(SMALL, architecture=architecture, channel_mult=[1], attn_resolutions=[7])
    denoiser = Denoiser(settings, 7, 1, label_dim=3, augment_dim=9)
    with torch.no_grad():  # zero-initialised layers would block the gradient
        for parameter in denoiser.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    labels = torch.eye(3)[[0, 2]]
    loss = EDMObjective()(
        denoiser, torch.randn(2, 1, 7, 7), torch.ones(2), torch.randn(2, 1, 7, 7), labels, torch.ones(2, 9)
    )
    loss.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in denoiser.parameters())


@pytest.mark.parametrize(("architecture", "label_dim"), [("ddpmpp", 0), *((name, 4) for name in ARCHITECTURES)])
def test_an_exported_network_takes_any_number_of_images(architecture, label_dim):
    torch.manual_seed(0)
    settings = replace(SMALL, architecture=architecture, attn_resolutions=[4])
    denoiser = Denoiser(settings, 8, 3, label_dim, augment_dim=9).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def inputs(count: int) -> tuple[torch.Tensor, ...]:
        labels = (torch.eye(label_dim)[torch.arange(count) % label_dim],) if label_dim else ()
        return torch.randn(count, 3, 8, 8), torch.rand(count) + 0.1, *labels

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(denoiser, inputs(3), dynamic_shapes=tuple(batch for _ in inputs(3)))
    for count in (1, 3, 7):
        given = inputs(count)
        torch.testing.assert_close(program.module()(*given), denoiser(*given))


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    denoiser = Denoiser(replace(SMALL, dropout=0.5), 16, 3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(denoiser.train()(x, 1.0), denoiser(x, 1.0))
    assert torch.equal(denoiser.eval()(x, 1.0), denoiser(x, 1.0))


def test_initialisation_of_the_label_embedding_does_not_shrink_with_the_number_of_clusters():
    torch.manual_seed(0)
    denoiser = Denoiser(replace(SMALL, architecture="adm", model_channels=64), 16, 3, label_dim=100)
    assert float(denoiser.model.map_label.weight.std()) == pytest.approx(1, abs=0.02)


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="132 channels do not divide into 32 normalisation groups"):
        Denoiser(replace(SMALL, model_channels=132), 16, 3)


@pytest.mark.parametrize(("img_resolution", "fitting"), [(30, "28 or 32"), (2, "such as 4")])
def test_sizes_that_cannot_be_halved_are_refused(img_resolution, fitting):
    with pytest.raises(ValueError, match=rf"{img_resolution}×{img_resolution}.*multiple of 4.*{fitting}"):
        Denoiser(replace(SMALL, channel_mult=[1, 1, 1]), img_resolution, 3)
