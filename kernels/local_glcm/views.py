"""Windows of an image, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CUT_PIXELS = 1 << 22
"""Values cut out of an image at a time."""


def grid(images: Tensor, window: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of windows."""
    return (images.shape[2] - window[0]) // stride[0] + 1, (images.shape[3] - window[1]) // stride[1] + 1


def each_window(
    images: Tensor, window: Sequence[int], stride: Sequence[int], levels: int, matrices: Callable[[Tensor], Tensor]
) -> Tensor:
    """``matrices`` (``[n, C, h, w]`` to ``[n, 1, levels, levels]``) of all windows, cut out some rows at a time."""
    rows, columns = grid(images, window, stride)
    batch, channels = images.shape[:2]
    of_batch, of_channel, of_row, of_column = images.stride()
    out = torch.empty((batch, rows, columns, levels, levels), dtype=torch.float32, device=images.device)
    band = max(1, CUT_PIXELS // max(columns * channels * window[0] * window[1], 1))
    for b in range(batch):
        for row in range(0, rows, band):
            shape = (min(band, rows - row), columns, channels, *window)
            strides = (stride[0] * of_row, stride[1] * of_column, of_channel, of_row, of_column)
            begin = images.storage_offset() + b * of_batch + row * stride[0] * of_row
            windows = images.as_strided(shape, strides, begin).flatten(0, 1)  # a copy
            out[b, row : row + band] = matrices(windows).view(*shape[:2], levels, levels)
    return out
