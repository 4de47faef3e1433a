"""Compiled loops of the convolutions: what a thread does of one call. Images are ``[B, H, W, C]``, float32.

Each function takes the address of its arguments, int64, in the order in which it unpacks them. Work is cut into
items; threads take the next one from a counter. The first two arguments are the counters of items and of threads.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, attr-defined"
from __future__ import annotations

import numba
import numpy as np

from ..mas_glcm.cpu_jit import jit as kept_jit
from .cpu_products import ARGUMENTS, ROOM, Entry, add_product, chunked_product, jit, product_and_bias
from .cpu_simd import (
    F32,
    LANES,
    TILE,
    Vec,
    activated_plus,
    bytes_of,
    constant,
    copy,
    emitted,
    load,
    loop,
    number,
    splat,
    store,
    take,
    vector,
    zero,
)
from .cpu_winograd import PLANES, transform_input, transform_output
from .spec import EPS


def _moments(builder, source, row, column, height, width, mean, deviations):
    """Of 16 channels over a rectangle: mean, and sum of squared distances from it."""
    row, column = bytes_of(builder, row), bytes_of(builder, column)

    def over(step, start):
        def rows(y, carried):
            at = builder.add(source, builder.mul(y, row))

            def columns(x, inner):
                value = load(builder, builder.add(at, builder.mul(x, column)), TILE)
                return [step(value, Vec(builder, inner[0])).value]

            return loop(builder, width, 1, columns, carried)

        return Vec(builder, loop(builder, height, 1, rows, [start])[0])

    nothing = constant(0.0, vector(TILE))
    count = splat(builder, builder.sitofp(builder.mul(height, width), F32), TILE)
    middle = over(lambda value, total: total + value, nothing) / count
    store(builder, middle, mean)

    def square(value, total):
        distance = value - middle
        return distance.times(distance, total)

    store(builder, over(square, nothing), deviations)


moments = emitted(7, _moments)


def _rows_of_16(builder, target, pixels, source, channels, *affine):
    """16 channels of neighbouring pixels, side by side: ``f(target, pixels, source, channels, gain, offset)``."""
    step = bytes_of(builder, channels)
    halves = range(0, TILE, LANES)
    factors = [[load(builder, builder.add(at, number(4 * half))) for at in affine] for half in halves]

    def pixel(i, _carried):
        at, to = builder.add(source, builder.mul(i, step)), builder.add(target, builder.mul(i, number(4 * TILE)))
        for half, factor in zip(halves, factors, strict=True):
            value = load(builder, builder.add(at, number(4 * half)))
            store(builder, value.times(*factor).silu() if factor else value, builder.add(to, number(4 * half)))
        return ()

    loop(builder, pixels, 1, pixel)


copied_row = emitted(4, _rows_of_16)
activated_row = emitted(6, _rows_of_16)


def _copy16(builder, target, source):
    store(builder, load(builder, source, TILE), target)


copy16 = emitted(2, _copy16)


@jit
def fill(target, rows, columns, top, left, height, width, first, channels, second, more, gain, offset, up):
    """Pixels ``[top, top + rows) x [left, left + columns)`` of an image, zeros outside of it.

    They are stored ``[rows, channels / 16, columns, 16]``, so that neighbours are at constant distances. ``first`` and
    ``second`` are images of ``channels`` and ``more`` channels; the first is activated if there is a ``gain``, or
    read twice in each direction if ``up``.
    """
    begin, end = max(0, -left), min(columns, width - left)
    run = columns * TILE
    for r in range(rows):
        y = top + r
        line = target + 4 * r * run * ((channels + more) // TILE)
        if y < 0 or y >= height:
            zero(line, run * ((channels + more) // TILE))
            continue
        for c in range(0, channels + more, TILE):
            if begin > 0:
                zero(line, begin * TILE)
            if end < columns:
                zero(line + 4 * end * TILE, (columns - end) * TILE)
            if up != 0:
                source = first + 4 * ((y // 2) * (width // 2) * channels + c)
                for x in range(begin, end):
                    copy16(line + 4 * TILE * x, source + 4 * ((left + x) // 2) * channels)
            elif gain != 0:
                activated_row(
                    line + 4 * TILE * begin, end - begin, first + 4 * ((y * width + left + begin) * channels + c),
                    channels, gain + 4 * c, offset + 4 * c,
                )  # fmt: skip
            elif c < channels:
                copied_row(
                    line + 4 * TILE * begin, end - begin, first + 4 * ((y * width + left + begin) * channels + c),
                    channels,
                )  # fmt: skip
            else:
                copied_row(
                    line + 4 * TILE * begin, end - begin,
                    second + 4 * ((y * width + left + begin) * more + c - channels), more,
                )  # fmt: skip
            line += 4 * run


@Entry
def winograd(p):
    """3 x 3 convolution of padding 1; moments of what it makes, by block."""
    a = numba.carray(p, (ARGUMENTS,))
    counter, threads, room, each, items = a[0], a[1], a[2], a[3], a[4]
    first, channels, second, more, gain, offset, up = a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    height, width, block_rows, block_columns, parts = a[12], a[13], a[14], a[15], a[16]
    weights, bias, out, channels_out, statistics = a[17], a[18], a[19], a[20], a[21]
    every = channels + more
    chunks = every // TILE
    tiles_down, tiles_across = (height + 3) // 4, (width + 3) // 4
    down, across = -(-tiles_down // block_rows), -(-tiles_across // block_columns)
    most = block_rows * block_columns
    plane = (most + ROOM) * every + TILE  # not at distances at which lines of the cache collide
    share = -(-channels_out // (parts * TILE)) * TILE
    tile_out = PLANES * share + TILE
    pixels = room + each * take(threads)
    planes = pixels + 4 * (4 * block_rows + 2) * (4 * block_columns + 2) * every
    results = planes + 4 * PLANES * plane
    patch = results + 4 * (most + ROOM) * tile_out
    while True:
        item = take(counter)
        if item >= items:
            break
        part, block = item % parts, item // parts
        image = block // (down * across)
        block_y, block_x = block // across % down, block % across
        rows = min(block_rows, tiles_down - block_y * block_rows)
        columns = min(block_columns, tiles_across - block_x * block_columns)
        top, left = 4 * block_y * block_rows, 4 * block_x * block_columns
        field = 4 * columns + 2
        own_gain, own_offset = gain, offset
        if gain != 0:
            own_gain, own_offset = gain + 4 * image * channels, offset + 4 * image * channels
        area = image * height * width
        own_first = first + 4 * (area // 4 if up != 0 else area) * channels
        fill(
            pixels, 4 * rows + 2, field, top - 1, left - 1, height, width,
            own_first, channels, second + 4 * area * more, more, own_gain, own_offset, up,
        )  # fmt: skip
        tile = planes
        for i in range(rows):
            for j in range(columns):
                corner = pixels + 4 * (4 * i * field * every + 4 * j * TILE)
                for n in range(chunks):
                    transform_input(corner + 4 * n * field * TILE, field * every, tile + 4 * n * TILE, plane)
                tile += 4 * every
        tall, wide = min(4 * rows, height - top), min(4 * columns, width - left)
        begin, end = part * share, min((part + 1) * share, channels_out)
        for n in range(PLANES):
            for channel in range(begin, end, TILE):
                chunked_product(
                    planes + 4 * n * plane, every, weights + 4 * (n * channels_out + channel) * every, TILE, every,
                    results + 4 * ((channel - begin) * PLANES + n * TILE), tile_out, rows * columns, 0,
                )  # fmt: skip
        for channel in range(begin, end, TILE):
            base = out + 4 * (((area + top * width + left) * channels_out) + channel)
            source = results + 4 * (channel - begin) * PLANES
            for i in range(rows):
                for j in range(columns):
                    target = base + 4 * (4 * i * width + 4 * j) * channels_out
                    high, broad = min(4, tall - 4 * i), min(4, wide - 4 * j)
                    if high == 4 and broad == 4:
                        transform_output(source, target, width * channels_out, channels_out, bias + 4 * channel)
                    else:
                        transform_output(source, patch, 4 * TILE, TILE, bias + 4 * channel)
                        for y in range(high):
                            for x in range(broad):
                                copy16(target + 4 * (y * width + x) * channels_out, patch + 4 * (4 * y + x) * TILE)
                    source += 4 * tile_out
            if statistics != 0:
                mean = statistics + 4 * (block * 2 * channels_out + channel)
                moments(base, width * channels_out, channels_out, tall, wide, mean, mean + 4 * channels_out)


@jit
def pad(target, rows, columns, top, left, height, width, source, channels):
    """Pixels ``[top, top + rows) x [left, left + columns)`` of an image, zeros outside of it."""
    begin, end = max(0, -left), min(columns, width - left)
    for r in range(rows):
        y = top + r
        line = target + 4 * r * columns * channels
        if y < 0 or y >= height:
            zero(line, columns * channels)
            continue
        if begin > 0:
            zero(line, begin * channels)
        if end < columns:
            zero(line + 4 * end * channels, (columns - end) * channels)
        copy(line + 4 * begin * channels, (end - begin) * channels, source + 4 * (y * width + left + begin) * channels)


@Entry
def direct(p):
    """Convolution of any size and stride: products of neighbouring pixels' channels, row by row of the filter."""
    a = numba.carray(p, (ARGUMENTS,))
    counter, threads, room, each, items = a[0], a[1], a[2], a[3], a[4]
    source, channels, height, width, size, stride, padding = a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    height_out, width_out, block_rows, block_columns = a[12], a[13], a[14], a[15]
    weights, bias, out, channels_out = a[16], a[17], a[18], a[19]
    down, across = -(-height_out // block_rows), -(-width_out // block_columns)
    pixels = room + each * take(threads)
    line = size * channels
    while True:
        item = take(counter)
        if item >= items:
            break
        image = item // (down * across)
        top, left = item // across % down * block_rows, item % across * block_columns
        rows, columns = min(block_rows, height_out - top), min(block_columns, width_out - left)
        if padding != 0:
            field = (columns - 1) * stride + size
            pad(
                pixels, (rows - 1) * stride + size, field, top * stride - padding, left * stride - padding,
                height, width, source + 4 * image * height * width * channels, channels,
            )  # fmt: skip
            corner, step = pixels, field * channels
        else:
            corner = source + 4 * ((image * height + top * stride) * width + left * stride) * channels
            step = width * channels
        for y in range(rows):
            target = out + 4 * ((image * height_out + top + y) * width_out + left) * channels_out
            for channel in range(0, channels_out, TILE):
                factors = weights + 4 * (channel // TILE) * size * line * TILE
                for k in range(size):
                    at = corner + 4 * (y * stride + k) * step
                    if k == 0:
                        product_and_bias(
                            at, stride * channels, factors, TILE, line,
                            target + 4 * channel, channels_out, columns, bias + 4 * channel,
                        )  # fmt: skip
                    else:
                        add_product(
                            at, stride * channels, factors + 4 * k * line * TILE, TILE, line,
                            target + 4 * channel, channels_out, columns, 0,
                        )  # fmt: skip


@Entry
def epilogue(p):
    """A residual block's end: what its second convolution made, normalized and activated, plus the shortcut."""
    a = numba.carray(p, (ARGUMENTS,))
    counter, items, pixels, chunk = a[0], a[4], a[5], a[6]
    made, channels_out, gain, offset = a[7], a[8], a[9], a[10]
    first, channels, second, more, weights, bias, out = a[11], a[12], a[13], a[14], a[15], a[16], a[17]
    chunks = -(-pixels // chunk)
    while True:
        item = take(counter)
        if item >= items:
            break
        image, begin = item // chunks, item % chunks * chunk
        rows = min(chunk, pixels - begin)
        start = image * pixels + begin
        own_gain, own_offset = gain + 4 * image * channels_out, offset + 4 * image * channels_out
        target, source = out + 4 * start * channels_out, made + 4 * start * channels_out
        other = first + 4 * start * channels
        if weights != 0:
            every = channels + more
            for channel in range(0, channels_out, TILE):
                factors = weights + 4 * channel * every
                product_and_bias(
                    other, channels, factors, TILE, channels,
                    target + 4 * channel, channels_out, rows, bias + 4 * channel,
                )  # fmt: skip
                if more != 0:
                    add_product(
                        second + 4 * start * more, more, factors + 4 * channels * TILE, TILE, more,
                        target + 4 * channel, channels_out, rows, 0,
                    )  # fmt: skip
            other = target
        for r in range(rows):
            at = 4 * r * channels_out
            activated_plus(target + at, channels_out, source + at, own_gain, own_offset, other + at)


@kept_jit
def group_norm_affine(moments, counts, groups, gain, offset, gain_out, offset_out):
    """Group norm as a gain and an offset of each channel, from the moments of blocks.

    ``moments [B, blocks, 2, C]``: mean and squared distances; ``counts [blocks]``; ``gain``, ``offset [B or 1, C]``;
    ``gain_out``, ``offset_out [B, C]``, float32. Sums in float64.
    """
    images, blocks, _, channels = moments.shape
    each = channels // groups
    for image in range(images):
        own, own_offset = image % len(gain), image % len(offset)
        for group in range(groups):
            begin, end = group * each, (group + 1) * each
            total = count = 0.0
            for block in range(blocks):
                part = 0.0
                for c in range(begin, end):
                    part += moments[image, block, 0, c]
                total += part * counts[block]
                count += counts[block] * each
            mean = total / count
            squares = 0.0
            for block in range(blocks):
                for c in range(begin, end):
                    distance = moments[image, block, 0, c] - mean
                    squares += moments[image, block, 1, c] + counts[block] * distance * distance
            scale = 1.0 / np.sqrt(squares / count + EPS)
            for c in range(begin, end):
                gain_out[image, c] = gain[own, c] * scale
                offset_out[image, c] = offset[own_offset, c] - mean * gain[own, c] * scale
