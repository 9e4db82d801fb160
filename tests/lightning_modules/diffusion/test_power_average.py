"""Power-function averages: tracked directly, and put together after the training, against golden numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_modules.diffusion.power_average import (
    WIDEST,
    PowerAverage,
    coefficients,
    exponent_of,
    relative_width,
)

BATCH = 32
WITHIN = {0.02: 5e-3, 0.07: 2e-4, 0.12: 2e-3, 0.20: 2e-3}  # relative norm, with float16 snapshots


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parents[2] / "golden/edm2_averages.safetensors")


def test_exponents(golden):
    for width, exponent in golden["std_to_exponent"].tolist():
        assert exponent_of(width) == pytest.approx(exponent, rel=1e-9)
        assert relative_width(exponent_of(width)) == pytest.approx(width, rel=1e-12)
    for impossible in (0, -0.1, WIDEST, 0.5):
        with pytest.raises(ValueError, match=r"lies between 0 and 0\.2887"):
            exponent_of(impossible)


def test_the_relative_width_is_the_profiles_standard_deviation():
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    profile = t**6.5 / (t**6.5).sum()
    mean = (profile * t).sum()
    assert relative_width(6.5) == pytest.approx(float((profile * (t - mean) ** 2).sum().sqrt()), rel=1e-4)


def test_an_average_is_tracked_as_published(golden):
    for index, width in enumerate(golden["out_std"].tolist()):
        followed = nn.Linear(3, 2, bias=False)
        average = PowerAverage(followed, width)
        for step, weights in enumerate(golden["weights"]):
            followed.weight.data = weights
            average.update(followed, nimg=BATCH * step, batch_size=BATCH)
        torch.testing.assert_close(average.get().weight, golden["directly_averaged"][index], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", WITHIN)
def test_any_length_is_put_together_of_the_stored_ones(golden, width):
    index = golden["out_std"].tolist().index(width)
    nimg, widths = golden["snapshot_nimg"].tolist(), golden["snapshot_std"].tolist()
    factors = coefficients(nimg, widths, max(nimg), width)
    torch.testing.assert_close(factors, golden["coefficients"][:, index], rtol=1e-6, atol=1e-6)
    exactly = torch.tensordot(factors, golden["snapshots"].double(), dims=1)
    torch.testing.assert_close(exactly, golden["reconstructed"][index])
    stored = torch.tensordot(factors, golden["snapshots"].half().double(), dims=1)
    tracked = golden["directly_averaged"][index].double()
    assert float((stored - tracked).norm() / tracked.norm()) <= WITHIN[width]


def test_a_stored_average_is_put_together_of_itself():
    factors = coefficients([1000, 1000, 2000, 2000], [0.05, 0.1, 0.05, 0.1], 2000, 0.1)
    torch.testing.assert_close(factors, torch.tensor([0, 0, 0, 1.0], dtype=torch.float64), atol=1e-9, rtol=0)
