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

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

ROW = 32
"""Bytes of a one-hot row: the most levels that the byte-row kernel takes."""
VOID = ROW
"""Level of pixels outside the image or mask in the byte-row kernel: an all-zero row."""

LINE = 64
"""Bytes of a cache line; rows must not straddle two."""

_jit = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


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
def _gray16_row(image, y, low, scale, row):
    """16-bit luma of row ``y`` of ``image [C, H, W]`` into ``row``; returns whether all values are finite."""
    channels, _, width = image.shape
    bad = 0
    for x in range(width):
        value = image[0, y, x]
        bad |= _not_finite(value)
        row[x] = _value16(value, low, scale)
    if channels == 3:
        for x in range(width):
            green, blue = image[1, y, x], image[2, y, x]
            bad |= _not_finite(green) | _not_finite(blue)
            luma = np.uint32(19595) * np.uint32(row[x]) + np.uint32(32768)
            luma += np.uint32(38470) * np.uint32(_value16(green, low, scale))
            luma += np.uint32(7471) * np.uint32(_value16(blue, low, scale))
            row[x] = np.int32(np.uint32(luma) >> np.uint32(16))
    return bad == 0


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
        shift = work.offsets[k, 0] * stride + work.offsets[k, 1]
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
def count(image, mask, quantizer, work, block, top, bottom, counts):
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
    shifts = 2 * (work.offsets[:, 0] * stride + work.offsets[:, 1] + work.code_index * plane)
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
def _add_matrix(counts, factor, flip, out):
    """``out += factor * (counts or counts^T)``, rounding the product and the sum each for itself."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += factor * (counts[j, i] if flip else counts[i, j])


@_jit
def combine(parts, levels, uses, pairs, normalize, mean, total):
    """Reduce ``parts [parts, groups, side, side]`` of one image to its result.

    ``out[slot] += times * (C or C^T)``, divided by the number of pairs and of matrices if ``normalize``, in
    the order of ``uses``. ``pairs [groups]`` is negative where only the counts know it (masked). ``mean``
    (float32) or ``total`` (int64) ``[slots, levels, levels]`` receives the result.
    """
    several = parts.shape[0] > 1
    whole = np.empty((levels if several else 0, levels), np.int64)
    exact = np.empty((levels if normalize else 0, levels), np.float64)
    for slot in range(uses.totals.size):
        exact[:] = 0
        total_of_slot = total[slot] if not normalize else total[0, :0]
        total_of_slot[:] = 0
        for use in range(uses.starts[slot], uses.starts[slot + 1]):
            g, flip, times = uses.groups[use], uses.flips[use] != 0, uses.times[use]
            if several:
                whole[:] = parts[0, g, :levels, :levels]
                for part in range(1, parts.shape[0]):
                    _add_matrix(parts[part, g], np.int64(1), False, whole)
            if normalize:
                n = pairs[g]
                if n < 0:
                    n = whole.sum() if several else parts[0, g, :levels, :levels].sum()
                if n == 0:
                    continue
                weight = times / np.float64(uses.totals[slot] * n)
                if several:
                    _add_matrix(whole, weight, flip, exact)
                else:
                    _add_matrix(parts[0, g], weight, flip, exact)
            elif several:
                _add_matrix(whole, times, flip, total_of_slot)
            else:
                _add_matrix(parts[0, g], times, flip, total_of_slot)
        if normalize:
            mean[slot] = exact


@_jit
def count_and_combine(
    images, masks, first, last, quantizer, work, block, uses, pairs, normalize, side, means, totals, finite
):
    """`count` and `combine` for whole images ``first..last``."""
    counts = np.empty((1, work.groups, side, side), np.int32)
    for b in range(first, last):
        mask = masks[b] if masks.size else masks[0]
        rows = max(images.shape[2] - (2 if quantizer.laplacian else 0), 0)
        finite[b] = count(images[b], mask, quantizer, work, block, 0, rows, counts[0])
        slot = b if normalize else 0
        combine(counts, quantizer.levels, uses, pairs, normalize, means[slot], totals[b - slot])
