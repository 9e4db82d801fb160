"""The moving average against the recursion by hand."""

import pytest
import torch
from torch import nn

from lightning_modules.diffusion.ema import EMA


def test_recursion_with_ramp_up():
    """Half-life 2 kimg, at most 5 % of the images seen, steps of 1000 images."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 5.0)
    ema = EMA(module, halflife_kimg=2, rampup_ratio=0.05)
    average = 5.0
    for step in range(100):
        nimg, value = 1000 * step, float(step % 7)
        nn.init.constant_(module.weight, value)
        ema.update(module, nimg=nimg, batch_size=1000)
        halflife = min(2000, 0.05 * nimg)
        beta = 0.5 ** (1000 / halflife) if halflife else 0.0
        average = beta * average + (1 - beta) * value
        assert float(ema.get().weight) == pytest.approx(average, rel=1e-5, abs=1e-6)


def test_buffers_are_copied():
    module = nn.BatchNorm1d(2)
    ema = EMA(module)
    module.running_mean.fill_(3.0)
    module.num_batches_tracked.fill_(4)
    ema.update(module, nimg=10**6, batch_size=8)
    assert ema.get().running_mean.tolist() == [3, 3]
    assert int(ema.get().num_batches_tracked) == 4


def test_the_copy_is_frozen_and_apart():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
    ema = EMA(module).train()
    assert not any(submodule.training for submodule in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    before = ema.get()[0].weight.clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(ema.get()[0].weight, before)


def test_half_precision_weights_are_averaged_in_single_precision():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(module.weight, 1.0)
    ema = EMA(module, halflife_kimg=500, rampup_ratio=None)
    nn.init.constant_(module.weight, 2.0)
    ema.update(module, nimg=10**6, batch_size=64)
    assert float(ema.get().weight) == pytest.approx(2 - 0.5 ** (64 / 500_000), rel=1e-7)
