"""Triton backend: four fractions of a pair added to the sums, and pulled back from their gradients.

Forward adds integers, backward gathers: neither depends on the order in which programs run.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _split(position, at, inside, levels):
    """Lower level (int32, at most ``levels - 2``) and fraction of the pixels at ``at``."""
    value = tl.load(position + at, mask=inside, other=0.0)
    lower = tl.minimum(value.to(tl.int32), levels - 2)
    return lower, value - lower.to(value.dtype)


@triton.jit
def _neighbour(mask, y, x, dy, dx, inside, height, width, MASKED: tl.constexpr):
    """Index of ``(y + dy, x + dx)``, and where it is a valid pixel."""
    ny, nx = y + dy, x + dx
    inside = inside & (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
    at = ny.to(tl.int64) * width + nx
    if MASKED:
        inside = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    return at, inside


@triton.jit
def _pixels(mask, height, width, MASKED: tl.constexpr, P: tl.constexpr):
    """This program's pixels: index, row, column, and where they are valid."""
    at = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    y, x = (at // width).to(tl.int32), (at % width).to(tl.int32)
    inside = y < height
    if MASKED:
        inside = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    return at, y, x, inside


@triton.jit(do_not_specialize=["height", "width", "entry_count", "each", "groups", "levels"])
def add_kernel(
    position,
    mask,
    entries,
    sums,
    height,
    width,
    entry_count,
    each,
    groups,
    levels,
    MASKED: tl.constexpr,
    UNIT: tl.constexpr,
    P: tl.constexpr,
):
    """Add the pairs of ``position [images, H, W]`` to ``sums [images, groups, levels, levels]``, int64 in ``UNIT``.

    Grid: (blocks of ``P`` pixels, images, blocks of ``each`` entries). ``entries`` int32 ``[n, 3]``: group, dy, dx.
    """
    image = tl.program_id(1).to(tl.int64)
    position += image * height * width
    if MASKED:
        mask += image * height * width
    sums += image * groups * levels * levels
    at, y, x, here = _pixels(mask, height, width, MASKED, P)
    i, f = _split(position, at, here, levels)
    first = tl.program_id(2) * each
    for k in range(first, tl.minimum(first + each, entry_count)):
        group, dy, dx = tl.load(entries + 3 * k), tl.load(entries + 3 * k + 1), tl.load(entries + 3 * k + 2)
        there_at, valid = _neighbour(mask, y, x, dy, dx, here, height, width, MASKED)
        j, g = _split(position, there_at, valid, levels)
        cell = sums + (group * levels + i) * levels + j
        # shares of one unit that add up to it exactly
        row = (f * UNIT + 0.5).to(tl.int64)
        high = (f * g * UNIT + 0.5).to(tl.int64)
        column = (g * UNIT + 0.5).to(tl.int64)
        tl.atomic_add(cell, UNIT - row - column + high, mask=valid, sem="relaxed")
        tl.atomic_add(cell + 1, column - high, mask=valid & (column != high), sem="relaxed")
        tl.atomic_add(cell + levels, row - high, mask=valid & (row != high), sem="relaxed")
        tl.atomic_add(cell + levels + 1, high, mask=valid & (high != 0), sem="relaxed")


@triton.jit
def _slope(grads, cell, step, across, fraction, inside):
    """Difference of ``grads`` one ``step`` on, between ``cell`` and ``cell + across`` by ``fraction``."""
    a = tl.load(grads + cell, mask=inside, other=0.0)
    b = tl.load(grads + cell + step, mask=inside, other=0.0)
    c = tl.load(grads + cell + across, mask=inside, other=0.0)
    d = tl.load(grads + cell + across + step, mask=inside, other=0.0)
    return (b - a) * (1 - fraction) + (d - c) * fraction


@triton.jit(do_not_specialize=["height", "width", "entry_count", "groups", "levels"])
def pull_kernel(
    position,
    mask,
    entries,
    grads,
    out,
    height,
    width,
    entry_count,
    groups,
    levels,
    MASKED: tl.constexpr,
    P: tl.constexpr,
):
    """Gradient ``out [images, H, W]`` of ``position`` from ``grads [images, groups, levels, levels]``.

    Grid: (blocks of ``P`` pixels, images). A pixel is the first of a pair with its neighbour at ``d``, and the second
    of one with its neighbour at ``-d``.
    """
    image = tl.program_id(1).to(tl.int64)
    position += image * height * width
    out += image * height * width
    if MASKED:
        mask += image * height * width
    grads += image * groups * levels * levels
    at, y, x, here = _pixels(mask, height, width, MASKED, P)
    i, _ = _split(position, at, here, levels)
    total = tl.zeros((P,), out.dtype.element_ty)
    for k in range(entry_count):
        matrix = tl.load(entries + 3 * k) * levels * levels
        dy, dx = tl.load(entries + 3 * k + 1), tl.load(entries + 3 * k + 2)
        there_at, valid = _neighbour(mask, y, x, dy, dx, here, height, width, MASKED)
        j, g = _split(position, there_at, valid, levels)
        total += _slope(grads, matrix + i * levels + j, levels, 1, g, valid)
        there_at, valid = _neighbour(mask, y, x, -dy, -dx, here, height, width, MASKED)
        j, g = _split(position, there_at, valid, levels)
        total += _slope(grads, matrix + j * levels + i, 1, levels, g, valid)
    tl.store(out + at, total, mask=y < height)
