"""The specification: one plain ``bincount`` per offset, on any device PyTorch runs on.

v     = 257 u (uint8),  u (uint16),  rint(clamp((x - lo) s, 0, 65535)) (floating, in float32)
y     = (19595 R + 38470 G + 7471 B + 32768) >> 16,  or v for one channel
level = (y levels) >> 16,  or #{t : r >= t} of the residual r = 4 y - up - down - left - right
M_d(i, j) = #{p : p and p + d valid, level(p) = i, level(p + d) = j}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import LUMA, Request, float_scale


def gray16(images: Tensor, low: float, high: float) -> Tensor:
    """16-bit luma int64 ``[B, H, W]`` of images ``[B, 1 or 3, H, W]``; NaN counts as ``low``."""
    if images.dtype == torch.uint8:
        v = images.to(torch.int64) * 257
    elif images.dtype == torch.uint16:
        v = images.to(torch.int64)
    else:
        lo, scale = float_scale(low, high)
        x = (images.to(torch.float32) - lo) * scale
        v = torch.where(x.isnan(), 0.0, x).clamp(0, 65535).round().to(torch.int64)
    if v.shape[1] == 1:
        return v[:, 0]
    red, green, blue = v.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 32768) >> 16


def laplacian(y: Tensor) -> Tensor:
    """High-pass residual of ``[B, H, W]`` where all four neighbours exist: ``[B, H - 2, W - 2]``."""
    if min(y.shape[1:]) < 3:
        return y[:, :0, :0]
    centre = y[:, 1:-1, 1:-1]
    return 4 * centre - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]


def quantize(images: Tensor, levels: int, low: float, high: float, source: str, thresholds: Sequence[int]) -> Tensor:
    """Gray levels int64 ``[B, H', W']``; ``H' = H`` for ``source="gray"``, ``H - 2`` for ``"laplacian"``."""
    y = gray16(images, low, high)
    if source == "laplacian":
        y = laplacian(y)
    if not thresholds:
        return (y * levels) >> 16
    # `y >= t` as `y > t - 1`: bucketize counts the boundaries strictly below
    return torch.bucketize(y.contiguous(), torch.tensor(thresholds, device=y.device) - 1)


def valid_pixels(mask: Tensor, source: str) -> Tensor:
    """Mask ``[B, H', W']`` of the level image: a residual needs its four neighbours inside the mask too."""
    if source == "gray":
        return mask
    if min(mask.shape[1:]) < 3:
        return mask[:, :0, :0]
    across = mask[:, 1:-1, :-2] & mask[:, 1:-1, 1:-1] & mask[:, 1:-1, 2:]
    return across & mask[:, :-2, 1:-1] & mask[:, 2:, 1:-1]


def shifted(image: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """The pixels ``p`` and ``p + d`` of ``[B, H, W]`` for all ``p`` with both inside, each ``[B, h, w]``."""
    height, width = image.shape[1:]
    h, w = max(height - abs(dy), 0), max(width - abs(dx), 0)
    y0, x0 = max(-dy, 0), max(-dx, 0)
    here = image[:, y0 : y0 + h, x0 : x0 + w]
    there = image[:, y0 + dy : y0 + dy + h, x0 + dx : x0 + dx + w] if h * w else here
    return here, there


def count_pairs(level: Tensor, valid: Tensor | None, levels: int, dy: int, dx: int) -> Tensor:
    """``M_d`` as int64 ``[B, levels, levels]`` for one offset."""
    batch = level.shape[0]
    here, there = shifted(level, dy, dx)
    image = torch.arange(batch, device=level.device).view(-1, 1, 1)
    codes = (image * levels + here) * levels + there
    if valid is not None:
        valid_here, valid_there = shifted(valid, dy, dx)
        codes = codes[valid_here & valid_there]
    counts = torch.bincount(codes.reshape(-1), minlength=batch * levels * levels)
    return counts.view(batch, levels, levels)


def glcm(
    images: Tensor,
    mask: Tensor | None,
    request: Request,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: Sequence[int],
    normalize: bool,
) -> Tensor:
    """See :func:`bdg_fast.kernels.mas_glcm.ops.glcm`, whose arguments these are."""
    level = quantize(images, levels, low, high, source, thresholds)
    valid = None if mask is None else valid_pixels(mask, source)
    # MPS has no float64; there the mean is taken in float32
    real = torch.float32 if images.device.type == "mps" else torch.float64
    shape = (images.shape[0], request.slot_count, levels, levels)
    out = torch.zeros(shape, dtype=real if normalize else torch.int64, device=images.device)
    for dy, dx, slot in request.entries:
        counts = count_pairs(level, valid, levels, dy, dx)
        if normalize:
            pairs = counts.sum((1, 2), keepdim=True).clamp(min=1)
            out[:, slot] += counts.to(real) / (pairs.to(real) * request.slots.count(slot))
        else:
            out[:, slot] += counts
    return out.to(torch.float32) if normalize else out
