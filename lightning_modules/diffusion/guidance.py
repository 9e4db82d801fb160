"""Guidance: denoisers made of two, that push samples away from a worse prediction. Each is callable like a denoiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.diffusion.objective import per_image


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """D₀ + scale (D_label − D₀) with the unconditional D₀ of the same network (arXiv 2207.12598).

    The network must have seen images without label in training (`objective.drop_labels`). Scale 1: no guidance. Outside
    `interval`, noise levels from the lowest to the highest that are guided (arXiv 2404.07724), there is none either.
    """

    denoiser: Callable[..., Tensor]
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Guided D(x; σ), `[B, C, H, W]`; sigma `[B]`. One evaluation on 2B images, or on B where none is guided."""
        if class_labels is None:
            raise ValueError("classifier-free guidance needs class labels; this call has none")
        sigma = torch.as_tensor(sigma, device=x.device).expand(len(x))
        guided = (self.interval[0] <= sigma) & (sigma <= self.interval[1])  # [B]
        if self.scale == 1 or not bool(guided.any()):
            return self.denoiser(x, sigma, class_labels)
        labels = torch.cat([class_labels, torch.zeros_like(class_labels)])
        D_label, D_none = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels).chunk(2)
        scale = torch.where(guided, self.scale, 1.0).to(D_label)  # [B]
        return D_none + per_image(scale) * (D_label - D_none)


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
