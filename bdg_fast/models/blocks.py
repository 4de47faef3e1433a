"""Blocks of the residual-diffusion UNet (DiffUIR, RDDM, BDG). ``B`` images, ``C`` channels, ``H x W`` pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
"""Of every normalization."""
HEADS, HEAD_WIDTH = 4, 32
"""Of both attentions, at every width."""


class StandardizedConv2d(nn.Conv2d):
    """3 x 3 convolution whose weights have mean 0 and variance 1 per output channel (Qiao 2019), ``[B, C, H, W]``."""

    def standardized(self) -> Tensor:
        """The weights that are applied; statistics in float32 at least."""
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return ((weight - mean) * (variance + EPS).rsqrt()).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out, H, W]``."""
        return F.conv2d(x, self.standardized(), self.bias, self.stride, self.padding)

    def folded(self) -> nn.Conv2d:
        """A plain convolution that computes the same, for inference."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, padding=self.padding,  # type: ignore[arg-type]
            device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.copy_(self.standardized())
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.requires_grad_(self.weight.requires_grad)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain and no offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same; statistics in float32 at least."""
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        return ((wide - mean) * (variance + EPS).rsqrt() * self.gain.view(-1, 1, 1)).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time and two linear layers: ``[B]`` to ``[B, 4 width]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, 4 * width)

    def forward(self, time: Tensor) -> Tensor:
        """``time``: float ``[B]`` in network units."""
        half = self.width // 2
        index = torch.arange(half, device=time.device, dtype=time.dtype)
        angle = time[:, None] * torch.exp(index * (-math.log(10000) / (half - 1)))
        x = torch.cat((angle.sin(), angle.cos()), 1).to(self.linear1.weight.dtype)
        out: Tensor = self.linear2(F.gelu(self.linear1(x)))
        return out


class ResidualBlock(nn.Module):
    """Two standardized convolutions with group norm and SiLU; the first is scaled and shifted by the time."""

    def __init__(self, channels: int, out: int, time_width: int, groups: int = 8) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_width, 2 * out)
        self.conv1 = StandardizedConv2d(channels, out, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out, eps=EPS)
        self.conv2 = StandardizedConv2d(out, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=EPS)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, channels, H, W]``, ``time [B, time_width]`` to ``[B, out, H, W]``."""
        scale, shift = self.modulation(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        y = self.norm1(self.conv1(x)) * (scale + 1) + shift
        y = F.silu(self.norm2(self.conv2(F.silu(y))))
        out: Tensor = y + self.shortcut(x)
        return out


class LinearAttention(nn.Module):
    """Attention of linear cost: keys sum up the values once, queries read them (Shen 2018). Adds to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = HEADS * HEAD_WIDTH
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        batch, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, HEADS, HEAD_WIDTH, height * width)
        q, k, v = (part if part.dtype == torch.float64 else part.float() for part in qkv.unbind(1))  # [B, heads, d, n]
        # the 1 / n of the values is applied to their sum, which is the same
        q = q.softmax(dim=2) * (HEAD_WIDTH**-0.5 / (height * width))
        context = k.softmax(dim=3) @ v.mT  # [B, heads, d, e]
        read = (context.mT @ q).view(batch, HEADS * HEAD_WIDTH, height, width)
        out: Tensor = x + self.out_norm(self.out(read.to(x.dtype)))
        return out


class Attention(nn.Module):
    """Full attention between all pixels. Adds to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = HEADS * HEAD_WIDTH
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        batch, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, HEADS, HEAD_WIDTH, height * width)
        q, k, v = qkv.mT.contiguous().unbind(1)  # [B, heads, n, d]; the memory-saving kernels want rows
        read = F.scaled_dot_product_attention(q, k, v).mT.reshape(batch, HEADS * HEAD_WIDTH, height, width)
        out: Tensor = x + self.out(read)
        return out


class Level(nn.Module):
    """One resolution of the encoder or decoder: two residual blocks, attention, and a convolution that resamples.

    A decoder that takes skip connections reads ``skip`` further channels before each block.
    """

    def __init__(self, channels: int, inner: int, out: int, skip: int, time_width: int, resample: str) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels + skip, inner, time_width)
        self.block2 = ResidualBlock(inner + skip, inner, time_width)
        self.attention = LinearAttention(inner)
        self.up = resample == "up"
        if resample == "down":
            self.resample = nn.Conv2d(inner, out, 4, stride=2, padding=1)
        else:
            self.resample = nn.Conv2d(inner, out, 3, padding=1)

    def resampled(self, x: Tensor) -> Tensor:
        """``[B, inner, H, W]`` to ``[B, out, h, w]``: half, double or the same size."""
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.resample(x)
        return out
