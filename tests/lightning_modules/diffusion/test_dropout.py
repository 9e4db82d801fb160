"""Dropout with few random numbers, on the CPU."""

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.layers import dropout

PROBABILITY = 0.13


def kept(shape: tuple[int, ...], probability: float = PROBABILITY) -> Tensor:
    return dropout(torch.ones(shape), probability, training=True) != 0


def test_every_element_is_dropped_with_the_probability_and_alone():
    """Four elements share a random number: each lane has the right rate, and no two of them go together."""
    torch.manual_seed(0)
    lanes = kept((400_000,)).view(-1, 4).double()
    deviation = (PROBABILITY * (1 - PROBABILITY) / len(lanes)) ** 0.5
    assert ((lanes.mean(dim=0) - (1 - PROBABILITY)).abs() < 4 * deviation).all()
    correlations = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlations.abs().max() < 4 / len(lanes) ** 0.5


@pytest.mark.parametrize("probability", [1e-9, 1 / 2**16, 1 - 1 / 2**16, 1.0])
def test_extreme_probabilities(probability: float):
    torch.manual_seed(0)
    share = kept((1 << 20,), probability).double().mean().item()
    assert share == pytest.approx(1 - probability, abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_so_is_its_gradient(dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 6, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    y = dropout(x, 0.25, training=True)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    scale = torch.tensor(1 / 0.75, dtype=dtype)
    assert set(gradient.unique().tolist()) == {0.0, scale.item()}
    torch.testing.assert_close(y, x * gradient)


def test_the_seed_decides_and_evaluation_keeps_all():
    torch.manual_seed(3)
    first = kept((5, 7, 12))
    torch.manual_seed(3)
    assert kept((5, 7, 12)).equal(first)
    assert not kept((5, 7, 12)).equal(first)
    x = torch.randn(4, 4)
    assert dropout(x, PROBABILITY, training=False) is x


def test_any_number_of_elements():
    torch.manual_seed(0)
    assert kept((3, 5)).shape == (3, 5)
