"""ADM: the U-Net of Dhariwal and Nichol (arXiv 2105.05233), as EDM has it (arXiv 2206.00364, appendix C)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.diffusion.layers import Conv2d, GroupNorm, UNetBlock, positional_embedding


class ADM(nn.Module):
    """ADM. The arguments are those of `unet.UNet`; the default values those of class-conditional ImageNet at 64×64."""

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        emb_channels = model_channels * 4
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            channels_per_head=64,
            dropout=dropout,
            skip_scale=1.0,
            eps=1e-5,
            scale_and_shift=True,
            project_skip=False,
        )

        # Embedding of the noise level and the labels.
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None

        # Encoder.
        self.enc = nn.ModuleDict()
        channels = model_channels * channel_mult[0]
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = Conv2d(img_channels, channels, 3)
        skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level > 0:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, resampling="down")
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
                self.dec[f"{res}x{res}_block{index}"] = block(
                    channels + skip_channels.pop(), model_channels * mult, attention=res in attn_resolutions
                )
                channels = model_channels * mult
        self.out_norm = GroupNorm(channels, eps=1e-5)
        self.out_conv = Conv2d(channels, img_channels, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last convolution of each branch and the augmentation start at zero, class embeddings as N(0, 1).

        All other layers keep PyTorch's own initialisation, which is kaiming-uniform × √⅓ for weights and biases.
        """
        for name, module in self.named_modules():
            if name.endswith(("conv1", "proj", "out_conv", "map_augment")):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding of the noise level `[B]`, class labels `[B, label_dim]`, augmentation labels `[B, augment_dim]`."""
        emb = positional_embedding(c_noise, self.model_channels, endpoint=False)  # [B, model_channels]
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer0(emb))
        emb = self.map_layer1(emb)
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels)
        return F.silu(emb)  # [B, emb_channels]

    def forward(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F_x of images x `[B, C, H, W]`, in the same shape."""
        emb = self.embed(c_noise, class_labels, augment_labels)

        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)

        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))  # [B, C, H, W]
