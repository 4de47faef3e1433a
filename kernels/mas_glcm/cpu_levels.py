"""Compiled CPU loops (numba) from pixels to gray levels: views of memory, 16-bit luma, residual, quantizer, mask."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, call-arg, attr-defined"
from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .cpu_jit import jit as _jit


class Quantizer(NamedTuple):
    """Gray levels, for the compiled loops."""

    levels: int
    low: np.float32
    scale: np.float32
    laplacian: bool
    thresholds: np.ndarray  # int32, empty for equal steps of gray


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), codegen


@_jit
def _row_at(address, size, sample):
    return numba.carray(_pointer(address), size, sample.dtype)


@_jit
def image_and_mask(where, sample, b):
    """Image ``b``, ``[C, H, W]`` of the type of ``sample``, and its mask ``[H, W]`` (empty if there is none).

    ``where``: address, shape ``[B, C, H, W]`` and strides, then address (0: none) and strides ``[B, H, W]`` of the
    mask; strides count values. An array made in Python costs more than a small image's counts.
    """
    (address, _, channels, height, width, of_image, of_channel, of_row, of_column) = where[:9]
    (mask_address, of_mask, of_mask_row, of_mask_column) = where[9:]
    item = sample.itemsize
    image = np.lib.stride_tricks.as_strided(
        _row_at(address + b * of_image * item, 1, sample),
        (channels, height, width),
        (of_channel * item, of_row * item, of_column * item),
    )
    marks = np.empty(1, np.bool_)
    shape, strides = (0, 0), (1, 1)
    if mask_address != 0:
        marks = _row_at(mask_address + b * of_mask, 1, marks)
        shape, strides = (height, width), (of_mask_row, of_mask_column)
    return image, np.lib.stride_tricks.as_strided(marks, shape, strides)


@_jit
def _first_channel(values, low, scale, row):
    bad = 0
    for x in range(values.size):
        value = values[x]
        bad |= _not_finite(value)
        row[x] = _value16(value, low, scale)
    return bad == 0


@_jit
def _add_colour(greens, blues, low, scale, row):
    bad = 0
    for x in range(greens.size):
        green, blue = greens[x], blues[x]
        bad |= _not_finite(green) | _not_finite(blue)
        luma = np.uint32(19595) * np.uint32(row[x]) + np.uint32(32768)
        luma += np.uint32(38470) * np.uint32(_value16(green, low, scale))
        luma += np.uint32(7471) * np.uint32(_value16(blue, low, scale))
        row[x] = np.int32(np.uint32(luma) >> np.uint32(16))
    return bad == 0


@_jit
def _adjoining(image, channel, y):
    """A row whose values are known at compile time to adjoin, so that loops over it are vectorized."""
    return _row_at(image[channel, y].ctypes.data, image.shape[2], image)


@_jit
def _gray16_row(image, y, low, scale, row):
    """16-bit luma of row ``y`` of ``image [C, H, W]`` into ``row``; returns whether all values are finite."""
    if image.strides[2] == image.itemsize:
        finite = _first_channel(_adjoining(image, 0, y), low, scale, row)
        if image.shape[0] == 3:
            finite &= _add_colour(_adjoining(image, 1, y), _adjoining(image, 2, y), low, scale, row)
        return finite
    finite = _first_channel(image[0, y], low, scale, row)
    if image.shape[0] == 3:
        finite &= _add_colour(image[1, y], image[2, y], low, scale, row)
    return finite


def _value16(value, low, scale):
    raise NotImplementedError  # compiled only: numba takes the overload below


def _not_finite(value):
    raise NotImplementedError


@numba.extending.overload(_value16)
def _value16_overload(value, low, scale):
    if value == types.uint8:
        return lambda value, low, scale: np.int32(value) * np.int32(257)
    if value == types.uint16:
        return lambda value, low, scale: np.int32(value)

    def floating(value, low, scale):
        scaled = (value - low) * scale
        # written so that NaN fails the first comparison and becomes 0
        above = scaled if scaled > np.float32(0) else np.float32(0)
        return np.int32(np.rint(above if above < np.float32(65535) else np.float32(65535)))

    return floating


@numba.extending.overload(_not_finite)
def _not_finite_overload(value):
    if isinstance(value, types.Integer):
        return lambda value: np.int32(0)
    return lambda value: np.int32(value - value != np.float32(0))


@_jit
def level_rows(image, mask, quantizer, void, top, level, left, gray):
    """Levels of the rows of ``level`` (uint16, ``void`` where nothing counts), from level-image row ``top``.

    ``left`` is the border's width; ``gray`` int32 ``[4, W]`` is scratch: three rows of luma and a residual.
    Returns whether all values read are finite.
    """
    height, width = image.shape[1], image.shape[2]
    inset = 1 if quantizer.laplacian else 0
    thresholds = quantizer.thresholds
    rows = min(level.shape[0], max(height - 2 * inset - top, 0))
    columns = max(width - 2 * inset, 0)
    finite = True
    level[:] = void
    if columns == 0 or rows == 0:
        return finite
    for i in range(2 * inset):
        finite &= _gray16_row(image, top + i, quantizer.low, quantizer.scale, gray[i])
    for i in range(rows):
        newest = i + 2 * inset
        finite &= _gray16_row(image, top + newest, quantizer.low, quantizer.scale, gray[newest % 3])
        out = level[i, left : left + columns]
        row = gray[(i + inset) % 3]
        if inset:
            above, below, residual = gray[i % 3], gray[newest % 3], gray[3]
            for x in range(columns):
                around = above[x + 1] + below[x + 1] + row[x] + row[x + 2]
                residual[x] = 4 * row[x + 1] - around
            row = residual
        if thresholds.size == 0:
            for x in range(columns):
                out[x] = np.uint16((np.uint32(row[x]) * np.uint32(quantizer.levels)) >> np.uint32(16))
        else:
            # one pass of vector compares per threshold: the loop over pixels is the inner one
            for x in range(columns):
                out[x] = 0
            for threshold in thresholds:
                for x in range(columns):
                    out[x] += np.uint16(row[x] >= threshold)
        if mask.size:
            _apply_mask(mask, top + i + inset, inset, out, void)
    return finite


@_jit
def _apply_mask(mask, y, inset, out, void):
    for x in range(out.size):
        inside = mask[y, x + inset]
        if inset:
            inside &= mask[y - 1, x + 1] & mask[y + 1, x + 1] & mask[y, x] & mask[y, x + 2]
        if not inside:
            out[x] = void
