"""Triton backend (CUDA and ROCm): which way to count, and a batch in pieces."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from functools import cache

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .spec import Request, TooLarge, float_scale, make_plan
from .triton_launch import PLAIN, Work, count_bins, count_products, family_of, plan_bins, reach_of
from .triton_plan import CHOICE, SPARSE, cells_for, class_of
from .triton_tables import NOWHERE, tables_for, threshold_table

VARIANT: str | None = None
"""Overrides :func:`variant_for`, for tests and benchmarks: "shared", "packed", "counts" or "product"."""

HELD_BYTES = 1 << 28
"""Counts, and levels, held at a time; larger batches run in pieces."""
TRIED = ((66, 32), (130, 32), (66, 105), (130, 105), (130, 256))
"""Sides and levels that stand for every kernel of gfx9: small and large, of half and all of its memory, in parts."""
AHEAD = 4
"""Matrices that `combine_kernel` waits for together."""


def variant_for(levels: int, pixels: int, device: torch.device) -> str:
    """The way to count images of so many pixels."""
    if VARIANT is not None:
        return VARIANT
    family = family_of(device)
    if family == "other":
        return "counts"
    if family == "nvidia" and (levels + 1) ** 2 > SPARSE * pixels:
        return "counts"  # clearing and emptying bins would cost more than counting
    way = CHOICE[family, class_of(levels)].way
    return way if family == "nvidia" or _counts_right(device) else "counts"


@cache
def _counts_right(device: torch.device) -> bool:
    """Whether bins in shared memory count on this GPU as atomics in global memory do.

    gfx9's are reached by instructions that this project's tests compile but cannot run, so the first call tries them.
    """
    request = Request(((0, 1), (1, 1), (2, -1), (0, -1)), (0, 0, 1, 1), 2)
    message = "are wrong"
    for side, levels in TRIED:
        rows, columns = torch.arange(side, device=device)[:, None], torch.arange(side + 1, device=device)
        images = ((rows * rows * 7 + columns * 13) % 256).to(torch.uint8)[None, None]
        try:
            shared, counts = (
                glcm(images, None, request, levels, 0.0, 1.0, "gray", (), False, way) for way in ("shared", "counts")
            )
            if torch.equal(shared, counts):
                continue
        except Exception as error:  # a driver or compiler that does not take them
            message = f"fail ({error})"
        message = f"co-occurrence matrices counted in this GPU's shared memory {message}; a slower way is taken"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False
    return True


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
    variant: str | None = None,
) -> Tensor:
    """See :func:`bdg_fast.kernels.mas_glcm.ops.glcm`, whose arguments these are; ``variant``: as `VARIANT`."""
    batch, channels, height, width = images.shape
    laplacian = source == "laplacian"
    h, w = (max(size - 2 * laplacian, 0) for size in (height, width))
    device = images.device
    if max(h, w) > NOWHERE:
        raise TooLarge(f"images must be at most {NOWHERE} pixels high and wide for impl='triton', got {h} x {w}")
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
    most = max((len(group.offsets) for group in plan.groups), default=1) * h * w
    below, border = reach_of(request, weighting, h, w)
    wide = max(reach, most, 2 * (h + below + 1) * (w + border + 4) + (1 << 16)) >= 2**31
    work = Work(
        request, weighting, plan, levels, lo, scale, h, w, channels, laplacian, mask is not None, table, steps, wide
    )  # fmt: skip
    variant = variant or variant_for(levels, h * w, device)
    integer = torch.int64 if work.wide else torch.int32
    side = levels if variant == "product" else levels + 1  # bins have a row and a column of what does not count
    held = groups * side * side * (8 if wide else 4)
    if variant != "product" and h * w:
        bins = plan_bins(work, 1, variant, device)
        held = max(held, bins.plane * (2 + 8 * bins.config.parts))
    cells = cells_for(levels) if device.type == "cuda" else 1 << 16
    valid = images if mask is None else mask.contiguous().view(torch.uint8)

    step = max(1, min(HELD_BYTES // held, 65535))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for b in range(0, batch, step):
            part, marks = images[b : b + step], valid[b : b + step]
            counts_shape = (len(part), groups, side, side)
            if h * w and variant != "product":
                bins = plan_bins(work, len(part), variant, device)
                written = bins.launch.splits == 1 and bins.place != "counts"  # not added to
                counts = (torch.empty if written else torch.zeros)(counts_shape, dtype=integer, device=device)
                count_bins(work, bins, part, marks, counts)
            else:
                counts = torch.zeros(counts_shape, dtype=integer, device=device)
                if h * w:
                    count_products(work, part, marks, counts)
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
                AHEAD=AHEAD if device.type == "cuda" else 1,
                num_warps=4,
                **PLAIN,
            )
    return out
