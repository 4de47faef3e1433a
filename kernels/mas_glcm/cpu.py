"""Compiled CPU backend: plans the work, spreads it over threads, combines the counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import cpu_kernels
from .cpu_threads import in_parallel
from .spec import Request, TooLarge, float_scale, make_plan

MIN_UPDATES_PER_THREAD = 1 << 20
"""Handing work to a thread costs some 20 to 50 us, the time of about a tenth of this many updates."""
UPDATES_PER_CELL = 2
"""A thread has matrices of its own to clear and to add up: a cell of them costs about as much as two updates."""
BLOCK_PIXELS = {True: 1 << 13, False: 1 << 16}
"""Pixels of the level image a thread holds at a time, by ``byte_rows``: they stay in the second-level cache, and
counting directly goes through them once for each offset."""
INT32_MAX = 2**31 - 1
MAX_PARTNERS = 16
"""Most code images of pairs of neighbours; each holds two bytes a pixel of the block."""


class Work(NamedTuple):
    """What to count, for the compiled loops: one entry a *code* (one neighbour, or a mirrored pair of them)."""

    byte_rows: bool  # else direct
    copies: int  # of a matrix, when counting directly
    table: np.ndarray  # uint8 [33 * 33, 32], the rows of pairs of levels
    reach: tuple[int, int]  # largest dy and |dx|
    offsets: np.ndarray  # int64 [codes, 2], (dy, dx) of the neighbour, or of the left one of two
    partner_dx: np.ndarray  # int64, columns from the left neighbour to the right; 0: there is only one
    code_index: np.ndarray  # int64 [codes], which of partner_dx
    group_of: np.ndarray  # int64 [codes], which accumulator
    groups: int
    group_offset: np.ndarray  # int64 [2, groups], (dy, |dx|) of a group's offsets where they agree in it


class Quantizer(NamedTuple):
    """Gray levels, for the compiled loops."""

    levels: int
    low: np.float32
    scale: np.float32
    laplacian: bool
    thresholds: np.ndarray  # int32, empty for equal steps of gray


class Uses(NamedTuple):
    """Where the counts of the groups go, for the compiled loops; int64 arrays."""

    groups: np.ndarray  # [uses], in the order of slots and within a slot of groups
    flips: np.ndarray
    times: np.ndarray
    starts: np.ndarray  # [slots + 1], which uses are a slot's
    totals: np.ndarray  # [slots]


@lru_cache(maxsize=256)
def _reach(request: Request) -> tuple[int, int]:
    return max(abs(dy) for dy, _ in request.offsets), max(abs(dx) for _, dx in request.offsets)


@lru_cache(maxsize=256)
def _make_work(request: Request, weighting: str, levels: int, height: int, width: int) -> tuple[Work, Uses, int]:
    """Plan the counts: drop offsets that leave a ``height x width`` image altogether, choose the way to count.

    Returns the work, its uses, and the updates a pixel.
    """
    plan = make_plan(request, weighting)
    direct: list[tuple[int, int, int, int]] = []  # dy, dx, partner, group
    paired: list[tuple[int, int, int, int]] = []
    partners = [0]
    for g, group in enumerate(plan.groups):
        inside = [(dy, dx) for dy, dx in group.offsets if dy < height and abs(dx) < width]
        for dy, dx in inside:
            direct.append((dy, dx, 0, g))
            apart = 2 * abs(dx)
            mirrored = dx != 0 and (dy, -dx) in inside
            if mirrored and apart not in partners and len(partners) < MAX_PARTNERS:
                partners.append(apart)
            if not mirrored or apart not in partners:
                paired.append((dy, dx, 0, g))
            elif dx < 0:
                paired.append((dy, dx, partners.index(apart), g))
    # ns a pixel: sorting, a code image, a lookup; a direct update (benchmarks/notes.md)
    byte_rows = levels <= cpu_kernels.ROW and 0.95 + 0.05 * len(partners) + 0.2 * len(paired) < 0.34 * len(direct)
    columns = np.array(paired if byte_rows else direct, np.int64).reshape(-1, 4)
    work = Work(
        byte_rows=byte_rows,
        copies=4 if levels <= 64 else 2 if levels <= 128 else 1,
        table=cpu_kernels.pair_rows(),
        reach=tuple(np.abs(columns[:, :2]).max(0, initial=0).tolist()),
        offsets=columns[:, :2].copy(),
        partner_dx=np.array(partners, np.int64),
        code_index=columns[:, 2].copy(),
        group_of=columns[:, 3].copy(),
        groups=len(plan.groups),
        group_offset=np.array([[min(abs(c), INT32_MAX) for c in group.offsets[0]] for group in plan.groups]).T.copy(),
    )
    of_slots: list[list[tuple[int, int, int]]] = [[] for _ in plan.totals]
    for g, group in enumerate(plan.groups):
        for slot, flip, times in group.uses:
            of_slots[slot].append((g, flip, times))
    groups, flips, times_of = np.array([use for uses in of_slots for use in uses], np.int64).T.copy()
    starts = np.cumsum([0, *map(len, of_slots)])
    return work, Uses(groups, flips, times_of, starts, np.array(plan.totals, np.int64)), len(direct)


def glcm(
    images: Tensor,
    mask: Tensor | None,
    request: Request,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: Sequence[int],
    normalize: bool,
) -> tuple[Tensor, int | None]:
    """See :func:`bdg_fast.kernels.mas_glcm.ops.glcm`, whose arguments these are.

    Returns the matrices and the index of the first image that is not finite, if any.
    """
    batch, _, height, width = images.shape
    inset = 2 if source == "laplacian" else 0
    h, w = max(height - inset, 0), max(width - inset, 0)
    weighting = "sum" if not normalize else "size" if mask is None else "pairs"
    dy, dx = _reach(request)
    work, uses, updates = _make_work(request, weighting, levels, min(h, dy + 1), min(w, dx + 1))
    lo, scale = (np.float32(value) for value in float_scale(low, high))
    quantizer = Quantizer(levels, lo, scale, source == "laplacian", np.array(thresholds, np.int32))
    if mask is None:
        pairs = np.maximum(np.array([[h], [w]]) - work.group_offset, 0).prod(0)
    else:
        pairs = np.full(work.groups, -1)
    side = cpu_kernels.ROW if work.byte_rows else levels + 1

    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.to(torch.float32)
    pixels = any_strides(images)
    masks = np.empty((1, 0, 0), np.bool_) if mask is None else mask.contiguous().numpy()
    mean = np.empty((batch if normalize else 1, request.slot_count, levels, levels), np.float32)
    total = np.empty((1 if normalize else batch, request.slot_count, levels, levels), np.int64)
    below, left = work.reach
    # positions in a block, and the counts of a part, are int32
    block = min(
        max(BLOCK_PIXELS[work.byte_rows] // max(w, 1), 2 * below, 1),
        max(h, 1),
        INT32_MAX // max(w + 2 * left, 1) - below,
    )
    part_rows = INT32_MAX // max(w * updates, 1)
    if block < 1 or part_rows < 1:
        raise TooLarge(
            f"impl='cpu' cannot count {updates} offsets that reach ({below}, {left}) pixels in an image of "
            f"{h} x {w}: 32 bits do not hold it; impl='reference' can"
        )

    each = max(MIN_UPDATES_PER_THREAD, UPDATES_PER_CELL * work.groups * side * side)
    threads = min(torch.get_num_threads(), 1 + batch * h * w * updates // each)
    splits = 1 if batch >= 4 * threads else threads
    splits = max(splits, -(-h // part_rows))
    if splits == 1:
        finite = np.ones(batch, np.bool_)

        def count_images(thread: int) -> None:
            cpu_kernels.count_and_combine(
                pixels,
                masks,
                batch * thread // threads,
                batch * (thread + 1) // threads,
                quantizer,
                work,
                block,
                uses,
                pairs,
                normalize,
                side,
                mean,
                total,
                finite,
            )

        in_parallel(threads, count_images)
    else:
        finite = _count_in_parts(
            pixels, masks, quantizer, work, block, uses, pairs, normalize, side, mean, total, threads, splits
        )
    if h * w == 0 and images.is_floating_point():  # no pixel was read
        finite = images.isfinite().flatten(1).all(1).numpy()
    bad = None if finite.all() else int(finite.argmin())
    return torch.from_numpy(mean if normalize else total), bad


def _count_in_parts(
    pixels: np.ndarray,
    masks: np.ndarray,
    quantizer: Quantizer,
    work: Work,
    block: int,
    uses: Uses,
    pairs: np.ndarray,
    normalize: bool,
    side: int,
    mean: np.ndarray,
    total: np.ndarray,
    threads: int,
    splits: int,
) -> np.ndarray:
    """Split each image's rows over the threads; returns which images are finite."""
    batch = pixels.shape[0]
    h = max(pixels.shape[2] - 2 * quantizer.laplacian, 0)
    parts = np.empty((splits, len(pairs), side, side), np.int32)
    finite = np.ones((batch, splits), np.bool_)
    for b in range(batch):
        mask = masks[b] if masks.size else masks[0]

        def count_rows(thread: int, b: int = b, mask: np.ndarray = mask) -> None:
            for part in range(splits * thread // threads, splits * (thread + 1) // threads):
                top, bottom = h * part // splits, h * (part + 1) // splits
                finite[b, part] = cpu_kernels.count(
                    pixels[b], mask, quantizer, work, min(block, max(bottom - top, 1)), top, bottom, parts[part]
                )

        in_parallel(threads, count_rows)
        slot = b if normalize else 0
        cpu_kernels.combine(parts, quantizer.levels, uses, pairs, normalize, mean[slot], total[b - slot])
    return np.asarray(finite.all(axis=1))


def any_strides(images: Tensor) -> np.ndarray:
    """The pixels without a copy, in the one array type the loops are compiled for: read-only, any strides."""
    array = images.detach().numpy()
    return np.lib.stride_tricks.as_strided(array, array.shape, array.strides, writeable=False)
