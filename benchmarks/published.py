"""The network as the published codes (DiffUIR, RDDM) evaluate it: the peer of our forward.

Same weights, same results, their arithmetic: weights standardized at every call, layer norm of separate operations,
linear attention over projected values of every pixel, softmax attention with its whole matrix, NCHW, float32. It is
held to the recorded outputs of the official code by the tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdg_fast.models.backbone import UNetOutput, padded
from bdg_fast.models.blocks import EPS, HEAD_WIDTH, HEADS, Attention, ChannelNorm, LinearAttention, ResidualBlock
from bdg_fast.models.unet import UNet, _levels


class PublishedUNet(nn.Module):
    """Evaluates a :class:`UNet` that is not folded, with a residual head alone."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        unet = self.unet
        height, width = x_t.shape[2:]
        x = padded(torch.cat((x_t, x_lq), 1), 2 ** len(unet.encoder)).contiguous()
        embedding = unet.time(time)
        x = first = unet.stem(x)
        skips: list[Tensor] = []
        for level in _levels(unet.encoder):
            x = _block(level.block1, x, embedding)
            skips.append(x)
            x = _linear_attention(level.attention, _block(level.block2, x, embedding))
            skips.append(x)
            x = level.resampled(x)
        x = _block(unet.middle1, x, embedding)
        x = features = _block(unet.middle2, _attention(unet.middle_attention, x), embedding)
        for level in _levels(unet.decoder):
            x = _block(level.block1, torch.cat((x, skips.pop()), 1), embedding)
            x = _block(level.block2, torch.cat((x, skips.pop()), 1), embedding)
            x = level.resampled(_linear_attention(level.attention, x))
        x = _block(unet.final, torch.cat((x, first), 1), embedding)
        return UNetOutput(unet.head(x)[:, :, :height, :width], None, features)


def _standardized(weight: Tensor) -> Tensor:
    mean = weight.mean((1, 2, 3), keepdim=True)
    variance = weight.var((1, 2, 3), unbiased=False, keepdim=True)
    return (weight - mean) * (variance + EPS).rsqrt()


def _block(block: ResidualBlock, x: Tensor, time: Tensor) -> Tensor:
    scale, shift = block.modulation(F.silu(time))[:, :, None, None].chunk(2, dim=1)
    y = F.conv2d(x, _standardized(block.conv1.weight), block.conv1.bias, padding=1)
    y = F.silu(block.norm1(y) * (scale + 1) + shift)
    y = F.conv2d(y, _standardized(block.conv2.weight), block.conv2.bias, padding=1)
    out: Tensor = F.silu(block.norm2(y)) + block.shortcut(x)
    return out


def _norm(norm: ChannelNorm, x: Tensor) -> Tensor:
    variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
    mean = torch.mean(x, dim=1, keepdim=True)
    return (x - mean) * (variance + EPS).rsqrt() * norm.gain.view(1, -1, 1, 1)


def _linear_attention(attention: LinearAttention, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    qkv = attention.qkv(_norm(attention.norm, x)).chunk(3, dim=1)
    q, k, v = (part.reshape(batch, HEADS, HEAD_WIDTH, height * width) for part in qkv)
    q, k = q.softmax(dim=-2) * HEAD_WIDTH**-0.5, k.softmax(dim=-1)
    context = torch.einsum("b h d n, b h e n -> b h d e", k, v / (height * width))
    read = torch.einsum("b h d e, b h d n -> b h e n", context, q)
    found = attention.out(read.reshape(batch, HEADS * HEAD_WIDTH, height, width))
    return _norm(attention.out_norm, found) + x


def _attention(attention: Attention, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    qkv = attention.qkv(_norm(attention.norm, x)).chunk(3, dim=1)
    q, k, v = (part.reshape(batch, HEADS, HEAD_WIDTH, height * width) for part in qkv)
    weights = torch.einsum("b h d i, b h d j -> b h i j", q * HEAD_WIDTH**-0.5, k).softmax(dim=-1)
    read = torch.einsum("b h i j, b h d j -> b h i d", weights, v)
    found: Tensor = attention.out(read.transpose(2, 3).reshape(batch, HEADS * HEAD_WIDTH, height, width))
    return found + x
