"""Networks under torch.compile: one graph, and as few sizes of a batch as can be."""

import pytest
import torch
from torch._dynamo.utils import counters

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings

ADM_64 = NetworkSettings("adm", 32, [1, 2, 3, 4], 3, [32, 16, 8], 0.1)  # EDM's for ImageNet, at a sixth of its width
DDPMPP_64 = NetworkSettings("ddpmpp", 16, [1, 2, 2, 2], 4, [16], 0.05)  # and for FFHQ, at an eighth
TINY = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])


def fresh(network: NetworkSettings, resolution: int) -> Denoiser:
    """A denoiser whose last layer says something already."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    denoiser = Denoiser(network, resolution, 3, label_dim=5, augment_dim=9).eval()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return denoiser


@pytest.mark.slow
@pytest.mark.parametrize("network", [ADM_64, DDPMPP_64], ids=["adm", "ddpmpp_64"])
def test_the_networks_for_64_by_64_compile_into_one_graph(network: NetworkSettings) -> None:
    denoiser = fresh(network, 64)
    given = torch.randn(1, 3, 64, 64), torch.tensor([0.7]), torch.eye(5)[:1], torch.ones(1, 9)
    with torch.no_grad():
        expected = denoiser(*given)
        denoiser.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(denoiser(*given), expected)


def test_smaller_batches_of_a_compiled_network_are_filled_up() -> None:
    """Two sizes are compiled, one batch and (as guidance has it) two at once, whichever come."""
    denoiser = fresh(TINY, 8)
    x, sigma, labels = torch.randn(8, 3, 8, 8), torch.rand(8) + 0.1, torch.eye(5)[torch.arange(8) % 5]
    with torch.no_grad():
        expected, same_sigma = denoiser(x, sigma, labels), denoiser(x, torch.tensor(0.5), labels)
        counters.clear()
        denoiser.compile(backend="eager", dynamic=False, filled_to=4)
        for count in (4, 3, 1, 8, 7, 5, 2):
            ours = denoiser(x[:count], sigma[:count], class_labels=labels[:count])
            torch.testing.assert_close(ours, expected[:count])
        assert counters["stats"]["unique_graphs"] == 2
        torch.testing.assert_close(denoiser(x[:3], torch.tensor(0.5), labels[:3]), same_sigma[:3])
