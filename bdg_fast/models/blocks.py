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

    def rows(self, x: Tensor) -> Tensor:
        """``[..., C]`` to the same; statistics in float32 at least."""
        return F.layer_norm(x, self.gain.shape, self.gain.to(x.dtype), None, EPS)


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
        """``x [B, channels, H, W]``, ``time [B or 1, time_width]`` to ``[B, out, H, W]``."""
        scale, shift = self.modulation(F.silu(time)).chunk(2, dim=1)
        y = self.conv1(x)
        if len(time) == 1:  # one time for all images: part of what the norm does anyway
            gain, offset = self.norm1.weight * (scale[0] + 1), self.norm1.bias * (scale[0] + 1) + shift[0]
            y = F.group_norm(y, self.norm1.num_groups, gain, offset, EPS)
        else:
            y = self.norm1(y) * (scale[:, :, None, None] + 1) + shift[:, :, None, None]
        y = _silu(self.norm2(self.conv2(_silu(y))))
        out: Tensor = y + self.shortcut(x)
        return out


def _silu(x: Tensor) -> Tensor:
    """In place where no gradient needs what was there."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class LinearAttention(nn.Module):
    """Attention of linear cost: keys sum up the values once, queries read them (Shen 2018). Adds to its input.

    The projections of values and results act on sums over all pixels, not on every pixel, which is the same:
    ``softmax(K)^T (X W_v^T) = (softmax(K)^T X) W_v^T``, and likewise for ``W_out``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = HEADS * HEAD_WIDTH
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        batch, channels, height, width = x.shape
        hidden = HEADS * HEAD_WIDTH
        rows = self.norm.rows(_rows(x))  # [B, n, C]
        weight = self.qkv.weight.view(3 * hidden, channels)
        q = F.linear(rows, weight[:hidden])  # [B, n, heads d]
        k = weight[hidden : 2 * hidden] @ rows.mT  # [B, heads d, n]: each softmax runs along memory
        with torch.autocast(x.device.type, enabled=False):  # what is divided by n needs float32
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            value = weight[2 * hidden :].to(wide).view(HEADS, HEAD_WIDTH, channels)
            out = self.out.weight.to(wide).view(channels, HEADS, HEAD_WIDTH).permute(1, 2, 0)  # [heads, e, C]
            q = q.to(wide).view(batch, height * width, HEADS, HEAD_WIDTH).softmax(dim=3).flatten(2)
            summed = k.to(wide).softmax(dim=2) @ rows.to(wide)  # [B, heads d, C]
            read = summed.view(batch, HEADS, HEAD_WIDTH, channels) @ value.mT @ out  # [B, heads, d, C]
            found = q @ (read.flatten(1, 2) * (HEAD_WIDTH**-0.5 / (height * width)))  # [B, n, C]
            found = self.out_norm.rows(found if self.out.bias is None else found + self.out.bias)
        return x + _image(found, x)


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
        rows = self.norm.rows(_rows(x))
        qkv = F.linear(rows, self.qkv.weight.flatten(1)).view(*rows.shape[:2], 3, HEADS, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, n, d]
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = x + _image(F.linear(read, self.out.weight.flatten(1), self.out.bias), x)
        return out


def _rows(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[B, H W, C]``: the same memory if ``x`` is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """``[B, H W, C]`` as ``[B, C, H, W]`` of the type of ``like``."""
    batch, channels, height, width = like.shape
    return rows.to(like.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)


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
