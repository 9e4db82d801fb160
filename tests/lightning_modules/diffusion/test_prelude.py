"""The prelude of a pass: compiled, it is one graph, and draws the same bits."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._inductor import metrics

from lightning_modules.diffusion import augment
from lightning_modules.diffusion.encoders import PixelEncoder
from lightning_modules.diffusion.objective import EDMObjective
from lightning_modules.diffusion.prelude import Prelude
from storage.philox import Stream, normal

POSITIONS = torch.tensor([0, 1, 2, 77, 2**31, 2**33 + 5, 10**12, 3])


def prelude() -> Prelude:
    return Prelude(PixelEncoder(), EDMObjective(), 8, 3, label_dropout=0.3, augment_probability=0.5, seed=7)


def batch(first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.arange(8 * 3 * 64).reshape(8, 3, 8, 8) * 37 % 256
    return images.to(torch.uint8), torch.arange(8) % 3, POSITIONS + first


def test_it_is_one_graph_where_all_images_are_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; and none of it is compiled anew for other images."""
    torch._dynamo.reset()
    monkeypatch.setattr(augment, "apply", partial(augment.apply, resample_all=True))
    compiled = prelude()
    compiled.compile(backend="eager", fullgraph=True)
    for first in (0, 8):
        for ours, expected in zip(compiled(*batch(first)), prelude()(*batch(first)), strict=True):
            torch.testing.assert_close(ours, expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*batch(first + 80))


@pytest.mark.slow
def test_compiled_noise_is_the_same_to_the_bit() -> None:
    """And a handful of kernels, of hundreds of operations."""
    torch._dynamo.reset()
    metrics.reset()
    draw = partial(normal, 3, Stream.NOISE, shape=(3, 32, 32))
    assert torch.equal(torch.compile(lambda at: draw(at), fullgraph=True)(POSITIONS), draw(POSITIONS))
    assert metrics.generated_kernel_count <= 4
