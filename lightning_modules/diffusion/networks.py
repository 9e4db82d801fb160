"""The U-Nets F(x, c_noise, class_labels, augment_labels) by name, as EDM has them (arXiv 2206.00364, appendix C)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

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
from lightning_modules.diffusion.network_settings import NetworkSettings


class UNet(nn.Module):
    """Encoder and decoder with skip connections, conditioned on an embedding of noise level and labels.

    Args:
        settings: Channels, levels, blocks, attention and dropout.
        img_resolution: Height and width of the images.
        img_channels: Colour channels of input and output.
        label_dim: Number of class labels; 0: unconditional.
        augment_dim: Number of augmentation labels; 0: none.

    Raises:
        ValueError: The image size can't be halved as often as the settings want.
    """

    block: ClassVar[dict[str, Any]]  # arguments of `UNetBlock`
    multiply_first: ClassVar[bool]  # the first convolution has the channels of the first level, not model_channels
    attention_in_all: ClassVar[
        bool
    ]  # in the decoder too, all blocks of a resolution have attention, not the last alone
    last: ClassVar[tuple[str, str]]  # published names of the last normalisation and convolution, {0} the resolution
    fourier_features = False  # embed the noise level at random frequencies, with twice the channels
    input_pyramid = False  # add the downsampled image to every level of the encoder
    taps: Sequence[float] = (1, 1)  # filter of the up- and downsampling along one axis

    def __init__(
        self, settings: NetworkSettings, img_resolution: int, img_channels: int, label_dim: int, augment_dim: int
    ) -> None:
        super().__init__()
        check_size(settings, img_resolution)
        self.label_dim = label_dim
        self.noise_channels = settings.model_channels * (2 if self.fourier_features else 1)
        emb_channels = settings.model_channels * 4
        self.add_embedding(label_dim, augment_dim, emb_channels)
        block: Callable[..., UNetBlock] = partial(
            UNetBlock, emb_channels=emb_channels, dropout=settings.dropout, taps=self.taps, **self.block
        )
        levels = [(img_resolution >> level, mult) for level, mult in enumerate(settings.channel_mult)]
        channels = settings.model_channels * (settings.channel_mult[0] if self.multiply_first else 1)
        self.enc = nn.ModuleDict({f"{img_resolution}x{img_resolution}_conv": Conv2d(img_channels, channels, 3)})
        skip_channels, pyramid_channels = [channels], img_channels
        for res, mult in levels:
            if res < img_resolution:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, resampling="down")
                if self.input_pyramid:
                    self.enc[f"{res}x{res}_aux_residual"] = ConvThenDownsample(pyramid_channels, channels, self.taps)
                    pyramid_channels = channels
                skip_channels.append(channels)
            for index in range(settings.num_blocks):
                in_channels, channels = channels, settings.model_channels * mult
                attention = res in settings.attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = block(in_channels, channels, attention=attention)
                skip_channels.append(channels)

        self.dec = nn.ModuleDict()
        for res, mult in reversed(levels):
            if res == levels[-1][0]:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, resampling="up")
            for index in range(settings.num_blocks + 1):
                in_channels, channels = channels + skip_channels.pop(), settings.model_channels * mult
                attention = res in settings.attn_resolutions and (self.attention_in_all or index == settings.num_blocks)
                self.dec[f"{res}x{res}_block{index}"] = block(in_channels, channels, attention=attention)
        self.last_names = [name.format(img_resolution) for name in self.last]
        last = GroupNorm(channels, self.block["eps"]), Conv2d(channels, img_channels, 3)
        for path, layer in zip(self.last_names, last, strict=True):
            parent, _, name = path.rpartition(".")
            self.get_submodule(parent).add_module(name, layer)
        self.reset_parameters()

    def add_embedding(self, label_dim: int, augment_dim: int, emb_channels: int) -> None:
        """Makes the layers of `embed`."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initial weights."""
        raise NotImplementedError

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding of the noise level `[B]`, class labels `[B, label_dim]`, augmentation labels `[B, augment_dim]`."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F_x of images x `[B, C, H, W]`, in the same shape; no labels: the network has none of the kind."""
        emb = self.embed(c_noise, class_labels, augment_labels)
        skips: list[Tensor] = []
        pyramid = x
        for layer in self.enc.values():
            if isinstance(layer, ConvThenDownsample):
                pyramid = (x + layer(pyramid)) * math.sqrt(0.5)
                x = skips[-1] = pyramid
                continue
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        norm, conv = (self.get_submodule(name) for name in self.last_names)
        return conv(F.silu(norm(x)))  # [B, C, H, W]


class DDPMpp(UNet):
    """DDPM++ (Song et al., arXiv 2011.13456)."""

    block = {"skip_scale": math.sqrt(0.5), "eps": 1e-6, "scale_and_shift": False, "project_skip": True}  # noqa: RUF012
    multiply_first, attention_in_all = False, False
    last = "dec.{0}x{0}_aux_norm", "dec.{0}x{0}_aux_conv"

    def add_embedding(self, label_dim: int, augment_dim: int, emb_channels: int) -> None:
        if self.fourier_features:
            self.map_noise = FourierEmbedding(self.noise_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, self.noise_channels)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, self.noise_channels, bias=False)
        self.map_layer0 = nn.Linear(self.noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; the last convolution of each branch starts near zero."""
        gains = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = next((gain for ending, gain in gains.items() if name.endswith(ending)), 1.0)
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        if self.fourier_features:
            emb = self.map_noise(c_noise)
        else:
            emb = positional_embedding(c_noise, self.noise_channels, endpoint=True)  # [B, noise_channels]
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # [cos, sin] to [sin, cos]
        if class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))  # [B, emb_channels]


class NCSNpp(DDPMpp):
    """NCSN++ (Song et al., arXiv 2011.13456)."""

    fourier_features, input_pyramid, taps = True, True, (1, 3, 3, 1)


class ADM(UNet):
    """ADM (Dhariwal and Nichol, arXiv 2105.05233)."""

    block = {  # noqa: RUF012
        "channels_per_head": 64,
        "skip_scale": 1.0,
        "eps": 1e-5,
        "scale_and_shift": True,
        "project_skip": False,
    }
    multiply_first, attention_in_all = True, True
    last = "out_norm", "out_conv"

    def add_embedding(self, label_dim: int, augment_dim: int, emb_channels: int) -> None:
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, self.noise_channels, bias=False)
        self.map_layer0 = nn.Linear(self.noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, emb_channels, bias=False)

    def reset_parameters(self) -> None:
        """The last convolution of each branch and the augmentation start at zero, class embeddings as N(0, 1).

        All other layers keep PyTorch's own initialisation, which is kaiming-uniform × √⅓ for weights and biases.
        """
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[0].endswith(("conv1", "proj", "out_conv", "map_augment")):
                nn.init.zeros_(parameter)
            elif name == "map_label.weight":
                nn.init.normal_(parameter)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = positional_embedding(c_noise, self.noise_channels, endpoint=False)  # [B, model_channels]
        if augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if class_labels is not None:
            emb = emb + self.map_label(class_labels)
        return F.silu(emb)  # [B, emb_channels]


ARCHITECTURES: dict[str, Callable[..., UNet]] = {"ddpmpp": DDPMpp, "ncsnpp": NCSNpp, "adm": ADM}


def check_size(settings: NetworkSettings, img_resolution: int) -> None:
    """Raises ValueError where the image size can't be halved as often as the settings want."""
    halvings = len(settings.channel_mult) - 1
    step = 2**halvings
    if img_resolution % step:
        below = img_resolution // step * step
        fitting = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(
            f"images of {img_resolution}×{img_resolution} cannot be halved {halvings} times, as the {halvings + 1} "
            f"levels of channel_mult={[*settings.channel_mult]} need: resize them to a multiple of {step} "
            f"(such as {fitting}), or use fewer levels"
        )
