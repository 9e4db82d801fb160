"""From images to what a network denoises, and back."""

import torch
from torch import Tensor


class PixelEncoder:
    """The pixels themselves, scaled to [-1, 1]. Another encoder, such as to latents, is a subclass."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images `[B, C, H, W]` to float32 of about unit scale: pixel / 127.5 − 1."""
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """What a sampler returns to uint8 images `[B, C, H, W]`: ⌊127.5 x + 128⌋ within 0…255."""
        return (x * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8)
