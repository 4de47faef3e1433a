"""Triton backend: quantization; counting as matrix products, fused with it; the weighing of counts.

A *column* is up to two offsets counted into one accumulator. A block of ``P`` pixels and a few columns make a
matrix product on the tensor cores,

    M_g(i, j) += sum_p [level(p) = i] N_g(p, j),    N_g(p, j) = #{k : level(p + d_gk) = j},

exact in float16 operands and float32 sums (every sum stays below 2**24). Nothing is scattered, so flat images
cost what noise costs and no two threads meet at an address. Integer atomics join the programs' sums, so results
do not depend on their order. For up to 32 levels: beyond them a product costs more than it saves.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gray16(image, y, x, inside, stride_c, stride_h, stride_w, low, scale, CHANNELS: tl.constexpr):
    """16-bit luma (int32) at ``(y, x)`` where ``inside``; shapes broadcast."""
    at = image + y * stride_h + x * stride_w
    luma = tl.full(at.shape, 32768, tl.uint32)
    value = tl.full(at.shape, 0, tl.int32)
    for c in tl.static_range(CHANNELS):
        pixel = tl.load(at + c * stride_c, mask=inside, other=0)
        if pixel.dtype == tl.uint8:
            value = pixel.to(tl.int32) * 257
        elif pixel.dtype == tl.uint16:
            value = pixel.to(tl.int32)
        else:
            scaled = (pixel.to(tl.float32) - low) * scale
            scaled = tl.where(scaled > 0.0, scaled, 0.0)  # NaN fails the comparison and becomes 0
            scaled = tl.where(scaled < 65535.0, scaled, 65535.0)
            # adding 2**23 leaves no fraction bits: rounds to nearest even, as rint
            value = ((scaled + 8388608.0) - 8388608.0).to(tl.int32)
        if CHANNELS == 3:
            weight = 19595 if c == 0 else 38470 if c == 1 else 7471
            luma += value.to(tl.uint32) * tl.full(at.shape, weight, tl.uint32)
    if CHANNELS == 3:
        value = (luma >> 16).to(tl.int32)
    return value


@triton.jit
def _level(
    image,
    mask,
    thresholds,
    y,
    x,
    inside,
    height,
    width,
    stride_c,
    stride_h,
    stride_w,
    mask_h,
    low,
    scale,
    levels,
    CHANNELS: tl.constexpr,
    LAPLACIAN: tl.constexpr,
    STEPS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Gray level (int32) of level-image pixels ``(y, x)``, -1 where they are outside or masked."""
    inside = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    if LAPLACIAN:  # a level-image pixel has its four neighbours: the image is one pixel larger all around
        value = 4 * _gray16(image, y + 1, x + 1, inside, stride_c, stride_h, stride_w, low, scale, CHANNELS)
        for side in tl.static_range(4):
            ny = y + (0 if side == 0 else 2 if side == 1 else 1)
            nx = x + (0 if side == 2 else 2 if side == 3 else 1)
            value -= _gray16(image, ny, nx, inside, stride_c, stride_h, stride_w, low, scale, CHANNELS)
    else:
        value = _gray16(image, y, x, inside, stride_c, stride_h, stride_w, low, scale, CHANNELS)
    if STEPS == 0:
        level = (value * levels) >> 16
    else:  # number of thresholds <= value, by bisection of a table padded to 2**STEPS - 1 entries
        level = tl.zeros_like(value)
        for step in tl.static_range(STEPS):
            half = 1 << (STEPS - 1 - step)
            level += tl.where(tl.load(thresholds + level + half - 1) <= value, half, 0)
    if MASKED:
        centre = mask + y * mask_h + x
        if LAPLACIAN:
            centre += mask_h + 1
            valid = tl.load(centre - mask_h, mask=inside, other=0) & tl.load(centre + mask_h, mask=inside, other=0)
            valid &= tl.load(centre - 1, mask=inside, other=0) & tl.load(centre + 1, mask=inside, other=0)
            inside = inside & (valid != 0)
        inside = inside & (tl.load(centre, mask=inside, other=0) != 0)
    return tl.where(inside, level, -1)


# one compilation for all image sizes; only a unit pixel stride is worth its own
@triton.jit(
    do_not_specialize=[
        "height", "width", "splits", "pixels", "groups", "levels", "low", "scale",
        "stride_b", "stride_c", "stride_h", "mask_b", "mask_h",
    ]
)  # fmt: skip
def product_kernel(
    image,
    mask,
    thresholds,
    columns,
    counts,
    height,
    width,
    splits,
    pixels,
    groups,
    levels,
    low,
    scale,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    mask_b,
    mask_h,
    CHANNELS: tl.constexpr,
    LAPLACIAN: tl.constexpr,
    STEPS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    THROUGH_SHARED: tl.constexpr,
):
    """Counts of ``pixels`` pixels of one image and ``COLUMNS`` columns.

    Grid: (images * splits, blocks of columns). ``columns`` int32 ``[n, 1 + 2 PER_COLUMN]``: group, then
    ``dy, dx`` of each offset. ``counts`` int32 or int64 ``[images, groups, levels, levels]``, zero
    before.
    """
    program = tl.program_id(0)
    b = (program // splits).to(tl.int64)
    image += b * stride_b
    if MASKED:
        mask += b * mask_b
    counts += b * groups * levels * levels
    columns += tl.program_id(1) * COLUMNS * (1 + 2 * PER_COLUMN)
    entry = columns + tl.arange(0, COLUMNS) * (1 + 2 * PER_COLUMN)
    side = tl.arange(0, SIDE)

    # 32-bit arithmetic is cheaper, and enough below 2**31 elements
    index = tl.int64 if WIDE else tl.int32
    size = tl.cast(height, index) * width
    row_stride, pixel_stride, stride_c = tl.cast(stride_h, index), tl.cast(stride_w, index), tl.cast(stride_c, index)
    mask_h = tl.cast(mask_h, index)
    first = (program % splits) * tl.cast(pixels, index)
    last = tl.minimum(first + pixels, size)
    sums = tl.zeros((SIDE, COLUMNS * SIDE), tl.float32)
    for start in range(first, last, P):
        p = start + tl.arange(0, P)
        y = (p // width).to(tl.int32)
        x = (p % width).to(tl.int32)
        here = _level(
            image,
            mask,
            thresholds,
            y,
            x,
            p < last,
            height,
            width,
            stride_c,
            row_stride,
            pixel_stride,
            mask_h,
            low,
            scale,
            levels,
            CHANNELS,
            LAPLACIAN,
            STEPS,
            MASKED,
        )  # [P]
        near = tl.zeros((P, COLUMNS, SIDE), tl.float16)
        for k in tl.static_range(PER_COLUMN):
            ny = y[:, None] + tl.load(entry + 1 + 2 * k)[None, :]
            nx = x[:, None] + tl.load(entry + 2 + 2 * k)[None, :]
            there = _level(
                image,
                mask,
                thresholds,
                ny,
                nx,
                (here >= 0)[:, None],
                height,
                width,
                stride_c,
                row_stride,
                pixel_stride,
                mask_h,
                low,
                scale,
                levels,
                CHANNELS,
                LAPLACIAN,
                STEPS,
                MASKED,
            )  # [P, COLUMNS], -1 where either pixel does not count
            if THROUGH_SHARED:  # moves nothing, but keeps the compiler from quantizing once a lane
                there = tl.gather(there, tl.broadcast_to(tl.arange(0, P)[:, None], (P, COLUMNS)), 0)
            near += (there[:, :, None] == side[None, None, :]).to(tl.float16)
        one_hot = (side[:, None] == here[None, :]).to(tl.float16)  # [SIDE, P]
        sums = tl.dot(one_hot, tl.reshape(near, (P, COLUMNS * SIDE)), sums)

    n = tl.arange(0, COLUMNS * SIDE)
    begin = tl.load(columns + n // SIDE * (1 + 2 * PER_COLUMN)) * (levels * levels)
    cell = begin[None, :] + side[:, None] * levels + (n % SIDE)[None, :]
    # a level past the last one counted nothing, so only cells of the matrices are written
    tl.atomic_add(counts + cell, sums.to(counts.dtype.element_ty), mask=sums > 0.0, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width", "groups", "slots", "levels", "side"])
def combine_kernel(
    counts,
    pairs,
    uses,
    starts,
    totals,
    out,
    height,
    width,
    groups,
    slots,
    levels,
    side,
    MASKED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CELLS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """``out[b, slot] = sum of times * (C or C^T)``, divided by pairs and matrices if ``NORMALIZE``.

    Grid: (images * slots, blocks of cells). ``uses`` int32 ``[n, 5]``: group, transposed, times, and ``dy, dx``
    of the group; ``counts`` int32 or int64 ``[images, groups, side, side]``; ``starts [slots + 1]`` tells which
    are a slot's. ``AHEAD`` uses are read at a time.
    """
    b = (tl.program_id(0) // slots).to(tl.int64)
    slot = tl.program_id(0) % slots
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    i, j = cell // levels, cell % levels
    inside = cell < levels * levels
    mean = tl.zeros((CELLS,), tl.float64)
    total = tl.zeros((CELLS,), tl.int64)
    end = tl.load(starts + slot + 1)
    for first in range(tl.load(starts + slot), end, AHEAD):
        for n in tl.static_range(AHEAD):  # these wait for memory together
            use = uses + 5 * (first + n)
            given = first + n < end
            group = tl.load(use, mask=given, other=0)
            times = tl.load(use + 2, mask=given, other=0).to(tl.int64)
            at = tl.where(tl.load(use + 1, mask=given, other=0) != 0, j * side + i, i * side + j)
            matrix = counts + (b * groups + group) * side * side
            count = tl.load(matrix + at, mask=cell < tl.where(given, levels * levels, 0), other=0).to(tl.int64)
            if NORMALIZE:
                if MASKED:
                    size = tl.load(pairs + b * groups + group)
                else:
                    h = tl.maximum(height - tl.load(use + 3, mask=given, other=0), 0).to(tl.int64)
                    size = h * tl.maximum(width - tl.load(use + 4, mask=given, other=0), 0)
                weight = times.to(tl.float64) / tl.maximum(size * tl.load(totals + slot), 1).to(tl.float64)
                mean += weight * count.to(tl.float64)
            else:
                total += times * count
    target = out + tl.program_id(0).to(tl.int64) * levels * levels + cell
    tl.store(target, mean.to(tl.float32) if NORMALIZE else total, mask=inside)
