"""Guidance: denoisers made of two, that push samples away from a worse prediction. Each is callable like a denoiser."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """D₀ + scale (D_label − D₀) with the unconditional D₀ of the same network (arXiv 2207.12598).

    The network must have seen images without label in training (`loss.drop_labels`). Scale 1: no guidance.
    """

    denoiser: Callable[..., Tensor]
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Guided D(x; σ), `[B, C, H, W]`, from one evaluation of the network on 2B images; sigma `[B]`."""
        if class_labels is None:
            raise ValueError("classifier-free guidance needs class labels; this call has none")
        if self.scale == 1:
            return self.denoiser(x, sigma, class_labels)
        sigma = torch.as_tensor(sigma, device=x.device).expand(len(x))
        labels = torch.cat([class_labels, torch.zeros_like(class_labels)])
        D_label, D_none = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels).chunk(2)
        return D_none + self.scale * (D_label - D_none)


@dataclass(frozen=True)
class Autoguidance:
    """D_bad + scale (D − D_bad), guided by a smaller or less trained version of the denoiser (arXiv 2406.02507, eq. 3).

    Scale 1: no guidance. The guide gets the same labels where it knows labels.
    """

    denoiser: Callable[..., Tensor]
    guide: Callable[..., Tensor]
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Guided D(x; σ), `[B, C, H, W]`."""
        D_x = self.denoiser(x, sigma, class_labels)
        if self.scale == 1:
            return D_x
        unconditional_guide = getattr(self.guide, "label_dim", None) == 0
        D_bad = self.guide(x, sigma, None if unconditional_guide else class_labels)
        return D_bad + self.scale * (D_x - D_bad)
