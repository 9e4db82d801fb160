"""The network of a denoiser as a model of `diffusers`: the last part of the file that an exported folder has of it.

There, the files of the network come before this one, and the imports from this package are gone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.networks import ARCHITECTURES


class EDMUNet(ModelMixin, ConfigMixin):
    """F(x; c_noise, label), which the EDM schedulers of `diffusers` make a denoiser of.

    Args:
        network: the settings of the network.
        sample_size: height and width of the images.
        in_channels: colour channels of input and output.
        label_dim: number of clusters; 0: unconditional.
        augment_dim: number of augmentation labels, which are all zero here.
        noise_frequencies: those of NCSN++, which 16 bits would change too much; None: it has none.
    """

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        sample_size: int,
        in_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        noise_frequencies: list[float] | None = None,
    ) -> None:
        super().__init__()
        architecture = ARCHITECTURES[network["architecture"]]
        self.model = architecture(NetworkSettings(**network), sample_size, in_channels, label_dim, augment_dim)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """The network's output, in the shape of sample.

        Args:
            sample: c_in x, `[B, C, H, W]`.
            timestep: c_noise, scalar or `[B]`.
            class_labels: index of each image's cluster, int64 `[B]`; None: no label.
        """
        B, label_dim = sample.shape[0], self.config.label_dim
        c_noise = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(B)
        labels = None
        if label_dim:
            labels = sample.new_zeros(B, label_dim)
            if class_labels is not None:
                labels = F.one_hot(class_labels, label_dim).to(sample)
        augment_labels = sample.new_zeros(B, self.config.augment_dim) if self.config.augment_dim else None
        low_precision = self.dtype in (torch.float16, torch.bfloat16)
        if low_precision and self.config.noise_frequencies:
            self.model.map_noise.freqs = torch.tensor(self.config.noise_frequencies, device=sample.device)
        with torch.autocast(sample.device.type, self.dtype if low_precision else None, enabled=low_precision):
            output = self.model(sample, c_noise, labels, augment_labels).to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)
