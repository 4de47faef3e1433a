"""Triton backend: the launches of the kernels in `triton_bins.py` and `triton_kernels.py`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_bins, triton_kernels
from .spec import Plan, Request, make_plan
from .triton_plan import MOST_PACKED, SMALL, BinsConfig, Launch, bins_config, launch_for, product_config, words_for
from .triton_tables import PER_COLUMN, columns_for, entries_for

THROUGH_SHARED = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
"""Older compilers repeat a cheap quantization in every lane, six times the instructions, unless it passes through
shared memory (benchmarks/notes.md)."""
LEVEL_BLOCK = 1024
"""Pixels of a program of `level_kernel`."""
ORDER_BLOCK, FIELD = 512, 10
"""Pixels of a program of `order_kernel`, and bits for their number: there are at most six parts."""


def family_of(device: torch.device) -> str:
    """The kind of GPU, as `CHOICE` has it: "nvidia" (which the interpreter follows on the CPU), "gfx9" or "other"."""
    if device.type != "cuda" or torch.version.hip is None:
        return "nvidia"
    name = str(torch.cuda.get_device_properties(device).gcnArchName)
    return "gfx9" if name.startswith("gfx9") else "other"


def _place(way: str, device: torch.device) -> str:
    """`bins_kernel`'s ``BINS``."""
    if way == "counts":
        return way
    family = family_of(device)
    return "memory" if device.type != "cuda" or family == "other" else "gfx9" if family == "gfx9" else "ptx"


@lru_cache(maxsize=256)
def reach_of(request: Request, weighting: str, height: int, width: int) -> tuple[int, int]:
    """Largest ``dy`` and ``|dx|`` of the offsets that stay within a ``height x width`` image for some pixel."""
    groups = make_plan(request, weighting).groups
    inside = [(dy, abs(dx)) for group in groups for dy, dx in group.offsets if dy < height and abs(dx) < width]
    return max((dy for dy, _ in inside), default=0), max((dx for _, dx in inside), default=0)


def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 2


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
    wide: bool  # positions within an image, or counts, need 64 bits

    @property
    def quantization(self) -> dict[str, object]:
        """What the kernels that quantize are specialized for."""
        flags = {"MASKED": self.masked, "WIDE": self.wide}
        return {"CHANNELS": self.channels, "LAPLACIAN": self.laplacian, "STEPS": self.steps, **flags, **PLAIN}


PLAIN = {"num_stages": 1, "enable_fp_fusion": False}
"""One rounding per operation, as the other backends have it."""


def count_products(work: Work, images: Tensor, marks: Tensor, counts: Tensor) -> None:
    """Add the counts of a piece of the batch to ``counts [images, groups, levels, levels]``, by matrix products."""
    config, size, device = product_config(work.levels), work.height * work.width, images.device
    if device.type != "cuda":  # the interpreter pays by the operation, not by the element
        config = config._replace(block=1024)
    table = columns_for(work.request, work.weighting, config.columns, device)
    blocks = len(table) // config.columns
    # a float32 sum is exact below 2**24, and each pixel adds at most PER_COLUMN to it
    most = (1 << 24) // PER_COLUMN - config.block
    # enough programs to fill the machine, yet enough pixels each to outweigh adding the matrices
    splits = max(1, min(size // 2048, 16 * _processors(device) // (len(images) * blocks)))
    pixels = max(triton.cdiv(min(triton.cdiv(size, splits), most), config.block), 1) * config.block
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
        P=config.block,
        COLUMNS=config.columns,
        SIDE=config.side,
        PER_COLUMN=PER_COLUMN,
        THROUGH_SHARED=THROUGH_SHARED,
        num_warps=config.warps,
        **work.quantization,
    )


class Bins(NamedTuple):
    """How one call counts in bins, for a piece of ``batch`` images."""

    config: BinsConfig
    launch: Launch
    place: str
    packed: bool
    pitch: int  # width and border
    size: int  # elements that count as first pixels
    plane: int  # elements of an image
    room: int  # words that a program clears
    within: tuple[int, int]  # an image that holds the same offsets as this one: few distinct heights and widths


def bins_constants(config: BinsConfig, place: str, packed: bool, word: int, wide: bool) -> dict[str, object]:
    """What `bins_kernel` is specialized for."""
    shared = place == "ptx"
    return {
        "DECLARE": triton_bins.declare(4 * config.room) if shared else "",
        "ADD": triton_bins.add(1 if config.parts else word, packed) if shared else "",
        "BINS": place,
        "PACKED": packed,
        "PARTS": config.parts > 0,
        "WORD": word,
        "WIDE": wide,
        "ROOM": config.room if place == "gfx9" else 0,
        "TILE": config.tile,
        "P": config.block,
    }


def plan_bins(work: Work, batch: int, variant: str, device: torch.device) -> Bins:
    """All of a launch but the tensors."""
    shape = (work.height, work.width)
    return _plan_bins(work.request, work.weighting, work.levels, shape, work.wide, batch, variant, device)


@lru_cache(maxsize=256)  # planning takes longer than a small launch
def _plan_bins(
    request: Request,
    weighting: str,
    levels: int,
    shape: tuple[int, int],
    wide: bool,
    batch: int,
    variant: str,
    device: torch.device,
) -> Bins:
    plan, (height, width) = make_plan(request, weighting), shape
    groups = plan.groups
    most = max(len(group.offsets) for group in groups)
    packed = variant == "packed" and most <= MOST_PACKED
    way = "shared" if variant == "packed" and not packed else variant
    place = _place(way, device)
    below, border = reach_of(request, weighting, height, width)
    pitch = -(-(width + border) // 4) * 4
    size = height * pitch
    small = size < SMALL and not wide and device.type == "cuda"
    config = bins_config(levels, way, small, place == "gfx9")
    if device.type != "cuda":  # the interpreter pays by the operation, not by the element
        config = config._replace(block=2048, tile=1 << 14)
    limit = (65535 if packed else 2**31 - 1) // most // config.block * config.block
    offsets = sum(len(group.offsets) for group in groups)
    if device.type == "cuda":
        launch = launch_for(config, levels + 1, batch, size, len(groups), offsets, limit, _processors(device))
    else:
        pixels = min(-(-size // (2 * config.block)) * config.block, limit)
        launch = Launch(-(-size // pixels), -(-len(groups) // config.groups), pixels)
    end = -(-size // config.block) * config.block + below * pitch + border + 4  # the last word's neighbour
    plane = -(-end // LEVEL_BLOCK) * LEVEL_BLOCK
    each = -(-len(groups) // launch.blocks)
    return Bins(
        config=config,
        launch=launch,
        place=place,
        packed=packed,
        pitch=pitch,
        size=size,
        plane=plane,
        room=words_for(each, config.half, levels + 1, config.parts, config.tile) if config.room else 0,
        within=(min(height, plan.reach[0] + 1), min(width, plan.reach[1] + 1)),
    )


def count_bins(work: Work, bins: Bins, images: Tensor, marks: Tensor, counts: Tensor) -> None:
    """Count a piece of the batch into ``counts [images, groups, side, side]``, pair by pair in bins."""
    config, launch, device, side = bins.config, bins.launch, images.device, work.levels + 1
    index = torch.int64 if work.wide else torch.int32
    parts = max(config.parts, 1)
    word = 4 if side <= 256 else 2
    level = torch.empty((len(images), bins.plane), dtype=torch.uint8 if word == 4 else torch.int16, device=device)
    strides = images.stride()
    aligned = not work.laplacian and strides[3] == 1 and not any(n % 4 for n in (work.width, *strides[:3]))
    triton_bins.level_kernel[(bins.plane // LEVEL_BLOCK, len(images))](
        images,
        marks,
        work.thresholds,
        level,
        bins.plane,
        bins.pitch,
        work.height,
        work.width,
        work.levels,
        work.low,
        work.scale,
        *strides,
        marks.stride(0),
        marks.stride(1),
        ALIGNED=aligned,
        P=LEVEL_BLOCK,
        num_warps=4,
        **work.quantization,
    )
    placed, order = level, level  # not read
    if config.parts:
        placed = torch.zeros((len(images), parts), dtype=index, device=device)
        order = torch.empty((len(images), parts, bins.size), dtype=index, device=device)
        triton_bins.order_kernel[(triton.cdiv(bins.size, ORDER_BLOCK), len(images))](
            level,
            placed,
            order,
            bins.plane,
            bins.size,
            work.levels,
            config.half * (2 if bins.packed else 1),
            parts,
            FIELD=FIELD,
            WIDE=work.wide,
            P=ORDER_BLOCK,
            num_warps=2,
            **PLAIN,
        )
    grid = (len(images) * launch.splits, launch.blocks, parts)
    scratch = counts
    if bins.place == "memory":
        scratch = torch.empty(grid[0] * grid[1] * grid[2] * bins.room, dtype=torch.int32, device=device)
    triton_bins.bins_kernel[grid](
        level,
        level.view(torch.int32),
        *entries_for(work.request, work.weighting, device, *bins.within),
        counts,
        scratch,
        placed,
        order,
        bins.plane,
        bins.pitch,
        launch.splits,
        launch.pixels,
        bins.size,
        len(work.plan.groups),
        launch.blocks,
        parts,
        side,
        config.half,
        bins.room,
        0,
        **bins_constants(config, bins.place, bins.packed, word, work.wide),
        num_warps=config.warps,
        **PLAIN,
    )
