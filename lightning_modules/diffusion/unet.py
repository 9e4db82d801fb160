"""DDPM++ and NCSN++: the U-Nets of Song et al. (arXiv 2011.13456), as EDM has them (arXiv 2206.00364, appendix C)."""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.diffusion.layers import (
    Conv2d,
    ConvThenDownsample,
    FourierEmbedding,
    GroupNorm,
    UNetBlock,
    positional_embedding,
)


class UNet(nn.Module):
    """DDPM++; with Fourier features, a residual input pyramid and a wider filter, NCSN++.

    Args:
        img_resolution: Height and width of the images.
        img_channels: Colour channels of input and output.
        label_dim: Number of class labels; 0: unconditional.
        augment_dim: Number of augmentation labels; 0: none.
        model_channels: Base number of channels.
        channel_mult: Multiplier of the channels at each level, from the full resolution down.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: Resolutions with self-attention.
        dropout: Dropout probability within the blocks.
        fourier_features: Embed the noise level at random frequencies, with twice the channels (NCSN++).
        input_pyramid: Add the downsampled image to every level of the encoder (NCSN++).
        resample_taps: Filter of the up- and downsampling along one axis.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.13,
        fourier_features: bool = False,
        input_pyramid: bool = False,
        resample_taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.noise_channels = model_channels * (2 if fourier_features else 1)
        emb_channels = model_channels * 4
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            scale_and_shift=False,
            project_skip=True,
            taps=resample_taps,
        )

        # Embedding of the noise level and the labels.
        self.map_noise = FourierEmbedding(self.noise_channels) if fourier_features else None
        self.map_label = nn.Linear(label_dim, self.noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, self.noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(self.noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)

        # Encoder.
        self.enc = nn.ModuleDict()
        channels, pyramid_channels = model_channels, img_channels
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = Conv2d(img_channels, channels, 3)
        skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level > 0:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, resampling="down")
                if input_pyramid:
                    self.enc[f"{res}x{res}_aux_residual"] = ConvThenDownsample(
                        pyramid_channels, channels, taps=resample_taps
                    )
                    pyramid_channels = channels
                skip_channels.append(channels)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = block(channels, model_channels * mult, attention=attention)
                channels = model_channels * mult
                skip_channels.append(channels)

        # Decoder.
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, resampling="up")
            for index in range(num_blocks + 1):
                attention = index == num_blocks and res in attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = block(
                    channels + skip_channels.pop(), model_channels * mult, attention=attention
                )
                channels = model_channels * mult
        self.dec[f"{img_resolution}x{img_resolution}_aux_norm"] = GroupNorm(channels, eps=1e-6)
        self.dec[f"{img_resolution}x{img_resolution}_aux_conv"] = Conv2d(channels, img_channels, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; the last convolution of each branch starts near zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = 1.0
                if name.endswith(("conv1", "proj", "aux_conv")):
                    gain = 1e-5
                elif name.endswith("qkv"):
                    gain = math.sqrt(0.2)
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding of the noise level `[B]`, class labels `[B, label_dim]`, augmentation labels `[B, augment_dim]`."""
        if self.map_noise is not None:
            emb = self.map_noise(c_noise)
        else:
            emb = positional_embedding(c_noise, self.noise_channels, endpoint=True)  # [B, noise_channels]
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # [cos, sin] to [sin, cos]
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer0(emb))
        return F.silu(self.map_layer1(emb))  # [B, emb_channels]

    def forward(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F_x of images x `[B, C, H, W]`, in the same shape."""
        emb = self.embed(c_noise, class_labels, augment_labels)

        skips: list[Tensor] = []
        pyramid = x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                pyramid = (x + layer(pyramid)) * math.sqrt(0.5)
                x = skips[-1] = pyramid
                continue
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)

        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("aux_conv"):
                x = layer(x)
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        return x  # [B, C, H, W]
