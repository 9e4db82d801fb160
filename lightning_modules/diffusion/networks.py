"""The U-Nets F(x, c_noise, class_labels, augment_labels) by name, as EDM has them (arXiv 2206.00364, appendix C).

`unet_table` says which layers a network has; `UNet` builds each and runs through them in that order. The names of
layers are those of published weights.
"""

import math
from dataclasses import replace
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.diffusion.layers import (
    BlockStyle,
    ConvThenDownsample,
    FourierFeatures,
    GroupNorm,
    ResidualBlock,
    convolution,
    geometric_angles,
)
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.unet_table import Design, Layer, unet_table


class ClassEmbedding(NamedTuple):
    """How the class label enters: a linear map of it, added before (or after) two linear layers."""

    after: bool
    bias: bool


class UNet(nn.Module):
    """Encoder and decoder with skip connections, conditioned on noise level and labels.

    Args:
        settings: Channels, levels, blocks, attention and dropout.
        img_resolution: Height and width of the images.
        img_channels: Colour channels of input and output.
        label_dim: Number of class labels; 0: unconditional.
        augment_dim: Number of augmentation labels; 0: none.

    Attributes:
        table: The layers, in the order of the forward pass.

    Raises:
        ValueError: The image size can't be halved as often as the settings want.
    """

    design: ClassVar[Design]
    block_style: ClassVar[BlockStyle]
    class_embedding: ClassVar[ClassEmbedding]
    fourier_features: ClassVar[bool] = False  # embed the noise level at random frequencies, twice as many

    def __init__(
        self, settings: NetworkSettings, img_resolution: int, img_channels: int, label_dim: int, augment_dim: int
    ) -> None:
        super().__init__()
        check_size(settings, img_resolution)
        self.label_dim = label_dim
        self.num_angles = settings.model_channels if self.fourier_features else settings.model_channels // 2
        features_dim, condition_dim = 2 * self.num_angles, 4 * settings.model_channels
        if self.fourier_features:
            self.map_noise = FourierFeatures(self.num_angles)
        if label_dim:
            width = condition_dim if self.class_embedding.after else features_dim
            self.map_label = nn.Linear(label_dim, width, bias=self.class_embedding.bias)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, features_dim, bias=False)
        self.map_layer0 = nn.Linear(features_dim, condition_dim)
        self.map_layer1 = nn.Linear(condition_dim, condition_dim)

        self.table = unet_table(self.design, settings, img_resolution, img_channels)
        self.joined = frozenset(row.joins for row in self.table)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for row in self.table:
            parent, _, name = row.name.rpartition(".")
            self.get_submodule(parent).add_module(name, self.build(row, condition_dim, settings.dropout))
        self.reset_parameters()

    def build(self, row: Layer, condition_dim: int, dropout: float) -> nn.Module:
        """The layer of a row of the table."""
        channels = row.in_channels, row.out_channels
        match row.kind:
            case "convolution":
                return convolution(*channels, kernel_size=3)
            case "normalisation":
                return GroupNorm(row.in_channels, self.block_style.eps)
            case "pyramid":
                return ConvThenDownsample(*channels, self.block_style.taps)
        resampling = None if row.kind == "block" else row.kind
        return ResidualBlock(*channels, condition_dim, self.block_style, dropout, resampling, row.attention)

    def reset_parameters(self) -> None:
        """Initial weights."""
        raise NotImplementedError

    def noise_features(self, c_noise: Tensor) -> Tensor:
        """Sines and cosines of the noise level `[B]`: `[B, 2·num_angles]`."""
        raise NotImplementedError

    def class_term(self, class_labels: Tensor) -> Tensor:
        """What class labels `[B, label_dim]` add to the embedding."""
        return self.map_label(class_labels)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """What all blocks are conditioned on, `[B, 4·model_channels]`.

        Args:
            c_noise: Noise level `[B]`.
            class_labels, augment_labels: `[B, label_dim]` and `[B, augment_dim]`; None: the network has none.
        """
        before: list[Tensor] = [self.noise_features(c_noise)]
        after: list[Tensor] = []
        if class_labels is not None:
            (after if self.class_embedding.after else before).append(self.class_term(class_labels))
        if augment_labels is not None:
            before.append(self.map_augment(augment_labels))
        hidden = F.silu(self.map_layer0(reduce(torch.add, before)))
        return F.silu(reduce(torch.add, [self.map_layer1(hidden), *after]))

    def forward(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The network's output for images x `[B, C, H, W]`, in the same shape; no labels: it has none of the kind."""
        condition = self.embed(c_noise, class_labels, augment_labels)
        pyramid = x
        kept: dict[str, Tensor] = {}
        for row in self.table:
            layer = self.get_submodule(row.name)
            if row.joins is not None:
                x = torch.cat([x, kept.pop(row.joins)], dim=1)
            match row.kind:
                case "convolution":
                    x = layer(x)
                case "normalisation":
                    x = F.silu(layer(x))
                case "pyramid":
                    x = pyramid = (x + layer(pyramid)) * math.sqrt(0.5)
                case _:
                    x = layer(x, condition)
            if row.name in self.joined:
                kept[row.name] = x
        return x


class DDPMpp(UNet):
    """DDPM++ (Song et al., arXiv 2011.13456)."""

    design = Design(
        wide_input=False,
        attention_throughout=False,
        pyramid=False,
        ending=("dec.{}_aux_norm", "dec.{}_aux_conv"),
    )
    block_style = BlockStyle(eps=1e-6, sum_scale=math.sqrt(0.5), scale_and_shift=False, project_skip=True)
    class_embedding = ClassEmbedding(after=False, bias=True)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; the last convolution of each branch starts near zero."""
        gains = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = next((gain for ending, gain in gains.items() if name.endswith(ending)), 1.0)
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def noise_features(self, c_noise: Tensor) -> Tensor:
        if self.fourier_features:
            angles = self.map_noise(c_noise)
        else:
            angles = geometric_angles(c_noise, self.num_angles, endpoint=True)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def class_term(self, class_labels: Tensor) -> Tensor:
        """A one-hot label of unit variance: times √label_dim."""
        return self.map_label(class_labels * math.sqrt(self.label_dim))


class NCSNpp(DDPMpp):
    """NCSN++ (Song et al., arXiv 2011.13456)."""

    design = replace(DDPMpp.design, pyramid=True)
    block_style = replace(DDPMpp.block_style, taps=(1, 3, 3, 1))
    fourier_features = True


class ADM(UNet):
    """ADM (Dhariwal and Nichol, arXiv 2105.05233)."""

    design = Design(wide_input=True, attention_throughout=True, pyramid=False, ending=("out_norm", "out_conv"))
    block_style = BlockStyle(eps=1e-5, sum_scale=1.0, scale_and_shift=True, project_skip=False, head_channels=64)
    class_embedding = ClassEmbedding(after=True, bias=False)

    def reset_parameters(self) -> None:
        """The last convolution of each branch and the augmentation start at zero, class embeddings as N(0, 1).

        All other layers keep PyTorch's own initialisation, which is kaiming-uniform × √⅓ for weights and biases.
        """
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[0].endswith(("conv1", "proj", "out_conv", "map_augment")):
                nn.init.zeros_(parameter)
            elif name == "map_label.weight":
                nn.init.normal_(parameter)

    def noise_features(self, c_noise: Tensor) -> Tensor:
        angles = geometric_angles(c_noise, self.num_angles, endpoint=False)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


ARCHITECTURES: dict[str, type[UNet]] = {"ddpmpp": DDPMpp, "ncsnpp": NCSNpp, "adm": ADM}


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
