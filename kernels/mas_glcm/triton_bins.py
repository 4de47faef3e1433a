"""Triton backend: a level image first, then pairs counted one by one in bins.

`level_kernel` quantizes every pixel once into a *plane*: rows of ``pitch`` levels (the image's width and a border, a
multiple of four) followed by rows that reach as far as the offsets do. Everything outside the image or mask holds the
level ``levels``, which counts into a row and column of its own, so that `bins_kernel` tests nothing.

`bins_kernel` reads planes by 32-bit words: four levels, or two where a level needs 16 bits. The neighbours of a word's
pixels are a word too, shifted together out of two aligned ones; from there a pair costs an extraction that is also
its address (one instruction on NVIDIA) and an increment. Where the bins lie is ``BINS``:

``"ptx"``, ``"gfx9"``
    In shared memory. Triton has no scatter there that all its versions compile to atomics, so the instructions that
    touch the bins are written out. On NVIDIA an increment by one without a result becomes a single hardware
    instruction that adds up the lanes that meet at an address, so flat images are no worse than noise.
``"memory"``
    As before but in global memory, so that the interpreter can run every line but those instructions.
``"counts"``
    The counts themselves, in the second-level cache: any GPU.

Matrices too large for a program's bins are counted in parts, some rows each. `order_kernel` lists the pixels of each
part first, so that no program reads pixels whose rows belong to another. If ``PACKED``, a word holds two bins of 16
bits, of rows half a part apart: half the parts, but increments of 65,536 too, and bins that overflow sooner.

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


def add(word: int, packed: bool) -> str:
    """PTX that makes a level in ``$1`` an address by ``$2, $3, $4`` and adds 1 there, or ``$5`` if ``packed``.

    Of ``word`` levels in ``$1``, ``$2`` selects one and multiplies it by 4.
    """
    product = {1: "mad.lo.u32", 2: "dp2a.lo.u32.u32", 4: "dp4a.u32.u32"}[word]
    unit = "$5" if packed else "1"
    return (
        f"{{ .reg .u32 a; {product} a, $1, $2, $3; add.u32 a, a, $4; red.shared.add.u32 [a], {unit}; mov.u32 $0, 0; }}"
    )


@triton.jit
def _set_aside(zero, DECLARE: tl.constexpr, BINS: tl.constexpr, ROOM: tl.constexpr):
    """Where shared bins begin; cleared, on gfx9."""
    if BINS == "ptx":
        return tl.inline_asm_elementwise(DECLARE, "=r", [], tl.int32, is_pure=False, pack=1)
    else:
        # what passes through shared memory sets it aside, from address 0 on; the compiler cannot see that it is 0
        room = tl.arange(0, ROOM)
        blank = tl.gather(room * zero, room ^ (ROOM // 2), 0)
        tl.debug_barrier()
        bins = tl.zeros((), tl.int32)
        _store(bins, room, blank, BINS)
        return bins


@triton.jit
def _store(bins, at, value, BINS: tl.constexpr):
    if BINS == "ptx":
        tl.inline_asm_elementwise(
            "st.shared.u32 [$1], $2; mov.u32 $0, 0;", "=r,r,r", [bins + 4 * at, value], tl.int32, is_pure=False, pack=1
        )
    elif BINS == "gfx9":
        tl.inline_asm_elementwise(
            "ds_write_b32 $1, $2", "=v,v,v", [bins + 4 * at, value], tl.int32, is_pure=False, pack=1
        )
    else:
        tl.store(bins + at, value)


@triton.jit
def _read(bins, at, BINS: tl.constexpr):
    if BINS == "ptx":
        return tl.inline_asm_elementwise(
            "ld.shared.u32 $0, [$1];", "=r,r", [bins + 4 * at], tl.int32, is_pure=False, pack=1
        )
    elif BINS == "gfx9":
        return tl.inline_asm_elementwise(
            "ds_read_b32 $0, $1\ns_waitcnt lgkmcnt(0)", "=v,v", [bins + 4 * at], tl.int32, is_pure=False, pack=1
        )
    else:
        return tl.load(bins + at)


@triton.jit
def _meet(BINS: tl.constexpr):
    """All threads' bins are up to date."""
    if BINS == "gfx9":  # the compiler counts only its own accesses
        tl.inline_asm_elementwise("s_waitcnt lgkmcnt(0)", "=v", [], tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def _row(own, half, side, PACKED: tl.constexpr):
    """First bin of row ``own`` of a part, and what to add there for a pair."""
    if PACKED:
        return tl.where(own < half, own, own - half) * side, tl.where(own < half, 1, 65536)
    else:
        return own * side, tl.full(own.shape, 1, tl.int32)


@triton.jit
def _increment(bins, word, row, unit, K: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, ADD: tl.constexpr):
    """Add ``unit`` (1 unless ``PACKED``) to the bin at ``row`` and the ``K``-th level, of ``BITS``, of ``word``.

    ``bins`` is a scalar: the address (in bytes) of shared bins, or a pointer.
    """
    if BINS == "ptx":
        tl.inline_asm_elementwise(
            ADD, "=r,r,r,r,r,r", [word, 4 << (8 * K), 4 * row, bins, unit], tl.int32, is_pure=False, pack=1
        )
    else:
        at = row + (word if BITS == 32 else (word >> (BITS * K)) & ((1 << BITS) - 1))
        if BINS == "gfx9":
            tl.inline_asm_elementwise(
                "ds_add_u32 $1, $2", "=v,v,v", [4 * at + bins, unit], tl.int32, is_pure=False, pack=1
            )
        else:
            tl.atomic_add(bins + at, unit.to(bins.dtype.element_ty), sem="relaxed")


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
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
):
    """Levels of an image into ``out [images, plane]`` (uint8 or int16), ``levels`` where nothing counts.

    Grid: (blocks of ``P`` of the plane, images); ``plane`` is a multiple of ``P``. ``height, width`` are the level
    image's. ``ALIGNED``: width and strides but ``stride_w`` are multiples of 4, so that four pixels are one load.
    """
    b = tl.program_id(1).to(tl.int64)
    index = tl.int64 if WIDE else tl.int32
    pitch = pitch // 4 * 4  # as it is anyhow: tells the compiler
    if ALIGNED:
        width = width // 4 * 4
        stride_b, stride_c, stride_h = stride_b // 4 * 4, stride_c // 4 * 4, stride_h // 4 * 4
    image += b * stride_b
    if MASKED:
        mask += b * mask_b
    four = tl.program_id(0).to(index) * (P // 4) + tl.arange(0, P // 4)
    y = (four // (pitch // 4)).to(tl.int32)
    x = (four % (pitch // 4)).to(tl.int32)[:, None] * 4 + tl.arange(0, 4)[None, :]
    level = _level(
        image,
        mask,
        thresholds,
        y[:, None],
        x,
        y[:, None] < height,
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
    level = tl.where(level < 0, levels, level)
    at = four[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out + b * (plane // 4 * 4) + at, level.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["plane", "size", "levels", "rows", "parts"])
def order_kernel(
    level,
    placed,
    order,
    plane,
    size,
    levels,
    rows,
    parts,
    FIELD: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
):
    """List the pixels of ``level [images, plane]`` by part of ``rows`` levels in ``order [images, parts, size]``.

    ``placed [images, parts]`` (zero before) tells how many there are. Grid: (blocks of ``P`` of the first ``size``,
    images). ``FIELD`` bits hold ``P``, so that there are at most ``63 // FIELD`` parts.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * P + tl.arange(0, P)
    here = tl.load(level + b * plane + at, mask=at < size, other=0).to(tl.int32)
    here = tl.where(at < size, here, levels)
    part = here // rows
    one = tl.where(here < levels, tl.full((P,), 1, tl.int64) << (part * FIELD).to(tl.int64), 0)
    found = tl.sum(one)  # of each part, a field each
    rank = (((tl.cumsum(one, 0) - one) >> (part * FIELD).to(tl.int64)) & ((1 << FIELD) - 1)).to(at.dtype)
    placed += b * parts
    for k in range(parts):
        mine = ((found >> tl.cast(FIELD * k, tl.int64)) & ((1 << FIELD) - 1)).to(at.dtype)
        rank += tl.where(part == k, tl.atomic_add(placed + k, mine, sem="relaxed"), 0)
    tl.store(order + (b * parts + part) * size + rank, at, mask=here < levels)


@triton.jit(
    do_not_specialize=[
        "plane", "pitch", "splits", "pixels", "size", "groups", "blocks", "parts", "side", "half", "room", "zero",
    ]
)  # fmt: skip
def bins_kernel(
    level,
    words,
    entries,
    starts,
    counts,
    scratch,
    placed,
    order,
    plane,
    pitch,
    splits,
    pixels,
    size,
    groups,
    blocks,
    parts,
    side,
    half,
    room,
    zero,
    DECLARE: tl.constexpr,
    ADD: tl.constexpr,
    BINS: tl.constexpr,
    PACKED: tl.constexpr,
    PARTS: tl.constexpr,
    WORD: tl.constexpr,
    WIDE: tl.constexpr,
    ROOM: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """Count pairs of ``level [images, plane]`` into ``counts [images, groups, side, side]``.

    Counts are written if ``splits == 1`` and there are bins, else added to: zero before. Grid: (images * splits,
    blocks, parts). A program takes the groups ``groups * block // blocks`` to the next block's, and ``pixels`` (a
    multiple of ``P``) of the first ``size`` of a plane, which it reads by ``words`` of ``WORD`` levels; if ``PARTS``
    (of which there are ``parts``), its share of the pixels of its part as `order_kernel` lists them. A part has
    ``half`` rows, twice that if ``PACKED``. The offsets of group ``g`` are ``entries[starts[g] .. starts[g + 1]]``,
    int32 ``(g, dy, dx)``, all within the image. Bins are ``room`` words of a program (set aside by ``DECLARE``, or of
    ``ROOM``, or in ``scratch``), cleared and emptied ``TILE`` at a time, no fewer than there are threads, or several
    would do the same. A 16-bit bin holds 65,535 pairs: ``pixels`` times offsets must not exceed it.
    """
    program = tl.program_id(0)
    image = (program // splits).to(tl.int64)
    block = tl.program_id(1)
    first_group = (groups * block) // blocks
    last_group = (groups * (block + 1)) // blocks
    first_row = tl.program_id(2) * (2 * half if PACKED else half)
    matrix = half * side  # in words
    used = (last_group - first_group) * matrix
    counts += (image * groups + first_group) * side * side
    z = tl.arange(0, TILE)
    BINNED: tl.constexpr = BINS != "counts"
    SHARED: tl.constexpr = BINS == "ptx" or BINS == "gfx9"
    if SHARED:
        bins = _set_aside(zero, DECLARE, BINS, ROOM)
    elif BINNED:
        number = (program * tl.num_programs(1) + block) * tl.num_programs(2) + tl.program_id(2)
        bins = scratch + number.to(tl.int64) * room
    else:
        bins = counts
    if BINNED:
        if BINS != "gfx9":
            for i in range(0, room, TILE):
                _store(bins, i + z, tl.zeros((TILE,), tl.int32), BINS)
        _meet(BINS)

    index = tl.int64 if WIDE else tl.int32
    split = (program % splits).to(index)
    begin, end = tl.load(starts + first_group), tl.load(starts + last_group)
    if PARTS:
        level += image * plane
        order += (image * parts + tl.program_id(2)) * size
        listed = tl.load(placed + image * parts + tl.program_id(2)).to(index)
        share = tl.cdiv(listed, splits)
        lane = tl.arange(0, P)
        for start in range(split * share, tl.minimum(split * share + share, listed), P):
            inside = lane < tl.minimum(split * share + share, listed) - start
            pixel = tl.load(order + start + lane, mask=inside, other=0)
            row, unit = _row(tl.load(level + pixel).to(tl.int32) - first_row, half, side, PACKED)
            row = tl.where(inside, row, matrix)  # where nobody looks: nothing branches
            for k in range(begin, end):
                shift = tl.load(entries + 3 * k + 1).to(tl.int64) * pitch + tl.load(entries + 3 * k + 2)
                there = tl.load((level + shift) + pixel).to(tl.int32)
                _increment(bins, there, row, unit, 0, 32, BINS, ADD)
    else:
        BITS: tl.constexpr = 32 // WORD
        words += image * (plane // WORD)
        lane = tl.arange(0, P // WORD)
        for start in range(split * pixels, tl.minimum(split * pixels + pixels, size), P):
            here = tl.load(words + start // WORD + lane)
            for k in range(begin, end):
                to = start + tl.load(entries + 3 * k + 1).to(index) * pitch + tl.load(entries + 3 * k + 2)
                # added to the scalar first: the threads' addresses then differ by constants
                near = (words + to // WORD) + lane
                low, high = tl.load(near).to(tl.uint32), tl.load(near + 1).to(tl.uint32)
                joined = (high.to(tl.uint64) << 32) | low
                there = (joined >> (to % WORD * BITS).to(tl.uint64)).to(tl.uint32).to(tl.int32)
                group_at = (tl.load(entries + 3 * k) - first_group) * matrix
                group_bins = bins + (4 * group_at if SHARED else group_at)
                for n in tl.static_range(WORD):
                    row, unit = _row((here >> (BITS * n)) & ((1 << BITS) - 1), half, side, PACKED)
                    _increment(group_bins, there, row, unit, n, BITS, BINS, ADD)

    if BINNED:
        _meet(BINS)
        counts += first_row * side
        cells = side * side - first_row * side  # from there to the end of a matrix
        if PACKED:
            for group in range(last_group - first_group):
                for i in range(0, matrix, TILE):
                    found = _read(bins, group * matrix + i + z, BINS)
                    valid = z < tl.minimum(matrix, cells) - i
                    _flush((counts + i) + z, found & 0xFFFF, valid, splits)
                    valid = z < tl.minimum(matrix, cells - matrix) - i
                    _flush((counts + (matrix + i)) + z, (found >> 16) & 0xFFFF, valid, splits)
                counts += side * side
        else:
            if PARTS:
                used = tl.minimum(used, cells)
            for i in range(0, used, TILE):
                _flush((counts + i) + z, _read(bins, i + z, BINS), z < used - i, splits)


@triton.jit
def _flush(target, found, valid, splits):
    found = found.to(target.dtype.element_ty)
    if splits == 1:
        tl.store(target, found, mask=valid)
    else:
        tl.atomic_add(target, found, mask=valid & (found != 0), sem="relaxed")
