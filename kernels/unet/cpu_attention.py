"""Compiled loops of linear attention: what a thread does of one call. Float32; arguments as in `cpu_conv`.

Keys sum up the normalized pixels once; queries read the sums. Nothing of the size of an image is written but the
result: normalized pixels, keys and queries are made anew in blocks that stay in the cache.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, attr-defined"
from __future__ import annotations

import numba

from .cpu_products import ARGUMENTS, Entry, add_turned_product, product
from .cpu_simd import (
    F32,
    LANES,
    TILE,
    bytes_of,
    copy,
    emitted,
    exp_of_difference,
    filled,
    largest_of,
    load,
    load_one,
    loop,
    normalized,
    normalized_plus,
    plus,
    scaled,
    softmax32,
    splat,
    store,
    take,
    zero,
)
from .spec import HIDDEN

BLOCK = 48
"""Pixels a time."""

_lowest = filled(-3.0e38)


@Entry
def gather(p):
    """Sums of normalized pixels by key, unnormalized: for each chunk the largest keys, their sums, and the sums."""
    a = numba.carray(p, (ARGUMENTS,))
    counter, threads, room, each, items = a[0], a[1], a[2], a[3], a[4]
    source, channels, pixels, chunk, gain, keys, found = a[5], a[6], a[7], a[8], a[9], a[10], a[11]
    chunks = -(-pixels // chunk)
    rows = room + each * take(threads)
    made = rows + 4 * BLOCK * channels
    highest = made + 4 * BLOCK * HIDDEN
    factor = highest + 4 * HIDDEN
    while True:
        item = take(counter)
        if item >= items:
            break
        image, begin = item // chunks, item % chunks * chunk
        end = min(begin + chunk, pixels)
        top = found + 4 * item * HIDDEN * (2 + channels)
        total, sums = top + 4 * HIDDEN, top + 8 * HIDDEN
        zero(total, HIDDEN * (1 + channels))
        _lowest(top, HIDDEN)
        for start in range(begin, end, BLOCK):
            count = min(BLOCK, end - start)
            at = source + 4 * (image * pixels + start) * channels
            for r in range(count):
                normalized(rows + 4 * r * channels, channels, at + 4 * r * channels, gain)
            for j in range(0, HIDDEN, TILE):
                product(rows, channels, keys + 4 * j * channels, TILE, channels, made + 4 * j, HIDDEN, count, 0)
            copy(highest, HIDDEN, top)
            for r in range(count):
                largest_of(highest, HIDDEN, highest, made + 4 * r * HIDDEN)
            exp_of_difference(factor, HIDDEN, top, highest)
            copy(top, HIDDEN, highest)
            scaled(total, HIDDEN, total, factor)
            scale_rows(sums, HIDDEN, channels, factor)
            for r in range(count):
                exp_of_difference(made + 4 * r * HIDDEN, HIDDEN, made + 4 * r * HIDDEN, top)
                plus(total, HIDDEN, total, made + 4 * r * HIDDEN)
            for j in range(0, channels, TILE):
                add_turned_product(made, HIDDEN, rows + 4 * j, channels, count, sums + 4 * j, channels, HIDDEN, 0)


def _scale_rows(builder, rows, count, channels, factors):
    """Each row by a factor of its own, none that is 1."""

    def row(i, _carried):
        one = load_one(builder, builder.add(factors, bytes_of(builder, i)))
        start = builder.add(rows, bytes_of(builder, builder.mul(i, channels)))
        changed = builder.fcmp_unordered("!=", one, F32(1.0))
        with builder.if_then(changed):
            factor = splat(builder, one)

            def column(j, _inner):
                at = builder.add(start, bytes_of(builder, j))
                store(builder, load(builder, at) * factor, at)
                return ()

            loop(builder, channels, LANES, column)
        return ()

    loop(builder, count, 1, row)


scale_rows = emitted(4, _scale_rows)


@Entry
def scatter(p):
    """Every pixel reads the sums by its query; the result is normalized and added to the pixel."""
    a = numba.carray(p, (ARGUMENTS,))
    counter, threads, room, each, items = a[0], a[1], a[2], a[3], a[4]
    source, channels, pixels, chunk, gain, queries = a[5], a[6], a[7], a[8], a[9], a[10]
    read, bias, gain_out, out = a[11], a[12], a[13], a[14]
    chunks = -(-pixels // chunk)
    rows = room + each * take(threads)
    made = rows + 4 * BLOCK * channels
    while True:
        item = take(counter)
        if item >= items:
            break
        image, begin = item // chunks, item % chunks * chunk
        end = min(begin + chunk, pixels)
        own = read + 4 * image * HIDDEN * channels
        for start in range(begin, end, BLOCK):
            count = min(BLOCK, end - start)
            at = source + 4 * (image * pixels + start) * channels
            to = out + 4 * (image * pixels + start) * channels
            for r in range(count):
                normalized(rows + 4 * r * channels, channels, at + 4 * r * channels, gain)
            for j in range(0, HIDDEN, TILE):
                product(rows, channels, queries + 4 * j * channels, TILE, channels, made + 4 * j, HIDDEN, count, 0)
            softmax32(made, count * (HIDDEN // 32))
            for j in range(0, channels, TILE):
                product(made, HIDDEN, own + 4 * j, channels, HIDDEN, rows + 4 * j, channels, count, 0)
            for r in range(count):
                here = 4 * r * channels
                normalized_plus(to + here, channels, rows + here, gain_out, bias, at + here)
