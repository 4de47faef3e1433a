"""Compiled CPU backend of the UNet's parts: packs weights, plans work, calls the loops. ``[B, H, W, C]``, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import cpu_attention, cpu_conv
from .cpu_memory import Buffers, fresh, kept
from .cpu_products import ARGUMENTS, ROOM
from .cpu_simd import TILE
from .cpu_threads import run
from .cpu_winograd import FIELD, filter_matrix
from .spec import CHANNELS, HEAD_WIDTH, HEADS, HIDDEN, Affine, ConvOutput

BLOCK = (4, 8)
"""Tiles of 4 x 4 pixels a Winograd item: their transforms stay in the second-level cache up to 64 channels."""
DIRECT_BLOCK = (4, 32)
"""Pixels of an item of a direct convolution."""
CHUNK = 1536
"""Pixels an item of attention and of a block's end, a multiple of `cpu_attention.BLOCK`."""


def _check_channels(weight: Tensor) -> None:
    for name, channels in (("out", weight.shape[0]), ("in", weight.shape[1])):
        if channels % CHANNELS:
            raise ValueError(f"weight must have a multiple of {CHANNELS} channels {name}, got {channels}")


def _check_channels_are(wanted: int, channels: int) -> None:
    if channels != wanted:
        raise ValueError(f"images must have {wanted} channels, got {channels}")


def _check_even(name: str, pixels: int) -> None:
    if pixels % 2:
        raise ValueError(f"{name} must be even, got {pixels}")


def _address(tensor: Tensor | None) -> int:
    """Of what a loop reads or writes; 0 for nothing."""
    if tensor is None:
        return 0
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        kind = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(f"images and weights must be contiguous float32 on the CPU, got {tensor.dtype}{kind}")
    return tensor.data_ptr()


def _bias(bias: Tensor | None, channels: int) -> Tensor:
    """A copy, or zeros."""
    return kept(torch.zeros(channels, device="cpu") if bias is None else bias)


def _launch(function: Any, buffers: Buffers, items: int, scratch: int, arguments: list[int]) -> None:
    """``scratch``: floats a thread."""
    threads = max(1, min(torch.get_num_threads(), items))
    each = -(-scratch * 4 // 4096) * 4096 + 64
    room = buffers.scratch(threads * each // 4)
    numbers = np.zeros(ARGUMENTS + 2, np.int64)
    counters = [numbers.ctypes.data + 8 * n for n in (ARGUMENTS, ARGUMENTS + 1)]
    numbers[: 5 + len(arguments)] = [*counters, room.data_ptr(), each, items, *arguments]
    run(function, numbers, threads)


def _packed(weight: Tensor) -> Tensor:
    """``[..., k, n]`` as ``[n / 16, ..., k, 16]``."""
    *more, n = weight.shape
    return weight.reshape(*more, n // TILE, TILE).movedim(-2, 0).contiguous()


class Conv3x3:
    """3 x 3 convolution of padding 1 by Winograd's F(4 x 4, 3 x 3)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight [out, in, 3, 3]``, multiples of 16."""
        _check_channels(weight)
        self.out, self.channels = weight.shape[:2]
        g = torch.from_numpy(filter_matrix())
        planes = torch.kron(g, g) @ weight.double().flatten(2).flatten(0, 1).T  # [36, out in], by blocks of g w g^T
        split = planes.float().view(FIELD**2, self.out // TILE, TILE, -1)
        self.weight = kept(split.transpose(2, 3))  # [36, out / 16, in, 16]
        self.bias = _bias(bias, self.out)

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
        """Of ``first``, and ``second`` beside it; ``affine``: of ``silu(gain * first + offset)``; ``up``: of ``first``
        in twice its size, by nearest neighbours."""
        batch, height, width, channels = first.shape
        if up:
            height, width = 2 * height, 2 * width
        more = 0 if second is None else second.shape[3]
        out = buffers.take(batch, height, width, self.out)
        rows, columns = BLOCK
        tiles_down, tiles_across = -(-height // 4), -(-width // 4)
        rows, columns = min(rows, tiles_down), min(columns, tiles_across)
        down, across = -(-tiles_down // rows), -(-tiles_across // columns)
        blocks, parts = down * across, 1
        while batch * blocks * parts < 2 * torch.get_num_threads() and self.out % (2 * parts * TILE) == 0 and parts < 4:
            parts *= 2
        statistics = fresh(batch * blocks * 2 * self.out).view(batch, blocks, 2, self.out) if moments else None
        every = channels + more
        _check_channels_are(self.channels, every)
        tall = np.minimum(4 * rows, height - 4 * rows * np.arange(down))
        wide = np.minimum(4 * columns, width - 4 * columns * np.arange(across))
        most = rows * columns
        scratch = (4 * rows + 2) * (4 * columns + 2) * every + 16 * TILE
        share = -(-self.out // (parts * TILE)) * TILE
        scratch += FIELD**2 * ((most + ROOM) * (every + share) + TILE) + (most + ROOM) * TILE
        gain, offset = (None, None) if affine is None else affine
        _launch(
            cpu_conv.winograd, buffers, batch * blocks * parts, scratch,
            [
                _address(first), channels, _address(second), more, _address(gain), _address(offset), int(up),
                height, width, rows, columns, parts,
                _address(self.weight), _address(self.bias), _address(out), self.out, _address(statistics),
            ],
        )  # fmt: skip
        return ConvOutput(out, statistics, np.multiply.outer(tall, wide).ravel().astype(np.float64))


class DirectConv:
    """Convolution of any size and stride."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        """``weight [out, in, k, k]``; ``out`` a multiple of 16, and with padding ``in`` too."""
        _check_channels(weight if padding else weight[:, :0])
        self.out, self.channels, self.size, _ = weight.shape
        self.stride, self.padding = stride, padding
        self.weight = _packed(weight.float().permute(2, 3, 1, 0).flatten(1, 2))  # [ky, kx in, out]
        self.bias = _bias(bias, self.out)

    def __call__(self, buffers: Buffers, x: Tensor) -> Tensor:
        """``[B, H, W, in]`` to ``[B, h, w, out]``; ``w`` must be even."""
        batch, height, width, channels = x.shape
        high, wide = ((n + 2 * self.padding - self.size) // self.stride + 1 for n in (height, width))
        _check_channels_are(self.channels, channels)
        _check_even("width of the result", wide)
        out = buffers.take(batch, high, wide, self.out)
        rows, columns = DIRECT_BLOCK
        items = batch * -(-high // rows) * -(-wide // columns)
        field = ((rows - 1) * self.stride + self.size) * ((columns - 1) * self.stride + self.size) * channels
        _launch(
            cpu_conv.direct, buffers, items, field if self.padding else 0,
            [
                _address(x), channels, height, width, self.size, self.stride, self.padding, high, wide, rows, columns,
                _address(self.weight), _address(self.bias), _address(out), self.out,
            ],
        )  # fmt: skip
        return out


def group_norm(made: ConvOutput, groups: int, gain: Tensor, offset: Tensor) -> Affine:
    """Group norm as an affine map; ``gain``, ``offset [B or 1, C]``."""
    batch, channels = len(made.image), made.image.shape[3]
    result = Affine(*(fresh(batch * channels).view(batch, channels) for _ in range(2)))
    cpu_conv.group_norm_affine(
        made.moments.numpy(), made.counts, groups, gain.numpy(), offset.numpy(), *(part.numpy() for part in result)
    )
    return result


class Epilogue:
    """The end of a residual block: ``silu(gain * made + offset) + shortcut(first and second)``."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """``weight [out, in]`` of the shortcut, or None: it is the identity."""
        if weight is not None:
            _check_channels(weight)
        self.weight = self.bias = None
        self.channels = 0 if weight is None else weight.shape[1]
        if weight is not None:
            self.weight = _packed(weight.float().T)
            self.bias = _bias(bias, len(weight))

    def __call__(
        self, buffers: Buffers, made: Tensor, affine: Affine, first: Tensor, second: Tensor | None = None
    ) -> Tensor:
        """Takes ``made``: it is given back, or written over and returned."""
        batch, height, width, channels = made.shape
        pixels = height * width
        _check_even("pixels of an image", pixels)
        out = made if self.weight is None else buffers.take(*made.shape)
        more = 0 if second is None else second.shape[3]
        _check_channels_are(self.channels or channels, first.shape[3] + more)
        _launch(
            cpu_conv.epilogue, buffers, batch * -(-pixels // CHUNK), 0,
            [
                pixels, CHUNK, _address(made), channels, _address(affine.gain), _address(affine.offset),
                _address(first), first.shape[3], _address(second), more,
                _address(self.weight), _address(self.bias), _address(out),
            ],
        )  # fmt: skip
        if out is not made:
            buffers.give(made)
        return out


class LinearAttention:
    """Attention of linear cost, added to its input."""

    def __init__(self, gain: Tensor, qkv: Tensor, out: Tensor, bias: Tensor | None, gain_out: Tensor) -> None:
        """``gain``, ``gain_out [C]``; ``qkv [3 * 128, C]``, ``out [C, 128]``."""
        queries, keys, values = qkv.float().chunk(3)
        channels = len(out)
        self.gain, self.gain_out = kept(gain), kept(gain_out)
        self.queries, self.keys = _packed(queries.T), _packed(keys.T)
        self.values = values.reshape(HEADS, HEAD_WIDTH, channels).mT.contiguous()  # [heads, C, e]
        results = out.float().view(channels, HEADS, HEAD_WIDTH).permute(1, 2, 0)
        self.results = (results * HEAD_WIDTH**-0.5).contiguous()  # [heads, e, C]
        self.bias = _bias(bias, channels)

    def __call__(self, buffers: Buffers, x: Tensor) -> Tensor:
        """``[B, H, W, C]``, an even number of pixels; written over ``x``, and returned."""
        batch, height, width, channels = x.shape
        pixels = height * width
        _check_channels_are(len(self.gain), channels)
        _check_even("pixels of an image", pixels)
        chunks = -(-pixels // CHUNK)
        found = buffers.take(batch, chunks, 2 + channels, HIDDEN)
        scratch = cpu_attention.BLOCK * (channels + HIDDEN) + 2 * HIDDEN
        _launch(
            cpu_attention.gather, buffers, batch * chunks, scratch,
            [_address(x), channels, pixels, CHUNK, _address(self.gain), _address(self.keys), _address(found)],
        )  # fmt: skip
        top, total = found[:, :, 0], found[:, :, 1]
        share = (top - top.amax(1, keepdim=True)).exp()  # [B, chunks, 128]
        sums = found[:, :, 2:].reshape(batch, chunks, HIDDEN, channels)
        summed = (sums * share[..., None]).sum(1) / ((total * share).sum(1) * pixels)[..., None]
        buffers.give(found)
        read = (summed.view(batch, HEADS, HEAD_WIDTH, channels) @ self.values @ self.results).contiguous()
        _launch(
            cpu_attention.scatter, buffers, batch * chunks, scratch,
            [
                _address(x), channels, pixels, CHUNK, _address(self.gain), _address(self.queries),
                _address(read), _address(self.bias), _address(self.gain_out), _address(x),
            ],
        )  # fmt: skip
        return x
