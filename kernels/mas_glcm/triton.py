"""Triton backend (CUDA and ROCm): plans the launches of the kernels in `triton_kernels.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .spec import Request, float_scale, make_plan

PER_COLUMN = 2
"""Offsets of a column: those of a mirrored pair, which have the same number of pairs."""
NOWHERE = 1 << 29
"""Row displacement of an absent offset: outside every image."""
THROUGH_SHARED = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
"""Older compilers repeat a cheap quantization in every lane, six times the instructions, unless it passes through
shared memory (benchmarks/notes.md)."""
COUNT_BYTES = 1 << 28
"""Counts held at a time; larger batches run in pieces."""


class Tables(NamedTuple):
    """What a request needs on the device."""

    columns: Tensor  # int32 [columns, 1 + 2 PER_COLUMN]
    uses: Tensor  # int32 [uses, 5]
    starts: Tensor  # int32 [slots + 1]
    totals: Tensor  # int64 [slots]
    groups: int


class Config(NamedTuple):
    """How `count_kernel` is specialized for a number of levels."""

    block: int  # pixels of a step
    columns: int  # columns of a program
    side: int  # rows and columns of a tile: levels rounded up to a power of two
    scatter: bool  # count one by one instead of by matrix products
    warps: int


def config_for(levels: int) -> Config:
    """Chosen by instructions per update without spills (``python -m benchmarks.codegen``).

    ``block * columns`` must not fall below the number of threads, or the compiler repeats the quantization
    in several of them.
    """
    side = max(16, triton.next_power_of_2(levels))
    if side <= 32:
        return Config(block=64, columns=128 // side, side=side, scatter=False, warps=4)
    return Config(block=128, columns=4, side=16, scatter=True, warps=4)


T = TypeVar("T")


def _kept(device: torch.device, make: Callable[[], T]) -> T:
    """Tensors on ``device`` that outlive the call, made on a thread of their own.

    Under ``torch.compile(mode="reduce-overhead")`` whatever this thread allocates lies in the memory pool of a
    CUDA graph, and the compiler raises where anything but the graph's outputs stays alive there.
    """
    if device.type != "cuda":
        return make()
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("mas_glcm must run once with the same settings before a CUDA graph captures it")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


@cache  # never evicted: a captured CUDA graph holds their addresses
def _tables(request: Request, weighting: str, columns: int, device: torch.device) -> Tables:
    """Tables on ``device``, made once: copying them would stall the stream and cannot be captured."""
    plan = make_plan(request, weighting)
    rows = []
    uses: list[list[list[int]]] = [[] for _ in plan.totals]
    for g, group in enumerate(plan.groups):
        reach = [(min(dy, NOWHERE), max(-NOWHERE, min(dx, NOWHERE))) for dy, dx in group.offsets]
        mirrored = sorted(reach, key=lambda offset: (offset[0], abs(offset[1])))
        for start in range(0, len(mirrored), PER_COLUMN):
            offsets = mirrored[start : start + PER_COLUMN]
            offsets += [(NOWHERE, 0)] * (PER_COLUMN - len(offsets))
            rows.append([g, *(component for offset in offsets for component in offset)])
        dy, dx = reach[0]
        for slot, flip, times in group.uses:
            uses[slot].append([g, flip, times, dy, abs(dx)])
    rows += [[0, *([NOWHERE, 0] * PER_COLUMN)]] * (-len(rows) % columns)
    starts = [sum(map(len, uses[:slot])) for slot in range(len(uses) + 1)]
    return _kept(
        device,
        lambda: Tables(
            torch.tensor(rows, dtype=torch.int32, device=device),
            torch.tensor([use for slot in uses for use in slot], dtype=torch.int32, device=device),
            torch.tensor(starts, dtype=torch.int32, device=device),
            torch.tensor(plan.totals, dtype=torch.int64, device=device),
            len(plan.groups),
        ),
    )


@cache
def _threshold_table(thresholds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Thresholds padded to ``2**steps - 1`` entries, and ``steps``."""
    steps = len(thresholds).bit_length()
    padded = [*thresholds, *[2**31 - 1] * (2**steps - 1 - len(thresholds))]
    return _kept(device, lambda: torch.tensor(padded or [0], dtype=torch.int32, device=device)), steps


def _pixels_per_program(size: int, programs_each: int, batch: int, block: int, device: torch.device) -> int:
    """Enough programs to fill the machine, yet enough pixels each to outweigh writing the matrices."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    splits = max(1, min(size // 2048, 8 * int(processors) // max(batch * programs_each, 1)))
    # a sum is exact below 2**24, and each pixel adds at most PER_COLUMN to it
    pixels = min(-(-size // splits), (1 << 24) // PER_COLUMN - block)
    return max(-(-pixels // block), 1) * block


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
) -> Tensor:
    """See :func:`bdg_fast.kernels.mas_glcm.ops.glcm`, whose arguments these are."""
    batch, channels, height, width = images.shape
    laplacian = source == "laplacian"
    h, w = (max(size - 2 * laplacian, 0) for size in (height, width))
    device = images.device
    weighting = "sum" if not normalize else "size" if mask is None else "pairs"
    config, cells = config_for(levels), 1024
    if device.type != "cuda":  # the interpreter pays by the operation, not by the element
        config, cells = config._replace(block=1024), 1 << 16
    tables = _tables(request, weighting, config.columns, device)
    shape = (batch, request.slot_count, levels, levels)
    out = torch.empty(shape, dtype=torch.float32 if normalize else torch.int64, device=device)
    if out.numel() == 0:
        return out
    table, steps = _threshold_table(tuple(thresholds), device)
    lo, scale = float_scale(low, high)
    column_blocks = len(tables.columns) // config.columns
    valid = images if mask is None else mask.contiguous().view(torch.uint8)
    reach = sum((size - 1) * abs(stride) for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True))

    step = max(1, COUNT_BYTES // (tables.groups * levels * levels * 8))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for b in range(0, batch, step):
            part = images[b : b + step]
            marks = valid[b : b + step]
            count = part.shape[0]
            counts = torch.zeros((count, tables.groups, levels, levels), dtype=torch.int64, device=device)
            if h * w:
                pixels = _pixels_per_program(h * w, column_blocks, count, config.block, device)
                splits = triton.cdiv(h * w, pixels)
                triton_kernels.count_kernel[(count * splits, column_blocks)](
                    part,
                    marks,
                    table,
                    tables.columns,
                    counts,
                    h,
                    w,
                    splits,
                    pixels,
                    tables.groups,
                    levels,
                    lo,
                    scale,
                    *part.stride(),
                    marks.stride(0),
                    marks.stride(1),
                    CHANNELS=channels,
                    LAPLACIAN=laplacian,
                    STEPS=steps,
                    MASKED=mask is not None,
                    WIDE=max(reach, h * w + pixels) >= 2**31,
                    P=config.block,
                    COLUMNS=config.columns,
                    SIDE=config.side,
                    SCATTER=config.scatter,
                    PER_COLUMN=PER_COLUMN,
                    THROUGH_SHARED=THROUGH_SHARED,
                    num_warps=config.warps,
                    num_stages=1,
                )
            pairs = counts.sum((2, 3)) if mask is not None else counts
            triton_kernels.combine_kernel[(count * request.slot_count, triton.cdiv(levels * levels, cells))](
                counts,
                pairs,
                tables.uses,
                tables.starts,
                tables.totals,
                out[b : b + step],
                h,
                w,
                tables.groups,
                request.slot_count,
                levels,
                MASKED=mask is not None,
                NORMALIZE=normalize,
                CELLS=cells,
                # one rounding per product, as the other backends have it
                num_warps=4,
                enable_fp_fusion=False,
            )
    return out
