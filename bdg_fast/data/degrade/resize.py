"""Bicubic resampling with antialiasing as matrix products, so that every sample has a size of its own.

A row of a resampler holds Keys' kernel (a = -1/2) around the pixel's position, stretched by the factor where that is
above 1, cut off at the edges and scaled to sum 1: Pillow's and PyTorch's ``antialias=True``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resample(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Down to ``1 / level`` of height and width, at least one pixel, and up again."""
    height, width = images.shape[2:]
    return resized(images, down_up(height, level), down_up(width, level))


def down_up(size: int, factor: Tensor) -> Tensor:
    """One axis of :func:`resample`, ``[B, size, size]``."""
    full = torch.full_like(factor, size)
    small = (full / factor).round().clamp_min(1)
    return resampler(small, full, size, size) @ resampler(full, small, size, size)


def resized(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[B, C, H, W]`` by resamplers ``[B, h, H]`` and ``[B, w, W]``: ``[B, C, h, w]``."""
    return rows[:, None] @ images @ columns[:, None].mT


METHODS = ("area", "bilinear", "bicubic")
"""What samples may be resized by, each by its own."""


def resampler(
    before: Tensor, after: Tensor, before_most: int, after_most: int, method: str | Tensor = "antialiased"
) -> Tensor:
    """Rows of weights.

    Args:
        before, after: sizes, whole numbers float32 ``[B]``.
        before_most, after_most: sizes of the matrices, at least those.
        method: ``"antialiased"``, ``"area"`` (means of the pixels that one covers), or ``"bilinear"`` and
            ``"bicubic"`` (a = -3/4) of the nearest two and four pixels, which alias; or numbers of :data:`METHODS`,
            int64 ``[B]``.

    Returns:
        ``[B, after_most, before_most]``, zero beyond the sample's own sizes.
    """
    before, after = before.view(-1, 1, 1), after.view(-1, 1, 1)
    i = torch.arange(after_most, dtype=torch.float32, device=before.device).view(1, -1, 1)
    j = torch.arange(before_most, dtype=torch.float32, device=before.device).view(1, 1, -1)
    factor = before / after
    distance = j + 0.5 - (i + 0.5) * factor
    if isinstance(method, str):
        weight = _weight(method, distance, factor)
    else:
        area, bilinear, bicubic = (_weight(name, distance, factor) for name in METHODS)
        chosen = method.view(-1, 1, 1)
        weight = torch.where(chosen == 0, area, torch.where(chosen == 1, bilinear, bicubic))
    weight = weight * (j < before)
    total = weight.sum(2, keepdim=True)
    return torch.where(i < after, weight / torch.where(total == 0, 1.0, total), 0.0)


def _weight(method: str, distance: Tensor, factor: Tensor) -> Tensor:
    if method == "antialiased":
        return _keys(distance / factor.clamp_min(1), -0.5)
    if method == "area":  # the length that pixels of both sizes have in common
        return ((1 + factor) / 2 - distance.abs()).clamp_min(0).minimum(factor.clamp_max(1))
    if method == "bilinear":
        return (1 - distance.abs()).clamp_min(0)
    return _keys(distance, -0.75)


def _keys(x: Tensor, a: float) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
