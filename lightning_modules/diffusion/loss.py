"""The training objective of EDM (arXiv 2206.00364, equations 2 and 8, table 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import per_image


@dataclass(frozen=True)
class EDMLoss:
    """λ(σ) ‖D(y + σn; σ) − y‖² with ln σ ~ N(P_mean, P_std²) and λ(σ) = (σ² + sigma_data²) / (σ sigma_data)²."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, normals: Tensor) -> Tensor:
        """Training noise levels, in the shape of the standard normals that they come from."""
        return torch.exp(self.P_mean + self.P_std * normals)

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ), which gives every noise level the same initial loss."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def per_pixel(
        self,
        denoiser: Callable[..., Tensor],
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared error of every pixel, `[B, C, H, W]`; the arguments are those of a call."""
        D_x = denoiser(images + per_image(sigma) * noise, sigma, class_labels, augment_labels)  # [B, C, H, W]
        return per_image(self.weight(sigma)) * (D_x - images) ** 2

    def __call__(
        self,
        denoiser: Callable[..., Tensor],
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of each image `[B]`: summed over pixels and channels; the mean over the batch is the caller's.

        Args:
            denoiser: D(x, σ, class_labels, augment_labels).
            images: Clean images in [-1, 1], `[B, C, H, W]`.
            sigma: Noise level of each, `[B]`.
            noise: Standard normal, in the shape of the images.
            class_labels: `[B, label_dim]` or None.
            augment_labels: `[B, augment_dim]` or None.
        """
        return self.per_pixel(denoiser, images, sigma, noise, class_labels, augment_labels).sum(dim=(1, 2, 3))


def drop_labels(class_labels: Tensor, uniforms: Tensor, probability: float) -> Tensor:
    """One-hot labels `[B, label_dim]`, each replaced by zeros (no label) with the given probability.

    So one network learns both denoisers of classifier-free guidance (arXiv 2207.12598). `uniforms` in [0, 1), `[B]`.
    """
    return class_labels * (uniforms >= probability).to(class_labels.dtype).unsqueeze(1)
