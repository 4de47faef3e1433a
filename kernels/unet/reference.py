"""The UNet's parts in plain PyTorch, of float32 or float64: the specification. Images are ``[B, H, W, C]``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import EPS, HEAD_WIDTH, HEADS, Affine, ConvOutput


class Buffers:
    """Where images come from; here PyTorch's allocator does all of it."""

    held = 0
    """Bytes that are kept for later calls."""

    def give(self, *images: Tensor) -> None:
        """Images that are not needed any more."""

    def clear(self) -> None:
        """Free all that is not in use."""


class Conv3x3:
    """3 x 3 convolution of padding 1."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight [out, in, 3, 3]``."""
        self.weight, self.bias = weight, bias

    def __call__(
        self,
        buffers: Buffers,
        first: Tensor,
        second: Tensor | None = None,
        *,
        affine: Affine | None = None,
        up: bool = False,
        moments: bool = True,
    ) -> ConvOutput:
        """Of ``first``, and ``second`` beside it.

        Args:
            buffers: where the result comes from.
            first, second: images ``[B, H, W, C]``.
            affine: take ``silu(gain * first + offset)`` instead of ``first``, without ``second``.
            up: take ``first`` in twice its size, by nearest neighbours, without ``second``.
            moments: the result is to be normalized.
        """
        x = first
        if affine is not None:
            x = F.silu(x * affine.gain[:, None, None] + affine.offset[:, None, None])
        if up:
            x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
        if second is not None:
            x = torch.cat((x, second), 3)
        return ConvOutput(F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=1).permute(0, 2, 3, 1))


class DirectConv:
    """Convolution of any size and stride."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        """``weight [out, in, k, k]``."""
        self.weight, self.bias, self.stride, self.padding = weight, bias, stride, padding

    def __call__(self, buffers: Buffers, x: Tensor) -> Tensor:
        """``[B, H, W, in]`` to ``[B, h, w, out]``."""
        x = x.permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding).permute(0, 2, 3, 1)


def group_norm(made: ConvOutput, groups: int, gain: Tensor, offset: Tensor) -> Affine:
    """Group norm as an affine map, by the moments of an image; ``gain``, ``offset [B or 1, C]``."""
    each = made.image.shape[3] // groups
    variance, mean = torch.var_mean(made.image.unflatten(3, (groups, each)), dim=(1, 2, 4), correction=0)
    scale = (variance + EPS).rsqrt().repeat_interleave(each, 1) * gain
    return Affine(scale, offset - mean.repeat_interleave(each, 1) * scale)


class Epilogue:
    """The end of a residual block: ``silu(gain * made + offset) + shortcut(first and second)``."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """``weight [out, in]`` of the shortcut, or None: it is the identity."""
        self.weight, self.bias = weight, bias

    def __call__(
        self, buffers: Buffers, made: Tensor, affine: Affine, first: Tensor, second: Tensor | None = None
    ) -> Tensor:
        """Takes ``made``: it is given back, or written over and returned."""
        x = first if second is None else torch.cat((first, second), 3)
        if self.weight is not None:
            x = F.linear(x, self.weight, self.bias)
        return F.silu(made * affine.gain[:, None, None] + affine.offset[:, None, None]) + x


class LinearAttention:
    """Attention of linear cost (Shen 2018), added to its input, as `bdg_fast.models.blocks.LinearAttention`."""

    def __init__(self, gain: Tensor, qkv: Tensor, out: Tensor, bias: Tensor | None, gain_out: Tensor) -> None:
        """``gain``, ``gain_out [C]`` of the norms before and after; ``qkv [3 * 128, C]``, ``out [C, 128]``."""
        self.gain, self.qkv, self.out, self.bias, self.gain_out = gain, qkv, out, bias, gain_out

    def __call__(self, buffers: Buffers, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same; may be written over ``x``."""
        batch, height, width, channels = x.shape
        rows = F.layer_norm(x, (channels,), self.gain, None, EPS).flatten(1, 2)
        split = (batch, height * width, HEADS, HEAD_WIDTH)
        q, k, v = (part.view(split) for part in F.linear(rows, self.qkv).chunk(3, 2))
        context = torch.einsum("bnhd,bnhe->bhde", k.softmax(1), v / (height * width))
        read = torch.einsum("bnhd,bhde->bnhe", q.softmax(3) * HEAD_WIDTH**-0.5, context).flatten(2)
        found = F.layer_norm(F.linear(read, self.out, self.bias), (channels,), self.gain_out, None, EPS)
        return x + found.view(x.shape)
