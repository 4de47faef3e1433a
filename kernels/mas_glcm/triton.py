"""Triton backend (CUDA and ROCm): plans the launches of the kernels in `triton_bins.py` and `triton_kernels.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_bins, triton_kernels
from .spec import Plan, Request, float_scale, make_plan
from .triton_tables import PER_COLUMN, blocks_for, columns_for, tables_for, threshold_table

VARIANT: str | None = None
"""Overrides :func:`variant_for`, for tests and benchmarks: ``"shared"``, ``"counts"``, ``"scratch"`` (the bins of
`triton_bins.py`) or ``"product"``."""

THROUGH_SHARED = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
"""Older compilers repeat a cheap quantization in every lane, six times the instructions, unless it passes through
shared memory (benchmarks/notes.md)."""
BINS = 11 * 1024
"""Most bins (int32) of a program: static shared memory ends at 48 KiB, of which the driver keeps one."""
MOST_GROUPS = 32
"""Most groups of a program."""
HELD_BYTES = 1 << 28
"""Counts, and levels, held at a time; larger batches run in pieces."""


class ProductConfig(NamedTuple):
    """How `product_kernel` is specialized for a number of levels."""

    block: int  # pixels of a step
    columns: int  # columns of a program
    side: int  # rows and columns of a tile: levels rounded up to a power of two
    warps: int


class BinsConfig(NamedTuple):
    """How `bins_kernel` is specialized for a number of levels."""

    groups: int  # most groups of a program
    parts: int = 0  # of a matrix too large for a program; 0: whole
    rows: int = 0  # of a part
    block: int = 4096  # pixels of a step
    tile: int = 1024  # bins cleared and emptied at a time
    warps: int = 8


def variant_for(levels: int, device: torch.device) -> str:
    """The way to count, by instructions per update (``python -m benchmarks.codegen``; benchmarks/notes.md)."""
    if VARIANT is not None:
        return VARIANT
    if device.type != "cuda":
        return "scratch"
    if torch.version.hip is None:
        return "shared"
    return "product" if levels <= 32 else "counts"


def product_config(levels: int) -> ProductConfig:
    """Chosen by instructions per update without spills.

    ``block * columns`` must not fall below the number of threads, or the compiler repeats the quantization
    in several of them.
    """
    side = max(16, triton.next_power_of_2(levels))
    return ProductConfig(block=64, columns=4, side=side, warps=4)


def bins_config(levels: int, variant: str) -> BinsConfig:
    """As many whole matrices as fit the bins of a program, or as many rows of one."""
    side = levels + 1
    if variant == "counts":
        return BinsConfig(groups=MOST_GROUPS)
    if side * side <= BINS:
        return BinsConfig(groups=min(BINS // (side * side), MOST_GROUPS))
    parts = -(-levels // (BINS // side))
    return BinsConfig(groups=1, parts=parts, rows=-(-levels // parts))


def bins_of(levels: int, config: BinsConfig) -> int:
    """Bins (int32) of a program: those in use are cleared a tile at a time."""
    return -(-config.groups * (config.rows or levels + 1) * (levels + 1) // config.tile) * config.tile


@lru_cache(maxsize=256)
def _reach(plan: Plan, height: int, width: int) -> tuple[int, int]:
    """Largest ``dy`` and ``|dx|`` of the offsets that stay within a ``height x width`` image for some pixel."""
    inside = [(dy, abs(dx)) for group in plan.groups for dy, dx in group.offsets if dy < height and abs(dx) < width]
    return max((dy for dy, _ in inside), default=0), max((dx for _, dx in inside), default=0)


def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 2


def _pixels_per_program(size: int, programs_each: int, batch: int, block: int, most: int, device: torch.device) -> int:
    """Enough programs to fill the machine, yet enough pixels each to outweigh writing the matrices."""
    splits = max(1, min(size // 2048, 16 * _processors(device) // max(batch * programs_each, 1)))
    pixels = min(-(-size // splits), most)
    return max(-(-pixels // block), 1) * block


class Work(NamedTuple):
    """One call, for the launchers: everything but the piece of the batch."""

    request: Request
    weighting: str
    plan: Plan
    levels: int
    low: float
    scale: float
    height: int  # of the level image
    width: int
    channels: int
    laplacian: bool
    masked: bool
    thresholds: Tensor
    steps: int
    reach: int  # largest distance between two pixels of an image in memory, in elements


def _count_products(work: Work, images: Tensor, marks: Tensor, counts: Tensor) -> None:
    """Add the counts of a piece of the batch to ``counts [images, groups, levels, levels]``, by matrix products."""
    config, size, device = product_config(work.levels), work.height * work.width, images.device
    if device.type != "cuda":  # the interpreter pays by the operation, not by the element
        config = config._replace(block=1024)
    table = columns_for(work.request, work.weighting, config.columns, device)
    blocks = len(table) // config.columns
    # a float32 sum is exact below 2**24, and each pixel adds at most PER_COLUMN to it
    most = (1 << 24) // PER_COLUMN - config.block
    pixels = _pixels_per_program(size, blocks, len(images), config.block, most, device)
    splits = triton.cdiv(size, pixels)
    triton_kernels.product_kernel[(len(images) * splits, blocks)](
        images,
        marks,
        work.thresholds,
        table,
        counts,
        work.height,
        work.width,
        splits,
        pixels,
        len(work.plan.groups),
        work.levels,
        work.low,
        work.scale,
        *images.stride(),
        marks.stride(0),
        marks.stride(1),
        CHANNELS=work.channels,
        LAPLACIAN=work.laplacian,
        STEPS=work.steps,
        MASKED=work.masked,
        WIDE=max(work.reach, size + pixels) >= 2**31,
        P=config.block,
        COLUMNS=config.columns,
        SIDE=config.side,
        PER_COLUMN=PER_COLUMN,
        THROUGH_SHARED=THROUGH_SHARED,
        num_warps=config.warps,
        num_stages=1,
        enable_fp_fusion=False,
    )


def _count_bins(work: Work, images: Tensor, marks: Tensor, counts: Tensor, variant: str) -> None:
    """Add the counts of a piece of the batch to ``counts [images, groups, side, side]``, one by one in bins."""
    config, device, side = bins_config(work.levels, variant), images.device, work.levels + 1
    if device.type != "cuda":  # the interpreter pays by the operation, not by the element
        config = config._replace(block=8192, tile=1 << 14)
    pitch = work.width + _reach(work.plan, work.height, work.width)[1]
    size = work.height * pitch
    tables = blocks_for(work.request, work.weighting, config.groups, device)
    blocks = len(tables.firsts) - 1
    programs = blocks * max(config.parts, 1)
    if len(images) * programs * size < 4 * config.block * _processors(device):
        config = config._replace(block=1024)  # more programs of fewer pixels a thread
    plane = _plane(work, config.block)
    most = (2**31 - 1) // max(len(group.offsets) for group in work.plan.groups) - config.block  # bins are int32
    pixels = _pixels_per_program(size, programs, len(images), config.block, most, device)
    splits = triton.cdiv(size, pixels)
    room = bins_of(work.levels, config)
    wide = max(work.reach, plane + config.block) >= 2**31
    index = torch.int64 if wide else torch.int32

    level = torch.empty((len(images), plane), dtype=torch.uint8 if side <= 256 else torch.int16, device=device)
    totals, placed = torch.zeros((2, len(images), max(config.parts, 1)), dtype=index, device=device)
    order = torch.empty((len(images), size) if config.parts else (1, 1), dtype=index, device=device)
    scratch = counts
    if variant == "scratch":
        scratch = torch.empty(len(images) * splits * programs * room, dtype=torch.int32, device=device)
    triton_bins.level_kernel[(triton.cdiv(plane, 1024), len(images))](
        images,
        marks,
        work.thresholds,
        level,
        totals,
        plane,
        pitch,
        work.height,
        work.width,
        work.levels,
        work.low,
        work.scale,
        *images.stride(),
        marks.stride(0),
        marks.stride(1),
        CHANNELS=work.channels,
        LAPLACIAN=work.laplacian,
        STEPS=work.steps,
        MASKED=work.masked,
        WIDE=wide,
        PARTS=config.parts,
        ROWS=config.rows,
        P=1024,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    if config.parts:
        triton_bins.order_kernel[(triton.cdiv(size, 1024), len(images))](
            level,
            totals,
            placed,
            order,
            plane,
            size,
            work.levels,
            WIDE=wide,
            PARTS=config.parts,
            ROWS=config.rows,
            P=1024,
            num_warps=4,
            num_stages=1,
            enable_fp_fusion=False,
        )
    triton_bins.bins_kernel[(len(images) * splits, blocks, max(config.parts, 1))](
        level,
        *tables,
        counts,
        scratch,
        totals,
        order,
        plane,
        pitch,
        work.height,
        work.width,
        splits,
        pixels,
        size,
        len(work.plan.groups),
        side,
        room,
        DECLARE=triton_bins.declare(4 * room) if variant == "shared" else "",
        SHARED=variant == "shared",
        BINNED=variant != "counts",
        PARTS=config.parts,
        WIDE=wide,
        ROWS=config.rows,
        TILE=config.tile,
        P=config.block,
        num_warps=config.warps,
        num_stages=1,
        enable_fp_fusion=False,
    )


def _plane(work: Work, block: int) -> int:
    """Elements of a level image: its rows with their borders in whole blocks, and what the offsets reach beyond."""
    below, border = _reach(work.plan, work.height, work.width)
    pitch = work.width + border
    return -(-work.height * pitch // block) * block + -(-(below * pitch + border) // 16) * 16


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
    plan = make_plan(request, weighting)
    groups = len(plan.groups)
    tables = tables_for(request, weighting, device)
    shape = (batch, request.slot_count, levels, levels)
    out = torch.empty(shape, dtype=torch.float32 if normalize else torch.int64, device=device)
    if out.numel() == 0:
        return out
    table, steps = threshold_table(tuple(thresholds), device)
    lo, scale = float_scale(low, high)
    reach = sum((size - 1) * abs(stride) for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True))
    work = Work(
        request, weighting, plan, levels, lo, scale, h, w, channels, laplacian, mask is not None, table, steps, reach
    )  # fmt: skip
    variant = variant_for(levels, device)
    side = levels if variant == "product" else levels + 1  # bins have a row and a column of what does not count
    held = groups * side * side * 8
    if variant != "product":
        held = max(held, 6 * _plane(work, 8192))
    cells = 1024 if device.type == "cuda" else 1 << 16
    most = max((len(group.offsets) for group in plan.groups), default=1) * h * w
    valid = images if mask is None else mask.contiguous().view(torch.uint8)

    step = max(1, min(HELD_BYTES // held, 65535))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for b in range(0, batch, step):
            part, marks = images[b : b + step], valid[b : b + step]
            counts = torch.zeros(
                (len(part), groups, side, side), dtype=torch.int32 if most < 2**31 else torch.int64, device=device
            )
            if h * w and variant == "product":
                _count_products(work, part, marks, counts)
            elif h * w:
                _count_bins(work, part, marks, counts, variant)
            pairs = counts[:, :, :levels, :levels].sum((2, 3)) if mask is not None else counts
            triton_kernels.combine_kernel[(len(part) * request.slot_count, triton.cdiv(levels * levels, cells))](
                counts,
                pairs,
                tables.uses,
                tables.starts,
                tables.totals,
                out[b : b + step],
                h,
                w,
                groups,
                request.slot_count,
                levels,
                side,
                MASKED=mask is not None,
                NORMALIZE=normalize,
                CELLS=cells,
                # one rounding per product, as the other backends have it
                num_warps=4,
                enable_fp_fusion=False,
            )
    return out
