"""Compiled CPU loops (numba), one call per thread; `cpu.py` plans and calls them.

Two ways to count, for a block of pixels at a time:

*Direct*: one offset after the other, ``hist[level(p), level(p + d)] += 1``, in up to four copies of the matrix so
that neighbouring pixels that share a cell do not wait for each other's sum.

*Byte rows*, for many offsets of up to 32 levels: pixels are sorted by gray level first (a counting sort), so that
all counts of one matrix row are made together and stay in registers. The one-hot row of a level is 32 bytes, so
the rows of the neighbours of up to 127 pixels add up in one vector register. Two neighbours at once come from a
table of row sums over pairs of levels.

The level image carries a border wide enough for every offset, filled with a level of its own that counts
nothing, so that no pixel needs a test: neither at the border nor at masked pixels.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, call-arg"
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_jit import jit as _jit
from .cpu_levels import Quantizer, image_and_mask, level_rows

ROW = 32
"""Bytes of a one-hot row: the most levels that the byte-row kernel takes."""
VOID = ROW
"""Level of pixels outside the image or mask in the byte-row kernel: an all-zero row."""

LINE = 64
"""Bytes of a cache line; rows must not straddle two."""


class Work(NamedTuple):
    """What to count: one entry a *code* (one neighbour, or a mirrored pair of them)."""

    byte_rows: bool  # else direct
    copies: int  # of a matrix, when counting directly
    table: np.ndarray  # uint8 [33 * 33, 32], the rows of pairs of levels
    reach: tuple[int, int]  # largest dy and |dx|
    dy: np.ndarray  # int64 [codes], of the neighbour, or of the left one of two
    dx: np.ndarray  # int64 [codes]
    partner_dx: np.ndarray  # int64, columns from the left neighbour to the right; 0: there is only one
    code_index: np.ndarray  # int64 [codes], which of partner_dx
    group_of: np.ndarray  # int64 [codes], which accumulator


class Uses(NamedTuple):
    """Where the counts of the groups go; int64 arrays."""

    groups: np.ndarray  # [uses], in the order of slots and within a slot of groups
    flips: np.ndarray  # [uses]
    times: np.ndarray  # [uses]
    slots: np.ndarray  # [uses]
    starts: np.ndarray  # [slots + 1], which uses are a slot's
    totals: np.ndarray  # [slots]


def pair_rows() -> np.ndarray:
    """Byte rows of all pairs of levels: uint8 ``[33 * 33, 32]``, row ``33 a + b`` is ``E[a] + E[b]``."""
    one_hot = np.eye(ROW + 1, ROW, dtype=np.uint8)
    rows = (one_hot[:, None] + one_hot[None, :]).reshape(-1, ROW)
    room = np.empty(rows.size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    aligned = room[start : start + rows.size].reshape(rows.shape)
    aligned[:] = rows
    return aligned


def _load(builder, address, type_, align):
    return builder.load(builder.inttoptr(address, type_.as_pointer()), align=align)


def _make_add_neighbours(codes):
    @intrinsic
    def add_neighbours(typingctx, first, last, table, images, targets):
        """``targets[k][0:32] (int32) += sum of rows table[images[k][q]]`` over the pixels ``q``.

        Pixels are int32 at addresses ``first..last`` (at least one, at most 127, so that bytes suffice);
        ``images[k]`` is the address of uint16 byte offsets into the table of uint8 rows.
        """

        def codegen(context, builder, signature, args):
            first, last, table, images, targets = args
            intp, bytes_ = ir.IntType(64), ir.VectorType(ir.IntType(8), ROW)
            entry = builder.basic_block
            loop = builder.append_basic_block("pixels")
            done = builder.append_basic_block("pixels.done")
            builder.branch(loop)
            builder.position_at_end(loop)
            cursor = builder.phi(intp)
            sums = [builder.phi(bytes_) for _ in range(codes)]
            pixel = builder.zext(_load(builder, cursor, ir.IntType(32), 4), intp)
            shift = builder.shl(pixel, ir.Constant(intp, 1))
            added = []
            for k, total in enumerate(sums):
                at = builder.add(builder.extract_value(images, k), shift)
                code = builder.zext(_load(builder, at, ir.IntType(16), 2), intp)
                added.append(builder.add(total, _load(builder, builder.add(table, code), bytes_, ROW)))
            following = builder.add(cursor, ir.Constant(intp, 4))
            cursor.add_incoming(first, entry)
            cursor.add_incoming(following, loop)
            for total, sum_ in zip(sums, added, strict=True):
                total.add_incoming(ir.Constant(bytes_, None), entry)
                total.add_incoming(sum_, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, last), loop, done)
            builder.position_at_end(done)
            wide = ir.VectorType(ir.IntType(32), ROW)
            for k, sum_ in enumerate(added):
                target = builder.inttoptr(builder.extract_value(targets, k), wide.as_pointer())
                builder.store(builder.add(builder.load(target, align=4), builder.zext(sum_, wide)), target, align=4)
            return context.get_dummy_value()

        return types.void(first, last, table, images, targets), codegen

    return add_neighbours


_add_neighbours_1, _add_neighbours_4 = _make_add_neighbours(1), _make_add_neighbours(4)


@_jit
def _pair_codes(flat, partner_dx, codes):
    """Byte offsets into the table of pair rows: of each pixel with its ``partner_dx``-th right neighbour.

    ``codes[-1]`` is scratch.
    """
    scaled = codes[-1]
    for q in range(flat.size):
        scaled[q] = flat[q] * np.uint16(ROW)
    for c in range(partner_dx.size):
        right, out = scaled[partner_dx[c] :], codes[c]
        if partner_dx[c] == 0:  # no partner: paired with the level that counts nothing
            for q in range(flat.size):
                out[q] = scaled[q] * np.uint16(ROW + 1) + np.uint16(VOID * ROW)
        else:
            for q in range(flat.size - partner_dx[c]):
                out[q] = scaled[q] * np.uint16(ROW + 1) + right[q]


@_jit
def _sort_pixels(flat, stride, left, rows, columns, order, starts):
    """Positions in ``flat`` of the ``rows x columns`` pixels, by level: level ``i`` from ``starts[i]``."""
    starts[:] = 0
    for y in range(rows):
        begin = y * stride + left
        line = flat[begin : begin + columns]
        for x in range(columns):
            starts[4 * np.intp(line[x]) + (x & 3) + 2] += 1
    for i in range(2, starts.size):
        starts[i] += starts[i - 1]
    for y in range(rows):
        begin = y * stride + left
        line = flat[begin : begin + columns]
        for x in range(columns):
            # counted up one entry late, so that in the end each entry is its own key's start
            key = 4 * np.intp(line[x]) + (x & 3) + 1
            place = starts[key]
            order[place] = begin + x
            starts[key] = place + 1


@_jit
def _count_byte_rows(flat, order, starts, levels, work, shifts, codes, counts):
    """Add the neighbours of sorted pixels to ``counts [groups, 32, 32]`` (int32)."""
    _pair_codes(flat, work.partner_dx, codes)
    table, here, target = work.table.ctypes.data, codes.ctypes.data, counts.ctypes.data
    of_group, of_level = counts.strides[0], counts.strides[1]
    for i in range(levels):
        line = target + i * of_level
        end = starts[4 * i + 4]
        for begin in range(starts[4 * i], end, 127):
            first = order.ctypes.data + 4 * begin
            last = order.ctypes.data + 4 * min(begin + 127, end)
            k = 0
            while k + 4 <= shifts.size:
                images = (here + shifts[k], here + shifts[k + 1], here + shifts[k + 2], here + shifts[k + 3])
                g = work.group_of
                lines = (
                    line + of_group * g[k],
                    line + of_group * g[k + 1],
                    line + of_group * g[k + 2],
                    line + of_group * g[k + 3],
                )
                _add_neighbours_4(first, last, table, images, lines)
                k += 4
            while k < shifts.size:
                at = line + of_group * work.group_of[k]
                _add_neighbours_1(first, last, table, (here + shifts[k],), (at,))
                k += 1


@_jit
def _count_offset(flat, stride, left, rows, columns, shift, side, hist):
    """Add the pairs of the pixels with those ``shift`` further on to ``hist [copies, side * side]`` (int32)."""
    copies, pitch = hist.shape[0], np.uint32(side)
    h0, h1, h2, h3 = hist[0], hist[1 % copies], hist[2 % copies], hist[3 % copies]
    whole = columns - columns % 4
    for y in range(rows):
        begin = y * stride + left
        here = flat[begin : begin + columns]
        there = flat[begin + shift : begin + shift + columns]
        for x in range(0, whole, 4):
            h0[np.uint32(here[x]) * pitch + there[x]] += np.int32(1)
            h1[np.uint32(here[x + 1]) * pitch + there[x + 1]] += np.int32(1)
            h2[np.uint32(here[x + 2]) * pitch + there[x + 2]] += np.int32(1)
            h3[np.uint32(here[x + 3]) * pitch + there[x + 3]] += np.int32(1)
        for x in range(whole, columns):
            h0[np.uint32(here[x]) * pitch + there[x]] += np.int32(1)


@_jit
def _count_direct(flat, stride, left, rows, columns, work, hist, counts):
    """Add all pairs to ``counts [groups, side, side]`` (int32); ``hist`` is scratch for the copies, zero."""
    side = counts.shape[1]
    for k in range(work.group_of.size):
        group = work.group_of[k]
        shift = work.dy[k] * stride + work.dx[k]
        target = counts[group].reshape(1, side * side)
        if hist.size == 0:  # one copy: the matrix itself
            _count_offset(flat, stride, left, rows, columns, shift, side, target)
            continue
        _count_offset(flat, stride, left, rows, columns, shift, side, hist)
        if k + 1 == work.group_of.size or work.group_of[k + 1] != group:
            for copy in range(hist.shape[0]):
                for cell in range(side * side):
                    target[0, cell] += hist[copy, cell]
            hist[:] = 0


@_jit
def _count(image, mask, quantizer, work, block, top, bottom, counts):
    """Count the pairs that start in level-image rows ``top..bottom`` into ``counts [groups, side, side]``.

    ``image [C, H, W]``; ``mask [H, W]`` or empty; ``counts`` int32, overwritten. Returns whether all values are
    finite.
    """
    inset = 1 if quantizer.laplacian else 0
    columns = max(image.shape[2] - 2 * inset, 0)
    below, left = work.reach
    stride = columns + 2 * left
    level = np.empty((block + below, stride), np.uint16)
    gray = np.empty((4, image.shape[2]), np.int32)
    plane = level.size
    shifts = 2 * (work.dy * stride + work.dx + work.code_index * plane)
    codes = np.empty((work.partner_dx.size + 1 if work.byte_rows else 0, plane), np.uint16)
    void = VOID if work.byte_rows else quantizer.levels
    order = np.empty(block * columns if work.byte_rows else 0, np.int32)
    starts = np.empty(4 * (void + 1) + 2, np.int64)
    copies = 0 if work.byte_rows or work.copies == 1 else work.copies
    hist = np.zeros((copies, counts.shape[1] * counts.shape[2]), np.int32)
    counts[:] = 0
    finite = True
    for start in range(top, bottom, block):
        rows = min(block, bottom - start)
        here = level[: rows + below]
        finite &= level_rows(image, mask, quantizer, void, start, here, left, gray)
        if work.byte_rows:
            _sort_pixels(here.ravel(), stride, left, rows, columns, order, starts)
            _count_byte_rows(here.ravel(), order, starts, quantizer.levels, work, shifts, codes, counts)
        else:
            _count_direct(here.ravel(), stride, left, rows, columns, work, hist, counts)
    return finite


@_jit
def _add_row(counts, i, factor, flip, out):
    """``out += factor * row i of (counts or counts^T)``, rounding the product and the sum each for itself."""
    for j in range(out.size):
        out[j] += factor * (counts[j, i] if flip else counts[i, j])


@_jit
def _weigh_row(counts, i, factor, flip, out):
    """As `_add_row` to zeros, rounded once to float32."""
    for j in range(out.size):
        out[j] = np.float32(factor * (counts[j, i] if flip else counts[i, j]))


@_jit
def _combine(parts, levels, uses, pairs, normalize, mean, total):
    """Reduce ``parts [parts, groups, side, side]`` of one image to its result.

    ``out[slot] += times * (C or C^T)``, divided by the number of pairs and of matrices if ``normalize``, in
    the order of ``uses``. ``pairs [groups]`` is negative where only the counts know it (masked). ``mean``
    (float32) or ``total`` (int64) ``[slots, levels, levels]`` receives the result.
    """
    several = parts.shape[0] > 1
    whole = np.empty(levels, np.int64)
    exact = np.empty(levels, np.float64)
    weights = np.empty(uses.groups.size if normalize else 0, np.float64)
    for use in range(weights.size):
        g = uses.groups[use]
        n = pairs[g]
        if n < 0:
            n = np.int64(0)
            for part in range(parts.shape[0]):
                n += parts[part, g, :levels, :levels].sum()
        weights[use] = uses.times[use] / np.float64(uses.totals[uses.slots[use]] * n) if n else 0.0
    for slot in range(uses.totals.size):
        first, last = uses.starts[slot], uses.starts[slot + 1]
        for i in range(levels):  # by rows: a whole matrix of float64 would be fresh memory each time
            if normalize and last - first == 1 and not several:
                _weigh_row(parts[0, uses.groups[first]], i, weights[first], uses.flips[first] != 0, mean[slot, i])
                continue
            exact[:] = 0
            if not normalize:
                total[slot, i] = 0
            for use in range(first, last):
                g, flip = uses.groups[use], uses.flips[use] != 0
                if normalize and weights[use] == 0:
                    continue
                if several:
                    whole[:] = 0
                    for part in range(parts.shape[0]):
                        _add_row(parts[part, g], i, np.int64(1), flip, whole)
                    if normalize:
                        exact += weights[use] * whole
                    else:
                        total[slot, i] += uses.times[use] * whole
                elif normalize:
                    _add_row(parts[0, g], i, weights[use], flip, exact)
                else:
                    _add_row(parts[0, g], i, uses.times[use], flip, total[slot, i])
            if normalize:
                mean[slot, i] = exact


@_jit
def _unpack(numbers, ends, thresholds, table, partner_dx, codes, uses, starts, totals, pairs):
    """What `cpu.Plan` packed: few arguments, of simple types, are what makes a call cheap."""
    levels, laplacian, byte_rows, copies = numbers[0], numbers[1] != 0, numbers[2] != 0, numbers[3]
    quantizer = Quantizer(levels, ends[0], ends[1], laplacian, thresholds)
    work = Work(byte_rows, copies, table, (numbers[4], numbers[5]), codes[0], codes[1], partner_dx, codes[2], codes[3])
    return quantizer, work, Uses(uses[0], uses[1], uses[2], uses[3], starts, totals), pairs


@_jit
def count_images(where, sample, first, last, mean, total, *plan):
    """Results of whole images ``first..last``; returns the first that is not finite, else -1.

    ``mean`` (float32) or ``total`` (int64) ``[B, slots, levels, levels]`` receives them, whichever is not empty.
    """
    quantizer, work, uses, pairs = _unpack(*plan)
    rows, block, side = plan[0][6], plan[0][7], plan[0][8]
    normalize = mean.size > 0
    counts = np.empty((1, pairs.size, side, side), np.int32)
    bad = -1
    for b in range(first, last):
        image, mask = image_and_mask(where, sample, b)
        if not _count(image, mask, quantizer, work, block, 0, rows, counts[0]) and bad < 0:
            bad = b
        _combine(counts, quantizer.levels, uses, pairs, normalize, mean[b % len(mean)], total[b % len(total)])
    return bad


@_jit
def count_rows(where, sample, b, top, bottom, counts, *plan):
    """`_count` level-image rows ``top..bottom`` of image ``b``."""
    quantizer, work, _, _ = _unpack(*plan)
    image, mask = image_and_mask(where, sample, b)
    return _count(image, mask, quantizer, work, min(plan[0][7], max(bottom - top, 1)), top, bottom, counts)


@_jit
def combine_parts(parts, fits, b, mean, total, *plan):
    """`_combine` what `count_rows` counted of image ``b``; ``fits``: 32 bits hold the sum of the parts."""
    quantizer, _, uses, pairs = _unpack(*plan)
    if fits:
        whole = parts[0].ravel()
        for part in range(1, parts.shape[0]):
            more = parts[part].ravel()
            for cell in range(whole.size):
                whole[cell] += more[cell]
        parts = parts[:1]
    _combine(parts, quantizer.levels, uses, pairs, mean.size > 0, mean[b % len(mean)], total[b % len(total)])
