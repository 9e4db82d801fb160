"""The exponential moving average of a network's weights, by half-life, as in EDM (arXiv 2206.00364, appendix F.2)."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """An averaged copy of a module: parameters averaged in float32, buffers copied; always in evaluation mode.

    An average of another profile is a subclass with another `beta`.

    Args:
        module: The module to follow; the copy, `EMA.module`, starts equal to it.
        halflife_kimg: Half-life of the average, in thousands of training images.
        rampup_ratio: The half-life is at most this share of the images seen so far; None: no ramp-up.
    """

    def __init__(self, module: nn.Module, halflife_kimg: float = 500, rampup_ratio: float | None = 0.05) -> None:
        super().__init__()
        self.halflife_kimg = halflife_kimg
        self.rampup_ratio = rampup_ratio
        self.module = copy.deepcopy(module).float().eval().requires_grad_(False)

    def halflife_nimg(self, nimg: int) -> float:
        """Half-life of the average, in images, `nimg` images into the training."""
        largest = math.inf if self.rampup_ratio is None else self.rampup_ratio * nimg
        return min(1000 * self.halflife_kimg, largest)

    def beta(self, nimg: int, batch_size: int) -> float:
        """Weight of the old average at a step of `batch_size` images, `nimg` images into the training."""
        halflife = self.halflife_nimg(nimg)
        return 2 ** (-batch_size / halflife) if halflife else 0.0

    @torch.no_grad()
    def update(self, module: nn.Module, nimg: int, batch_size: int) -> None:
        """Moves the average towards `module`, after its optimizer step.

        Args:
            module: The module that is followed, unwrapped.
            nimg: Images seen before this step.
            batch_size: Images of this step, over all processes.
        """
        averages: list[Tensor] = list(self.module.parameters())
        values = [value.to(average) for average, value in zip(averages, module.parameters(), strict=True)]
        torch._foreach_lerp_(averages, values, 1 - self.beta(nimg, batch_size))
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(module.buffers()))

    def get(self) -> nn.Module:
        """The module with the averaged weights."""
        return self.module

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever mode the surrounding module takes."""
        return super().train(False)
