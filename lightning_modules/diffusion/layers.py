"""The parts that DDPM++, NCSN++ and ADM are made of.

What holds weights (`norm0`, `conv0`, `affine`, …, `resample_filter`) is named as in the published EDM networks, whose
weights load by name. All works in both memory formats and under `torch.compile`: no branch depends on data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["up", "down"] | None


class GroupNorm(nn.GroupNorm):
    """Group normalisation with min(32, channels/4) groups, in the dtype of its input.

    Autocast would widen it to float32; the kernels already sum in float32, so that would only cost memory traffic.
    """

    def __init__(self, num_channels: int, eps: float) -> None:
        num_groups = max(1, min(32, num_channels // 4))
        if num_channels % num_groups:
            raise ValueError(
                f"{num_channels} channels do not divide into {num_groups} normalisation groups: "
                "make model_channels times each of channel_mult a multiple of 32, or at most 128 and a multiple of 4"
            )
        super().__init__(num_groups, num_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def resampling_filter(taps: Sequence[float]) -> Tensor:
    """The separable low-pass filter `[1, 1, K, K]`, sum 1, with the given taps along each axis."""
    line = torch.tensor(taps, dtype=torch.float32)
    plane = torch.outer(line, line)
    return (plane / plane.sum()).reshape(1, 1, len(taps), len(taps))


def resample(x: Tensor, resampling: Resampling, resample_filter: Tensor, padding: int | None = None) -> Tensor:
    """Twice or half the size of `[B, C, H, W]`.

    Up: zeros between the pixels, then the filter. Down: the filter, then every second pixel.
    """
    size, channels = resample_filter.shape[-1], x.shape[1]
    if size == 2:  # the box filter [1, 1] repeats or averages pixels
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if resampling == "up" else F.avg_pool2d(x, 2)
    padding = (size - 1) // 2 if padding is None else padding
    convolve, gain = (F.conv_transpose2d, 4) if resampling == "up" else (F.conv2d, 1)  # of 4 pixels, 3 are zeros
    each_channel = (gain * resample_filter).to(x.dtype).expand(channels, -1, -1, -1)
    return convolve(x, each_channel, stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """Up- or downsampling by 2 without weights."""

    resample_filter: Tensor

    def __init__(self, resampling: Resampling, taps: Sequence[float]) -> None:
        super().__init__()
        self.resampling = resampling
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.resampling, self.resample_filter)


class ResampleThenConv(nn.Conv2d):
    """Up- or downsampling by 2, then a convolution that keeps the size."""

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, resampling: Resampling, taps: Sequence[float]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.resampling = resampling
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(resample(x, self.resampling, self.resample_filter))


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    resampling: Resampling = None,
    taps: Sequence[float] = (1, 1),
) -> nn.Conv2d:
    """A convolution that keeps the size, after up- or downsampling by 2 where `resampling` says so."""
    if resampling:
        return ResampleThenConv(in_channels, out_channels, kernel_size, resampling, taps)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class ConvThenDownsample(nn.Conv2d):
    """3×3 convolution, then downsampling by 2; the filter sees the convolution beyond the border, not zeros."""

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3)
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        margin = (self.resample_filter.shape[-1] - 1) // 2
        x = F.conv2d(x, self.weight, self.bias, padding=1 + margin)
        return resample(x, "down", self.resample_filter, padding=0)


def geometric_angles(c_noise: Tensor, count: int, endpoint: bool) -> Tensor:
    """c_noise `[B]` over `count` wavelengths from 1 up to 10⁴ in equal ratios, float32 `[B, count]`.

    Their sines and cosines are the positional embedding of "Attention is all you need" (arXiv 1706.03762, section 3.5).
    With `endpoint` the last wavelength is 10⁴ itself; else it would be the next one.
    """
    powers = torch.linspace(0, 1 if endpoint else 1 - 1 / count, count, device=c_noise.device)
    return c_noise.float().unsqueeze(1) / 10_000**powers


class FourierFeatures(nn.Module):
    """c_noise `[B]` times 2π and fixed random frequencies, float32 `[B, count]` (arXiv 2006.10739)."""

    freqs: Tensor

    def __init__(self, count: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(count))

    def forward(self, c_noise: Tensor) -> Tensor:
        return math.tau * c_noise.float().unsqueeze(1) * self.freqs.float()


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of an architecture have in common.

    Attributes:
        eps: Of the normalisations.
        sum_scale: Factor on each sum of a branch and what bypasses it.
        scale_and_shift: The condition scales and shifts the second normalisation's output (ADM); else it is added to
            its input (DDPM++).
        project_skip: Skip connections that resample have a 1×1 convolution even where the channels stay.
        head_channels: Channels of one attention head; None: a single head.
        taps: Resampling filter along one axis.
    """

    eps: float
    sum_scale: float
    scale_and_shift: bool
    project_skip: bool
    head_channels: int | None = None
    taps: tuple[float, ...] = (1, 1)


class ResidualBlock(nn.Module):
    """Residual block that is told a condition, with optional resampling and self-attention.

    Args:
        in_channels, out_channels: Channels before and after.
        condition_dim: Length of the embedding of noise level and labels.
        style: What it has in common with the other blocks of its network.
        dropout: Probability of dropping an element between the two convolutions.
        resampling: The resolution doubles ("up"), halves ("down") or stays (None).
        attention: Self-attention after the residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_dim: int,
        style: BlockStyle,
        dropout: float,
        resampling: Resampling = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.sum_scale, self.scale_and_shift = dropout, style.sum_scale, style.scale_and_shift
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = convolution(in_channels, out_channels, 3, resampling, style.taps)
        self.affine = nn.Linear(condition_dim, 2 * out_channels if style.scale_and_shift else out_channels)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = convolution(out_channels, out_channels, 3)

        self.skip: nn.Module | None = None
        if in_channels != out_channels or (resampling and style.project_skip):
            self.skip = convolution(in_channels, out_channels, 1, resampling, style.taps)
        elif resampling:
            self.skip = Resample(resampling, style.taps)

        self.num_heads = 0
        if attention:
            self.num_heads = max(1, out_channels // (style.head_channels or out_channels))
            if out_channels % self.num_heads:
                raise ValueError(f"{out_channels} channels do not divide into {self.num_heads} attention heads")
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = convolution(out_channels, 3 * out_channels, 1)
            self.proj = convolution(out_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x `[B, in_channels, H, W]`, condition `[B, condition_dim]`: `[B, out_channels, H', W']`."""
        branch = self.conv0(F.silu(self.norm0(x)))  # [B, out_channels, H', W']
        told = self.affine(condition)[..., None, None].to(branch.dtype)
        if self.scale_and_shift:
            scale, shift = told.chunk(2, dim=1)  # [B, out_channels, 1, 1] each
            branch = self.norm1(branch) * (1 + scale) + shift
        else:
            branch = self.norm1(branch + told)
        branch = self.conv1(F.dropout(F.silu(branch), self.dropout, self.training))
        x = (branch + (x if self.skip is None else self.skip(x))) * self.sum_scale
        return (x + self.attend(x)) * self.sum_scale if self.num_heads else x

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the pixels; q, k and v are interleaved channel by channel within each head."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm2(x)).permute(0, 2, 3, 1)  # [B, H, W, 3C]
        qkv = qkv.reshape(B, H * W, self.num_heads, C // self.num_heads, 3)
        q, k, v = qkv.permute(4, 0, 2, 1, 3).contiguous().unbind(0)  # [B, heads, HW, C/heads] each
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2))
