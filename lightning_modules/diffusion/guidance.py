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
    """D_guide + scale (D − D_guide), guided by a worse version of the denoiser (arXiv 2406.02507, equation 3).

    The guide is a smaller or less trained denoiser, or one that sees less of the image (`SlidingWindows`). It gets the
    same labels where it knows labels. Scale 1, and noise levels outside `interval`: no guidance.
    """

    denoiser: Callable[..., Tensor]
    guide: Callable[..., Tensor]
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Guided D(x; σ), `[B, C, H, W]`; sigma `[B]`."""
        D = self.denoiser(x, sigma, class_labels)
        sigma = torch.as_tensor(sigma, device=x.device).expand(len(x))
        guided = (self.interval[0] <= sigma) & (sigma <= self.interval[1])  # [B]
        if self.scale == 1 or not bool(guided.any()):
            return D
        unconditional_guide = getattr(self.guide, "label_dim", None) == 0
        D_guide = self.guide(x, sigma, None if unconditional_guide else class_labels)
        scale = torch.where(guided, self.scale, 1.0).to(D)  # [B]
        return D_guide + per_image(scale) * (D - D_guide)


@dataclass(frozen=True)
class ClassifierGuidance:
    """D + (scale − 1) σ² ∇ₓ log p(label | D(x; σ)), guided by a classifier of clean images (arXiv 2302.07121).

    σ² ∂D/∂x is the covariance of the clean image given x. So scale 2 gives, to first order, the mean of the clean
    images to which the classifier gives the label, as with a classifier of noisy images (arXiv 2105.05233). Scale 1,
    and noise levels outside `interval`: no guidance.
    """

    denoiser: Callable[..., Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]  # of labels [B, label_dim] for images [B, C, H, W], [B]
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Guided D(x; σ), `[B, C, H, W]`; sigma `[B]`. One evaluation and its gradient, or one where none is guided."""
        if class_labels is None:
            raise ValueError("guidance by a classifier needs class labels; this call has none")
        sigma = torch.as_tensor(sigma, device=x.device).expand(len(x))
        guided = (self.interval[0] <= sigma) & (sigma <= self.interval[1])  # [B]
        if self.scale == 1 or not bool(guided.any()):
            return self.denoiser(x, sigma, class_labels)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            D = self.denoiser(x, sigma, class_labels)
            (gradient,) = torch.autograd.grad(self.log_likelihood(D, class_labels).sum(), x)
        strength = torch.where(guided, (self.scale - 1) * sigma**2, 0.0)  # [B]
        return D.detach() + (per_image(strength) * gradient).to(D)


@dataclass(frozen=True)
class SlidingWindows:
    """The denoiser on overlapping square windows alone, averaged where they overlap: a guide without long-range sight.

    For sliding window guidance (arXiv 2411.10257, version 1), which needs no training and no labels. Windows of `size`
    pixels, a multiple of the factor by which the network downsamples, are spread evenly, at least two along each axis.
    """

    denoiser: Callable[..., Tensor]
    size: int

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D of the windows of x `[B, C, H, W]`, put together: `[B, C, H, W]`. One evaluation on all windows."""
        rows, columns = (window_starts(length, self.size) for length in x.shape[2:])
        windows = [(slice(top, top + self.size), slice(left, left + self.size)) for top in rows for left in columns]
        count = len(windows)
        labels = None if class_labels is None else class_labels.repeat(count, 1)
        sigma = torch.as_tensor(sigma, device=x.device).expand(len(x)).repeat(count)
        denoised = self.denoiser(torch.cat([x[..., row, column] for row, column in windows]), sigma, labels)
        total, covered = torch.zeros_like(x, dtype=denoised.dtype), x.new_zeros(x.shape[2:], dtype=denoised.dtype)
        for (row, column), part in zip(windows, denoised.chunk(count), strict=True):
            total[..., row, column] += part
            covered[row, column] += 1
        return total / covered


def window_starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin that cover `length` pixels, spread evenly, at least two of them."""
    count = max(2, math.ceil(length / size))
    return [round(place * (length - size) / (count - 1)) for place in range(count)]
