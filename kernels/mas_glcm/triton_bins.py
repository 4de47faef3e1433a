"""Triton backend: a level image first, then pairs counted one by one in bins.

`level_kernel` quantizes every pixel once into a *plane*: rows of ``width + border`` levels followed by rows that
reach as far as the offsets do. Everything outside the image or mask holds the level ``levels``, which counts into
a row and column of its own, so that `bins_kernel` tests nothing: a pair costs a load, an address and an increment.

Where the bins lie is a choice of the caller:

``"shared"``
    In shared memory (NVIDIA). Triton has no scatter there that all its versions compile to atomics, so the three
    instructions that touch the bins are PTX. An increment by one without a result becomes a single hardware
    instruction that adds up the lanes that meet at an address, so flat images are no worse than noise.
``"counts"``
    The counts themselves, in the second-level cache: any GPU.
``"scratch"``
    As ``"shared"`` but in global memory, so that the interpreter can run every line but those three.

Matrices too large for a program's bins are counted in parts, some rows each. `order_kernel` lists the pixels of
each part first, so that no program reads pixels whose rows belong to another.

Integer atomics join programs, so results do not depend on their order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _level


def declare(size: int) -> str:
    """PTX that sets aside ``size`` bytes of shared memory and yields their address."""
    return f"{{ .shared .align 16 .b8 bdg_fast_bins[{size}]; mov.u32 $0, bdg_fast_bins; }}"


@triton.jit
def _store(bins, at, value, SHARED: tl.constexpr):
    if SHARED:
        tl.inline_asm_elementwise(
            "st.shared.u32 [$1], $2; mov.u32 $0, 0;", "=r,r,r", [bins + 4 * at, value], tl.int32, is_pure=False, pack=1
        )
    else:
        tl.store(bins + at, value)


@triton.jit
def _read(bins, at, SHARED: tl.constexpr):
    if SHARED:
        return tl.inline_asm_elementwise(
            "ld.shared.u32 $0, [$1];", "=r,r", [bins + 4 * at], tl.int32, is_pure=False, pack=1
        )
    else:
        return tl.load(bins + at)


@triton.jit
def _increment(bins, at, inside, SHARED: tl.constexpr, MASKED: tl.constexpr):
    if SHARED and MASKED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p red.shared.add.u32 [$1], 1; mov.u32 $0, 0; }",
            "=r,r,r",
            [at, inside.to(tl.int32)],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    elif SHARED:
        tl.inline_asm_elementwise(
            "red.shared.add.u32 [$1], 1; mov.u32 $0, 0;", "=r,r", [at], tl.int32, is_pure=False, pack=1
        )
    elif MASKED:
        tl.atomic_add(bins + at, tl.full(at.shape, 1, bins.dtype.element_ty), mask=inside, sem="relaxed")
    else:
        tl.atomic_add(bins + at, tl.full(at.shape, 1, bins.dtype.element_ty), sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "plane", "pitch", "height", "width", "levels", "low", "scale",
        "stride_b", "stride_c", "stride_h", "mask_b", "mask_h",
    ]
)  # fmt: skip
def level_kernel(
    image,
    mask,
    thresholds,
    out,
    totals,
    plane,
    pitch,
    height,
    width,
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
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    """Levels of an image into ``out [images, plane]`` (uint8 or int16), ``levels`` where nothing counts.

    Adds the number of pixels of each part of ``ROWS`` levels to ``totals [images, PARTS]`` (zero before) if there
    are any. Grid: (blocks of ``P`` of the plane, images). ``height, width`` are the level image's.
    """
    b = tl.program_id(1).to(tl.int64)
    image += b * stride_b
    if MASKED:
        mask += b * mask_b
    index = tl.int64 if WIDE else tl.int32
    at = tl.program_id(0).to(index) * P + tl.arange(0, P)
    level = _level(
        image,
        mask,
        thresholds,
        (at // pitch).to(tl.int32),
        (at % pitch).to(tl.int32),
        at < plane,
        height,
        width,
        tl.cast(stride_c, index),
        tl.cast(stride_h, index),
        tl.cast(stride_w, index),
        tl.cast(mask_h, index),
        low,
        scale,
        levels,
        CHANNELS,
        LAPLACIAN,
        STEPS,
        MASKED,
    )
    for part in tl.static_range(PARTS):
        mine = (level >= part * ROWS) & (level < part * ROWS + ROWS)
        tl.atomic_add(totals + b * PARTS + part, tl.sum(mine.to(tl.int32)).to(totals.dtype.element_ty), sem="relaxed")
    level = tl.where(level < 0, levels, level)
    tl.store(out + b * plane + at, level.to(out.dtype.element_ty), mask=at < plane)


@triton.jit(do_not_specialize=["plane", "size", "levels"])
def order_kernel(
    level,
    totals,
    placed,
    order,
    plane,
    size,
    levels,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    """List the pixels of ``level [images, plane]`` by part of ``ROWS`` levels in ``order [images, size]``.

    ``totals [images, PARTS]`` tells how many there are, ``placed`` (zero before) how many are listed. Grid: (blocks
    of ``P`` of the first ``size``, images).
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * P + tl.arange(0, P)
    here = tl.load(level + b * plane + at, mask=at < size, other=0).to(tl.int32)
    here = tl.where(at < size, here, levels)
    order += b * size
    begin = tl.zeros((), totals.dtype.element_ty)
    for part in tl.static_range(PARTS):
        mine = (here >= part * ROWS) & (here < tl.minimum(part * ROWS + ROWS, levels))
        rank = tl.cumsum(mine.to(tl.int32), 0)
        found = tl.sum(mine.to(tl.int32)).to(totals.dtype.element_ty)
        place = begin + tl.atomic_add(placed + b * PARTS + part, found, sem="relaxed")
        tl.store(order + place + rank - 1, at.to(order.dtype.element_ty), mask=mine)
        begin += tl.load(totals + b * PARTS + part)


@triton.jit(
    do_not_specialize=["plane", "pitch", "height", "width", "splits", "pixels", "size", "groups", "side", "room"]
)  # fmt: skip
def bins_kernel(
    level,
    entries,
    starts,
    firsts,
    counts,
    scratch,
    totals,
    order,
    plane,
    pitch,
    height,
    width,
    splits,
    pixels,
    size,
    groups,
    side,
    room,
    DECLARE: tl.constexpr,
    SHARED: tl.constexpr,
    BINNED: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """Count pairs of ``level [images, plane]`` into ``counts [images, groups, side, side]`` (zero before).

    Grid: (images * splits, blocks of groups, parts of ``ROWS`` rows of the matrices: ``PARTS``, or one of all rows
    if that is 0). A program takes a share of the pixels of its part as `order_kernel` lists them, or ``pixels`` (a
    multiple of ``P``) of the first ``size`` of a plane; and the groups ``firsts[block] .. firsts[block + 1]``, whose
    offsets are ``entries[starts[block] .. starts[block + 1]]``, int32 ``(group within the block, dy, dx)``. Bins are
    in shared memory (``SHARED``, set aside by ``DECLARE``), in ``scratch`` (else, if ``BINNED``; ``room`` of them a
    program) or are the counts; they are cleared and emptied ``TILE`` at a time, no fewer than there are threads, or
    several would do the same.
    """
    program = tl.program_id(0)
    image = (program // splits).to(tl.int64)
    block = tl.program_id(1)
    first_row = tl.program_id(2) * ROWS
    level += image * plane
    group = tl.load(firsts + block)
    matrix = ROWS * side if PARTS else side * side
    used = (tl.load(firsts + block + 1) - group) * matrix
    counts += (image * groups + group) * side * side
    z = tl.arange(0, TILE)
    if SHARED:
        bins = tl.inline_asm_elementwise(DECLARE, "=r", [], tl.int32, is_pure=False, pack=1)
    elif BINNED:
        number = (program * tl.num_programs(1) + block) * tl.num_programs(2) + tl.program_id(2)
        bins = scratch + number.to(tl.int64) * room
    else:
        bins = counts
    if BINNED:
        for i in range(0, used, TILE):
            _store(bins, i + z, tl.zeros((TILE,), tl.int32), SHARED)
        tl.debug_barrier()

    split = (program % splits).to(tl.int64 if WIDE else tl.int32)
    first = split * pixels
    last = tl.minimum(first + pixels, size)
    if PARTS:
        totals += image * PARTS
        order += image * size
        for part in range(tl.program_id(2)):
            order += tl.load(totals + part)
        share = tl.cdiv(tl.load(totals + tl.program_id(2)), splits)
        first = split * share
        last = tl.minimum(first + share, tl.load(totals + tl.program_id(2)))
    lane = tl.arange(0, P)
    for start in range(first, last, P):
        base = level + start
        inside = lane < last - start
        if PARTS:
            listed = level + tl.load(order + start + lane, mask=inside, other=0).to(tl.int64)
            here = tl.load(listed).to(tl.int32) - first_row
        else:
            here = tl.load(base + lane).to(tl.int32)
        row = here * side
        if SHARED:
            row = bins + 4 * row
        for k in range(tl.load(starts + block), tl.load(starts + block + 1)):
            dy, dx = tl.load(entries + 3 * k + 1), tl.load(entries + 3 * k + 2)
            if (dy < height) & (dx < width) & (-dx < width):  # else no pixel has this neighbour
                shift = dy.to(tl.int64) * pitch + dx
                matrix_at = tl.load(entries + 3 * k) * matrix
                # elsewhere than in a list, added to the scalar first: the threads' addresses then differ by constants
                there = tl.load(listed + shift if PARTS else (base + shift) + lane).to(tl.int32)
                if SHARED:
                    _increment(bins, (row + 4 * matrix_at) + 4 * there, inside, SHARED, PARTS)
                else:
                    _increment(bins, row + matrix_at + there, inside, SHARED, PARTS)

    if BINNED:
        tl.debug_barrier()
        for i in range(0, used, TILE):
            found = _read(bins, i + z, SHARED)
            cell = (i + z) % matrix + first_row * side
            target = counts + (i + z) // matrix * side * side + cell
            valid = (found != 0) & (i + z < used) & (cell < side * side)
            tl.atomic_add(target, found.to(counts.dtype.element_ty), mask=valid, sem="relaxed")
