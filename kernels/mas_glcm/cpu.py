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
from .spec import Group, Request, TooLarge, float_scale, make_plan

MIN_UPDATES_PER_THREAD = 1 << 20
"""Handing work to a thread costs some 20 to 50 us, the time of about a tenth of this many updates."""
UPDATES_PER_CELL = 2
"""A thread has matrices of its own to clear and to add up: a cell of them costs about as much as two updates."""
BLOCK_PIXELS = {True: 1 << 12, False: 1 << 16}
"""Pixels of the level image a thread holds at a time, by ``byte_rows``: they stay in the second-level cache, and
counting directly goes through them once for each offset."""
INT32_MAX = 2**31 - 1
MAX_PARTNERS = 16
"""Most code images of pairs of neighbours; each holds two bytes a pixel of the block."""
SAMPLES: dict[torch.dtype, np.ndarray] = {
    torch.uint8: np.empty(0, np.uint8),
    torch.uint16: np.empty(0, np.uint16),
    torch.float32: np.empty(0, np.float32),
}
"""What tells the compiled loops the type of pixels that they get by address."""


class Work(NamedTuple):
    """What a request comes to in images of any size beyond the reach of its offsets."""

    byte_rows: bool  # else direct
    partners: np.ndarray  # as in `cpu_kernels.Work`
    codes: np.ndarray  # int64 [4, codes]: dy, dx, index into partners, group
    reach: tuple[int, int]  # largest dy and |dx| of the codes
    updates: int  # a pixel
    groups: tuple[Group, ...]
    uses: np.ndarray  # int64 [4, uses], as in `cpu_kernels.Uses`
    starts: np.ndarray
    totals: np.ndarray


class Plan(NamedTuple):
    """Everything about a call that does not depend on pixels."""

    arrays: tuple[np.ndarray, ...]  # as `cpu_kernels._unpack` takes them
    side: int  # of the matrices counted, with room for pixels that do not count
    groups: int
    rows: int  # of the level image
    pixels: int
    updates: int  # an image
    each: int  # updates that pay for a thread
    parts: int  # that an image's rows are counted in at least, so that 32 bits hold the counts
    unused: np.ndarray  # stands for the result of the other type, float32 or int64


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    return cpu_kernels.pair_rows()


@lru_cache(maxsize=256)
def _reach(request: Request) -> tuple[int, int]:
    return max(abs(dy) for dy, _ in request.offsets), max(abs(dx) for _, dx in request.offsets)


@lru_cache(maxsize=256)
def _make_work(request: Request, weighting: str, levels: int, height: int, width: int) -> Work:
    """Drop offsets that leave a ``height x width`` image altogether, choose the way to count."""
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
    codes = np.array(paired if byte_rows else direct, np.int64).reshape(-1, 4).T.copy()
    below, left = np.abs(codes[:2]).max(1, initial=0).tolist()
    uses = [(g, int(flip), times, slot) for g, group in enumerate(plan.groups) for slot, flip, times in group.uses]
    uses.sort(key=lambda use: use[3])  # stable: the groups of a slot stay in order
    starts = np.searchsorted([slot for *_, slot in uses], np.arange(len(plan.totals) + 1))
    return Work(
        byte_rows=byte_rows,
        partners=np.array(partners, np.int64),
        codes=codes,
        reach=(below, left),
        updates=len(direct),
        groups=plan.groups,
        uses=np.array(uses, np.int64).T.copy(),
        starts=starts.astype(np.int64),
        totals=np.array(plan.totals, np.int64),
    )


@lru_cache(maxsize=256)
def _make_plan(
    request: Request,
    masked: bool,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: tuple[int, ...],
    normalize: bool,
    height: int,
    width: int,
) -> Plan:
    inset = 2 if source == "laplacian" else 0
    h, w = max(height - inset, 0), max(width - inset, 0)
    weighting = "sum" if not normalize else "pairs" if masked else "size"
    dy, dx = _reach(request)
    work = _make_work(request, weighting, levels, min(h, dy + 1), min(w, dx + 1))
    below, left = work.reach
    # positions in a block, and the counts of a part, are int32
    block = min(
        max(BLOCK_PIXELS[work.byte_rows] // max(w, 1), 2 * below, 1),
        max(h, 1),
        INT32_MAX // max(w + 2 * left, 1) - below,
    )
    part_rows = INT32_MAX // max(w * work.updates, 1)
    if block < 1 or part_rows < 1:
        raise TooLarge(
            f"impl='cpu' cannot count {work.updates} offsets that reach ({below}, {left}) pixels in an image of "
            f"{h} x {w}: 32 bits do not hold it; impl='reference' can"
        )
    side = cpu_kernels.ROW if work.byte_rows else levels + 1
    copies = 4 if levels <= 64 else 2 if levels <= 128 else 1
    groups = len(work.groups)
    return Plan(
        arrays=(
            np.array([levels, inset > 0, work.byte_rows, copies, below, left, h, block, side], np.int64),
            np.array(float_scale(low, high), np.float32),
            np.array(thresholds, np.int32),
            _table(),
            work.partners,
            work.codes,
            work.uses,
            work.starts,
            work.totals,
            np.array([-1 if masked else group.pairs(h, w) for group in work.groups], np.int64),
        ),
        side=side,
        groups=groups,
        rows=h,
        pixels=h * w,
        updates=h * w * work.updates,
        each=max(MIN_UPDATES_PER_THREAD, UPDATES_PER_CELL * groups * side * side),
        parts=-(-h // part_rows),
        unused=np.empty((1, request.slot_count, 0, 0), np.int64 if normalize else np.float32),
    )


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
    shape = images.shape
    batch, _, height, width = shape
    plan = _make_plan(request, mask is not None, levels, low, high, source, tuple(thresholds), normalize, height, width)
    if images.dtype not in SAMPLES:  # half types
        images = images.to(torch.float32)
    sample = SAMPLES[images.dtype]
    # addresses, and all in one call: an array object each would cost more than the counts of a small image
    valid = (0, 0, 0, 0) if mask is None else (mask.data_ptr(), *mask.stride())
    where = (images.data_ptr(), *shape, *images.stride(), *valid)
    out = np.empty((batch, request.slot_count, levels, levels), np.float32 if normalize else np.int64)
    mean, total = (out, plan.unused) if normalize else (plan.unused, out)

    updates = batch * plan.updates
    threads = 1 if updates < plan.each else min(torch.get_num_threads(), 1 + updates // plan.each)
    splits = max(1 if batch >= 4 * threads else threads, plan.parts)
    if splits > 1:
        bad = _count_in_parts(where, sample, plan, mean, total, threads, splits)
    elif threads == 1:
        bad = cpu_kernels.count_images(where, sample, 0, batch, mean, total, *plan.arrays)
    else:
        found = [-1] * threads

        def count_images(thread: int) -> None:
            first, last = batch * thread // threads, batch * (thread + 1) // threads
            found[thread] = cpu_kernels.count_images(where, sample, first, last, mean, total, *plan.arrays)

        in_parallel(threads, count_images)
        bad = next((b for b in found if b >= 0), -1)
    if plan.pixels == 0 and images.is_floating_point():  # no pixel was read
        finite = images.isfinite().flatten(1).all(1)
        bad = -1 if finite.all() else int(finite.to(torch.uint8).argmin())
    return torch.from_numpy(out), None if bad < 0 else bad


def _count_in_parts(
    where: tuple[int, ...],
    sample: np.ndarray,
    plan: Plan,
    mean: np.ndarray,
    total: np.ndarray,
    threads: int,
    splits: int,
) -> int:
    """Split each image's rows over the threads; returns the first image that is not finite, else -1."""
    batch, rows = where[1], plan.rows
    parts = np.empty((splits, plan.groups, plan.side, plan.side), np.int32)
    finite = np.ones((batch, splits), np.bool_)
    for b in range(batch):

        def count_rows(thread: int, b: int = b) -> None:
            for part in range(splits * thread // threads, splits * (thread + 1) // threads):
                top, bottom = rows * part // splits, rows * (part + 1) // splits
                finite[b, part] = cpu_kernels.count_rows(where, sample, b, top, bottom, parts[part], *plan.arrays)

        in_parallel(threads, count_rows)
        cpu_kernels.combine_parts(parts, plan.parts <= 1, b, mean, total, *plan.arrays)
    bad = ~finite.all(axis=1)
    return int(bad.argmax()) if bad.any() else -1
