"""From images to what a network denoises, and back."""

from typing import Protocol

import torch
from torch import Tensor


class Encoder(Protocol):
    """Whatever a `Denoiser` works on: pixels, or latents of an autoencoder."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images `[B, C, H, W]` to float32 of about unit scale."""

    def decode(self, x: Tensor) -> Tensor:
        """What a sampler returns to uint8 images `[B, C, H, W]`."""


class PixelEncoder:
    """The pixels themselves, scaled to [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        """pixel / 127.5 − 1."""
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """⌊127.5 x + 128⌋ within 0…255."""
        return (x * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8)
