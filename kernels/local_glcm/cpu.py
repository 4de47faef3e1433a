"""Compiled CPU backend (numba), parallel over rows of windows.

Windows share work in both directions. The pairs that leave a window as it moves right by a stride are those whose
bounding box begins in a *strip* of that many columns, those that enter have theirs end in one; both strips are as high
as the window and shared by the next row of windows, for which the pairs of a few image rows are added to each strip and
taken away. So a pair is counted about four times in all, however large the windows and however small the stride, and a
window costs two additions of matrices.

All offsets add into one matrix of integers, the weight of each (1 / its number of pairs and of matrices) as a
fixed-point number of 62 bits: exact sums, in any order, that one conversion turns into frequencies.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, call-arg"
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..mas_glcm import cpu
from ..mas_glcm.cpu_jit import jit as _jit
from ..mas_glcm.cpu_levels import Quantizer, level_rows
from ..mas_glcm.cpu_threads import in_parallel
from ..mas_glcm.spec import Request, float_scale, make_plan
from .views import each_window, grid

FIXED = 62
"""Bits behind the point: frequencies are at most 1, so that their sums fit int64."""

STRIP_BYTES = 1 << 20
"""Strips held at a time, so that they stay in the second-level cache."""


@_jit
def _add_pairs(level, top, bottom, left, right, dy, dx, down, across, amount, matrix):
    """Add ``amount`` to ``matrix`` (int64, flat) for each pair whose bounding box begins in the given rectangle."""
    here, there = max(-dx, 0), max(dx, 0)
    for y in range(top, bottom):
        first = level[y, left + here : right + here]
        second = level[y + dy, left + there : right + there]
        for x in range(first.size):
            matrix[np.uint32(first[x]) * down + np.uint32(second[x]) * across] += amount


@_jit
def _add_to_strips(level, top, bottom, left, right, dy, dx, down, across, amount, strip_at, strips):
    """As `_add_pairs`, each column into its own strip: ``strip_at[x - left]`` is where that begins in ``strips``."""
    here, there = max(-dx, 0), max(dx, 0)
    for y in range(top, bottom):
        first = level[y, left + here : right + here]
        second = level[y + dy, left + there : right + there]
        for x in range(first.size):
            strips[strip_at[x] + np.uint32(first[x]) * down + np.uint32(second[x]) * across] += amount


@_jit
def _emit(matrix, unit, target):
    for cell in range(matrix.size):
        target[cell] = np.float32(matrix[cell] * unit)


@_jit
def _share(level, first, last, columns, chunk, height, width, sy, sx, offsets, amounts, levels, unit, out):
    """Matrices of rows ``first..last`` of windows into ``out [rows, columns, levels * levels]`` (float32).

    ``offsets [n, 3]``: dy, dx, transposed; none reaches beyond what two neighbouring windows share. ``chunk`` windows
    side by side have their strips at a time.
    """
    cells = levels * levels
    begin = np.empty(cells, np.int64)  # matrix of the chunk's first window
    matrix = np.empty(cells, np.int64)
    leaving, entering = np.empty(chunk * cells, np.int64), np.empty(chunk * cells, np.int64)
    strip_at = np.empty(chunk * sx, np.uint32)
    for x in range(strip_at.size):
        strip_at[x] = x // sx * cells
    for start in range(0, columns, chunk):
        windows = min(chunk, columns - start)
        left, span = start * sx, (windows - 1) * sx
        begin[:], leaving[:], entering[:] = 0, 0, 0
        for row in range(first, last):
            top = row * sy
            for k in range(amounts.size):
                dy, dx = offsets[k, 0], offsets[k, 1]
                rows, w = height - dy, width - abs(dx)
                down = np.uint32(1 if offsets[k, 2] else levels)
                across = np.uint32(levels if offsets[k, 2] else 1)
                for side in range(2):  # rows that enter, then rows that leave
                    if side == 0:
                        above, below, amount = top + rows - sy if row > first else top, top + rows, amounts[k]
                    elif row > first:
                        above, below, amount = top - sy, top, -amounts[k]
                    else:
                        break
                    _add_pairs(level, above, below, left, left + w, dy, dx, down, across, amount, begin)
                    _add_to_strips(
                        level, above, below, left, left + span, dy, dx, down, across, amount, strip_at, leaving
                    )
                    _add_to_strips(
                        level, above, below, left + w, left + w + span, dy, dx, down, across, amount, strip_at, entering
                    )
            matrix[:] = begin
            _emit(matrix, unit, out[row, start])
            for window in range(1, windows):
                strip = (window - 1) * cells
                for cell in range(cells):
                    matrix[cell] += entering[strip + cell] - leaving[strip + cell]
                _emit(matrix, unit, out[row, start + window])


@lru_cache(maxsize=64)
def _amounts(request: Request, height: int, width: int, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Offsets ``[n, 3]`` that stay within a ``height x width`` window, and what one pair of each adds."""
    offsets, amounts = [], []
    for group in make_plan(request, "pairs").groups:
        ((dy, dx),) = group.offsets
        pairs = group.pairs(height, width)
        for _, flip, times in group.uses if pairs else ():
            offsets.append((dy, dx, int(flip)))
            amounts.append(round(Fraction(times << FIXED, pairs * len(request.offsets))) if normalize else times)
    return np.array(offsets, np.int64).reshape(-1, 3), np.array(amounts, np.int64)


def _any_strides(images: Tensor) -> np.ndarray:
    """The pixels without a copy, in the one array type the loops are compiled for: read-only, any strides."""
    array = images.detach().numpy()
    return np.lib.stride_tricks.as_strided(array, array.shape, array.strides, writeable=False)


def local_glcm(
    images: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    request: Request,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: Sequence[int],
    normalize: bool,
) -> tuple[Tensor, int | None]:
    """See :func:`bdg_fast.kernels.local_glcm.ops.local_glcm`, whose arguments these are.

    Returns the matrices and the index of the first image that is not finite, if any.
    """
    laplacian = source == "laplacian"
    inset = 2 * laplacian
    height, width = max(window[0] - inset, 0), max(window[1] - inset, 0)  # of a window of the level image
    offsets, amounts = _amounts(request, height, width, normalize)
    below, aside = np.abs(offsets[:, :2]).max(0, initial=0).tolist()
    # four updates a pixel, against one, faster, for each window that holds it
    shares = (11 if levels <= 32 else 5) * stride[0] * stride[1] < height * width
    shares = shares and stride[0] <= height - below and stride[1] <= width - aside
    if not shares or images.numel() == 0:

        def matrices(windows: Tensor) -> Tensor:
            return cpu.glcm(windows, None, request, levels, low, high, source, thresholds, normalize)[0]

        finite = images.isfinite().flatten(1).all(1) if images.is_floating_point() else torch.ones(len(images)).bool()
        bad = None if finite.all() else int(finite.to(torch.uint8).argmin())
        return each_window(images, window, stride, levels, matrices), bad

    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.to(torch.float32)
    pixels = _any_strides(images)
    lo, scale = (np.float32(value) for value in float_scale(low, high))
    quantizer = Quantizer(levels, lo, scale, laplacian, np.array(thresholds, np.int32))
    rows, columns = grid(images, window, stride)
    out = np.empty((len(pixels), rows, columns, levels * levels), np.float32)
    unit = 2.0**-FIXED if normalize else 1.0
    chunk = min(columns, max(STRIP_BYTES // (16 * levels * levels), 8))
    threads = max(1, min(torch.get_num_threads(), rows))
    bad = None
    for b, image in enumerate(pixels):
        level = np.empty((image.shape[1] - inset, image.shape[2] - inset), np.uint16)
        gray = np.empty((4, image.shape[2]), np.int32)
        finite = level_rows(image, np.empty((0, 0), np.bool_), quantizer, 0, 0, level, 0, gray)
        if not finite and bad is None:
            bad = b

        def some(thread: int, b: int = b, level: np.ndarray = level) -> None:
            first, last = rows * thread // threads, rows * (thread + 1) // threads
            _share(level, first, last, columns, chunk, height, width, *stride, offsets, amounts, levels, unit, out[b])

        in_parallel(threads, some)
    return torch.from_numpy(out.reshape(*out.shape[:3], levels, levels)), bad
