"""The table of a U-Net's layers against tables written by hand, and the networks that are built from it."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.networks import ARCHITECTURES
from lightning_modules.diffusion.unet_table import Layer, unet_table

TINY = NetworkSettings(model_channels=8, channel_mult=[2, 3], num_blocks=1, attn_resolutions=[4], dropout=0.0)
DEEP = NetworkSettings(model_channels=8, channel_mult=[1, 2, 2], num_blocks=2, attn_resolutions=[8, 2], dropout=0.0)

DDPMPP = """
enc.8x8_conv    convolution   3  8  8
enc.8x8_block0  block         8 16  8
enc.4x4_down    down         16 16  4
enc.4x4_block0  block        16 24  4  attention
dec.4x4_in0     block        24 24  4  attention
dec.4x4_in1     block        24 24  4
dec.4x4_block0  block        48 24  4            enc.4x4_block0
dec.4x4_block1  block        40 24  4  attention enc.4x4_down
dec.8x8_up      up           24 24  8
dec.8x8_block0  block        40 16  8            enc.8x8_block0
dec.8x8_block1  block        24 16  8            enc.8x8_conv
dec.8x8_aux_norm normalisation 16 16 8
dec.8x8_aux_conv convolution 16  3  8
"""
NCSNPP = DDPMPP.replace(
    "enc.4x4_block0  block        16", "enc.4x4_aux_residual pyramid 3 16 4\nenc.4x4_block0  block        16"
).replace("attention enc.4x4_down", "attention enc.4x4_aux_residual")
ADM = """
enc.8x8_conv    convolution   3 16  8
enc.8x8_block0  block        16 16  8
enc.4x4_down    down         16 16  4
enc.4x4_block0  block        16 24  4  attention
dec.4x4_in0     block        24 24  4  attention
dec.4x4_in1     block        24 24  4
dec.4x4_block0  block        48 24  4  attention enc.4x4_block0
dec.4x4_block1  block        40 24  4  attention enc.4x4_down
dec.8x8_up      up           24 24  8
dec.8x8_block0  block        40 16  8            enc.8x8_block0
dec.8x8_block1  block        32 16  8            enc.8x8_conv
out_norm        normalisation 16 16 8
out_conv        convolution  16  3  8
"""


def layers(text: str) -> list[Layer]:
    """A table as it is written above."""
    rows = []
    for name, kind, in_channels, out_channels, resolution, *rest in map(str.split, text.strip().splitlines()):
        joins = next((word for word in rest if word != "attention"), None)
        sizes = int(in_channels), int(out_channels), int(resolution)
        rows.append(Layer(name, kind, *sizes, "attention" in rest, joins))  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize(("architecture", "expected"), [("ddpmpp", DDPMPP), ("ncsnpp", NCSNPP), ("adm", ADM)])
def test_tables_written_by_hand(architecture: str, expected: str) -> None:
    assert unet_table(ARCHITECTURES[architecture].design, TINY, 8, 3) == layers(expected)


def test_the_input_pyramid_goes_down_level_by_level() -> None:
    table = unet_table(ARCHITECTURES["ncsnpp"].design, DEEP, 8, 3)
    pyramid = [(row.in_channels, row.out_channels, row.resolution) for row in table if row.kind == "pyramid"]
    assert pyramid == [(3, 8, 4), (8, 16, 2)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [TINY, DEEP, NetworkSettings(model_channels=4, channel_mult=[3], num_blocks=1)])
def test_networks_are_what_their_table_says(architecture: str, settings: NetworkSettings) -> None:
    """Every layer reads and returns what its row says, is used once, and every weight gets a gradient."""
    torch.manual_seed(0)
    network = ARCHITECTURES[architecture](settings, 8, 3, label_dim=4, augment_dim=9)
    with torch.no_grad():  # zero-initialised layers would block the gradient
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str, inputs: Tensor, output: Tensor) -> None:
        assert name not in seen
        seen[name] = inputs.shape[1], *output.shape[1:]

    for row in network.table:
        module = network.get_submodule(row.name)
        module.register_forward_hook(lambda _, args, output, name=row.name: watch(name, args[0], output))
        assert hasattr(module, "qkv") == row.attention
    images = torch.randn(2, 3, 8, 8)
    output = network(images, torch.randn(2), torch.eye(4)[[0, 3]], torch.randn(2, 9))
    assert output.shape == images.shape
    expected = {row.name: (row.in_channels, row.out_channels, row.resolution, row.resolution) for row in network.table}
    assert seen == expected
    joined = Counter(row.joins for row in network.table if row.joins)
    assert set(joined.values()) == {1}
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in network.named_parameters():
        blank = name == "map_label.weight"  # classes 1 and 2 are in no image
        gradient = parameter.grad[:, [0, 3]] if blank else parameter.grad
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("model_channels", [2, 3])
def test_the_narrowest_networks_are_finite(architecture: str, model_channels: int) -> None:
    settings = NetworkSettings(architecture, model_channels, [1], num_blocks=1)
    network = ARCHITECTURES[architecture](settings, 4, 1, label_dim=0, augment_dim=0)
    noise = torch.tensor([-1.0, 1.0])
    assert network(torch.randn(2, 1, 4, 4), noise).isfinite().all()
    first, second = network.embed(noise, None, None)
    assert not torch.equal(first, second)  # it is told the noise level
