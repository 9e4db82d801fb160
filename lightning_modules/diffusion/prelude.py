"""What training images go through before the network: augmentation, noise, labels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import augment
from lightning_modules.diffusion.encoders import Encoder
from lightning_modules.diffusion.objective import EDMObjective, drop_labels
from storage.philox import Stream, normal, uniform


class Prepared(NamedTuple):
    """What `EDMObjective` is called with, beside the denoiser."""

    images: Tensor  # [B, C, H, W] in [-1, 1]
    sigma: Tensor  # [B]
    noise: Tensor  # [B, C, H, W]
    labels: Tensor | None  # [B, label_dim], one-hot or zeros
    augment_labels: Tensor | None  # [B, 9]


class Prelude(nn.Module):
    """Prepares a batch; all that is random follows from the seed and the images' positions.

    It has no weights, and is a module to be compiled in place: its hundreds of small operations become a few kernels.

    Args:
        encoder: of the denoiser.
        objective: says how noise levels are distributed.
        img_resolution: height and width of the images.
        label_dim: number of labels; 0: none.
        label_dropout: share of labels that are hidden.
        augment_probability: of each transform; 0: none.
        seed: of all that is random.
    """

    wavelet: Tensor

    def __init__(
        self,
        encoder: Encoder,
        objective: EDMObjective,
        img_resolution: int,
        label_dim: int,
        label_dropout: float,
        augment_probability: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder, self.objective, self.img_resolution = encoder, objective, img_resolution
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.augment_probability, self.seed = augment_probability, seed
        self.register_buffer("wavelet", torch.tensor(augment.SYM6), persistent=False)

    def forward(self, images: Tensor, labels: Tensor, positions: Tensor) -> Prepared:
        """Of uint8 images `[B, C, H, W]`, label indices `[B]` and positions in the stream `[B]`."""
        seed, augment_labels = self.seed, None
        images = self.encoder.encode(images)
        if self.augment_probability:
            transforms = augment.draw_parameters(seed, positions, self.augment_probability, self.img_resolution)
            images, augment_labels = augment.apply(images, transforms, wavelet=self.wavelet)
        sigma = self.objective.sigma(normal(seed, Stream.SIGMA, positions, ()))
        noise = normal(seed, Stream.NOISE, positions, images.shape[1:])
        if not self.label_dim:
            return Prepared(images, sigma, noise, None, augment_labels)
        classes = torch.arange(self.label_dim, device=images.device)
        one_hot = (labels.unsqueeze(1) == classes).to(images.dtype)
        draws = uniform(seed, Stream.LABEL_DROPOUT, positions, ())
        return Prepared(images, sigma, noise, drop_labels(one_hot, draws, self.label_dropout), augment_labels)
