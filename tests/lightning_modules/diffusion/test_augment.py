"""The augmentation against the reference, and the distributions that its transforms are drawn from."""

import math

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

from lightning_modules.diffusion import augment

IDENTITY = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0], dtype=torch.float32)


@pytest.fixture(scope="module")
def golden(golden_dir) -> dict[str, Tensor]:
    return load_file(golden_dir / "augment.safetensors")


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return augment.draw_parameters(0, torch.arange(100_000), probability=0.12, img_resolution=32)


@pytest.mark.parametrize("half_precision", [False, True])
@pytest.mark.parametrize("resample_all", [False, True])
def test_reference_images_and_labels(golden, resample_all, half_precision):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half_precision):
        images, labels = augment.apply(golden["input.images"], golden["input.parameters"], resample_all)
    torch.testing.assert_close(images, golden["output.images"], rtol=0, atol=1e-4)
    torch.testing.assert_close(labels, golden["output.augment_labels"], rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(golden):
    images, labels = augment.apply(golden["input.images"], golden["input.parameters"])
    one_image, one_label = augment.apply(golden["input.images"][7:8], golden["input.parameters"][7:8])
    torch.testing.assert_close(one_image[0], images[7], rtol=0, atol=1e-5)
    torch.testing.assert_close(one_label[0], labels[7])


@pytest.mark.parametrize("resample_all", [False, True])
def test_identity_leaves_every_bit(golden, resample_all):
    images, labels = augment.apply(golden["input.images"], IDENTITY.repeat(24, 1), resample_all)
    assert torch.equal(images, golden["input.images"])
    assert torch.equal(labels, torch.zeros(24, 9))


def test_flips_are_exact(golden):
    parameters = IDENTITY.repeat(24, 1)
    parameters[0, 0] = parameters[1, 1] = parameters[2, 0] = parameters[2, 1] = 1
    before = golden["input.images"]
    after, labels = augment.apply(before, parameters)
    assert torch.equal(after[0], before[0].flip(2))
    assert torch.equal(after[1], before[1].flip(1))
    assert torch.equal(after[2], before[2].flip(1, 2))
    assert torch.equal(after[3:], before[3:])
    assert labels[:3, :2].tolist() == [[1, 0], [0, 1], [1, 1]]


def test_a_shift_moves_right_and_down():
    images = torch.full((1, 1, 16, 16), -1.0)
    images[0, 0, 5, 4] = 1
    parameters = IDENTITY.clone().unsqueeze(0)
    parameters[0, 6:] = torch.tensor([3.0, 2.0])
    moved, _ = augment.apply(images, parameters)
    torch.testing.assert_close(moved, images.roll((2, 3), dims=(2, 3)), rtol=0, atol=1e-5)


def test_a_quarter_turn_is_counter_clockwise():
    """A soft spot at the upper left goes to the lower left; the wavelet is not symmetric, so only nearly exactly."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    spot = torch.exp(-((x - 5) ** 2 + (y - 3) ** 2) / 8).reshape(1, 1, 16, 16)
    parameters = IDENTITY.clone().unsqueeze(0)
    parameters[0, 3] = math.pi / 2
    turned, _ = augment.apply(spot, parameters)
    torch.testing.assert_close(turned, spot.rot90(1, dims=(2, 3)), rtol=0, atol=0.1)
    assert int(turned.argmax()) == 10 * 16 + 3


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (4, 28), (3, 5)])
def test_other_channels_and_small_images(channels, size):
    torch.manual_seed(0)
    images = torch.rand(16, channels, size, size) * 2 - 1
    parameters = augment.draw_parameters(0, torch.arange(16), probability=1.0, img_resolution=size)
    augmented, labels = augment.apply(images, parameters)
    assert augmented.shape == images.shape
    assert labels.shape == (16, augment.AUGMENT_DIM)
    assert augmented.isfinite().all()


def test_each_transform_is_as_frequent_as_published(drawn):
    x_flip, y_flip, scale, angle, stretch, axis, x_shift, y_shift = drawn.unbind(1)
    rates = [
        (x_flip == 1, 0.5),
        (y_flip == 1, 0.12 / 2),
        (scale != 1, 0.12),
        (angle != 0, 0.12),
        (stretch != 1, 0.12),
        ((axis != 0)[stretch != 1], 0.5),
        (x_shift != 0, 0.12),
        ((scale != 1) & (angle != 0), 0.12**2),
        ((y_flip == 1) & (stretch != 1), 0.12**2 / 2),
    ]
    for happened, rate in rates:
        standard_error = math.sqrt(rate * (1 - rate) / len(happened))
        assert float(happened.float().mean()) == pytest.approx(rate, abs=5 * standard_error)
    assert torch.equal(x_shift != 0, y_shift != 0)


def test_transforms_have_the_published_distributions(drawn):
    _, _, scale, angle, stretch, axis, x_shift, y_shift = drawn.unbind(1)
    for numbers, distribution in [
        (scale[scale != 1].log2() / 0.2, stats.norm()),
        (stretch[stretch != 1].log2() / 0.2, stats.norm()),
        (x_shift[x_shift != 0] / (0.125 * 32), stats.norm()),
        (y_shift[y_shift != 0] / (0.125 * 32), stats.norm()),
        (angle[angle != 0], stats.uniform(-math.pi, 2 * math.pi)),
        (axis[axis != 0], stats.uniform(-math.pi, 2 * math.pi)),
    ]:
        assert stats.kstest(numbers.numpy(), distribution.cdf).pvalue > 1e-3
    shifted = x_shift != 0
    assert abs(float(torch.corrcoef(torch.stack([x_shift, y_shift])[:, shifted])[0, 1])) < 0.05


def test_without_augmentation_only_the_x_flip_remains():
    parameters = augment.draw_parameters(0, torch.arange(1000), probability=0.0, img_resolution=32)
    assert torch.equal(parameters[:, 1:], IDENTITY[1:].repeat(1000, 1))
    assert set(parameters[:, 0].tolist()) == {0.0, 1.0}


def test_draws_depend_on_the_position_alone(drawn):
    again = augment.draw_parameters(0, torch.tensor([77, 5]), probability=0.12, img_resolution=32)
    assert torch.equal(again, drawn[[77, 5]])
