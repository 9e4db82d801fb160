"""Winograd's convolution against PyTorch's own in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.diffusion import winograd
from lightning_modules.diffusion.layers import Conv2d


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 23)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_convolution_and_gradients(height: int, width: int, memory_format: torch.memory_format, monkeypatch):
    """To a few units in the last place of the largest output, in several chunks, whatever size and memory format."""
    monkeypatch.setattr(winograd, "CHUNK", 2 * 32 * height * width * 36 // 16)
    torch.manual_seed(0)
    x = torch.randn(5, 32, height, width).to(memory_format=memory_format).requires_grad_()
    weight, bias = torch.randn(24, 32, 3, 3, requires_grad=True), torch.randn(24, requires_grad=True)
    grad = torch.randn(5, 24, height, width)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    exact = F.conv2d(*exact_inputs, padding=1)
    ours = winograd.conv3x3(x, weight, bias)
    assert relative_error(ours, exact) < 2e-6
    expected = torch.autograd.grad(exact, exact_inputs, grad.double())
    for mine, theirs in zip(torch.autograd.grad(ours, [x, weight, bias], grad), expected, strict=True):
        assert relative_error(mine, theirs) < 4e-6


def test_wide_layers_use_it_where_it_pays(monkeypatch):
    torch.manual_seed(0)
    wide, narrow = Conv2d(256, 256, 3), Conv2d(128, 128, 3)
    x = torch.randn(1, 256, 16, 16)
    assert winograd.pays(x, wide.weight)
    assert relative_error(wide(x), F.conv2d(x.double(), wide.weight.double(), wide.bias.double(), padding=1)) < 5e-6
    assert not winograd.pays(x, narrow.weight)
    assert not winograd.pays(x[..., :8, :8], wide.weight)
    assert not winograd.pays(x.bfloat16(), wide.weight.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not winograd.pays(x, wide.weight)
        assert wide(x).dtype == torch.bfloat16
    monkeypatch.setattr(winograd, "ONEDNN_LINEAR", None)  # a PyTorch built without oneDNN
    assert not winograd.pays(x, wide.weight)
