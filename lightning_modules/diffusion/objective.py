"""What a denoiser is trained for: preconditioning, weighting and distribution of the noise levels, in one class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from storage.additions import OBJECTIVES, load_addition


@dataclass(frozen=True)
class EDMObjective:
    """EDM's objective (arXiv 2206.00364, equations 2 and 8, table 1), and the base of variants.

        D(x; σ)  = c_skip x + c_out F(c_in x; c_noise)
        loss     = λ(σ) ‖D(y + σn; σ) − y‖²  with  ln σ ~ N(P_mean, P_std²)  and  λ(σ) = (σ² + σ_data²) / (σ σ_data)²

    A variant is a subclass that overrides `sigma`, `weight` or `scalings`.

    Examples:
        >>> objective, images = EDMObjective(), torch.zeros(2, 1, 4, 4)
        >>> sigma = objective.sigma(torch.tensor([0.0, 1.0]))  # ln σ at its mean, and one standard deviation above
        >>> sigma
        tensor([0.3012, 1.0000])
        >>> loss = objective(lambda x, sigma: torch.zeros_like(x), images, sigma, torch.randn(2, 1, 4, 4))
        >>> loss.sum()  # the denoiser that knows these images
        tensor(0.)
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, normals: Tensor) -> Tensor:
        """Training noise levels, in the shape of the standard normals that they come from."""
        return torch.exp(self.P_mean + self.P_std * normals)

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ), which gives every noise level the same initial loss."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise, each in the shape of sigma."""
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        return c_skip, c_out, 1 / variance.sqrt(), sigma.log() / 4

    def denoise(self, model: Callable[..., Tensor], x: Tensor, sigma: Tensor, *labels: Tensor | None) -> Tensor:
        """D(x; σ) by the network F(x, c_noise, *labels): float32 `[B, C, H, W]` of x `[B, C, H, W]`, sigma `[B]`."""
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        output = model(per_image(c_in) * x, c_noise, *labels).to(torch.float32)  # [B, C, H, W]
        return per_image(c_skip) * x + per_image(c_out) * output

    def __call__(
        self, denoiser: Callable[..., Tensor], images: Tensor, sigma: Tensor, noise: Tensor, *labels: Tensor | None
    ) -> Tensor:
        """Weighted squared error of every pixel, `[B, C, H, W]`; an image's loss is their sum.

        Args:
            denoiser: D(x, σ, *labels).
            images: Clean images in [-1, 1], `[B, C, H, W]`.
            sigma: Noise level of each, `[B]`.
            noise: Standard normal, in the shape of the images.
            labels: Class labels `[B, label_dim]` and augmentation labels `[B, augment_dim]`, or None.
        """
        denoised = denoiser(images + per_image(sigma) * noise, sigma, *labels)  # [B, C, H, W]
        return per_image(self.weight(sigma)) * (denoised - images) ** 2


def objective_class(name: str) -> type[EDMObjective]:
    """EDM's objective, or the variant of this name that an installed package adds."""
    return EDMObjective if name == "edm" else load_addition(OBJECTIVES, name, EDMObjective)


def drop_labels(class_labels: Tensor, uniforms: Tensor, probability: float) -> Tensor:
    """One-hot labels `[B, label_dim]`, each replaced by zeros (no label) with the given probability.

    So one network learns both denoisers of classifier-free guidance (arXiv 2207.12598). `uniforms` in [0, 1), `[B]`.

    Examples:
        >>> drop_labels(torch.eye(2), uniforms=torch.tensor([0.05, 0.5]), probability=0.1)
        tensor([[0., 0.],
                [0., 1.]])
    """
    return class_labels.masked_fill(uniforms.unsqueeze(1) < probability, 0)


def per_image(values: Tensor) -> Tensor:
    """One value per image `[B]`, shaped to multiply images: `[B, 1, 1, 1]`."""
    return values.reshape(-1, 1, 1, 1)
