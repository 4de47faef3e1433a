"""Triton backend (CUDA and ROCm): plans the launches of the kernels in `triton_kernels.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..mas_glcm.spec import Request
from ..mas_glcm.triton_tables import entries_for, kept
from ..pixelwise.triton import on
from . import triton_kernels
from .weights import combine, plan_for, spread, weights

ADD_BLOCK, PULL_BLOCK = 256, 128
"""Pixels of a program."""
HELD_BYTES = 1 << 28
"""Sums held at a time; larger batches run in pieces."""
UNIT = 1 << 30
"""Sums are kept in these parts of one pixel pair: integers, so that their order does not matter."""


def _weighting(mask: Tensor | None, normalize: bool) -> str:
    return "sum" if not normalize else "size" if mask is None else "pairs"


def forward(position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm`, whose arguments these are."""
    position = position.contiguous()
    marks = position if mask is None else mask.contiguous().view(torch.uint8)
    batch, height, width = position.shape
    device = position.device
    plan = plan_for(request, mask, normalize)
    entries = entries_for(request, _weighting(mask, normalize), device).entries
    block = ADD_BLOCK if device.type == "cuda" else 4096  # the interpreter pays by the operation
    each = 8 if device.type == "cuda" else len(entries)  # offsets of a program: many programs for small batches
    out = position.new_empty((batch, request.slot_count, levels, levels))
    step = max(1, min(HELD_BYTES // (len(plan.groups) * levels * levels * 16), 65535))
    with on(device):
        for b in range(0, batch, step):
            part = position[b : b + step]
            sums = torch.zeros((len(part), len(plan.groups), levels, levels), dtype=torch.int64, device=device)
            if height * width:
                grid = (triton.cdiv(height * width, block), len(part), triton.cdiv(len(entries), each))
                triton_kernels.add_kernel[grid](
                    part,
                    marks[b : b + step],
                    entries,
                    sums,
                    height,
                    width,
                    len(entries),
                    each,
                    len(plan.groups),
                    levels,
                    MASKED=mask is not None,
                    UNIT=UNIT,
                    P=block,
                    num_warps=4,
                    enable_fp_fusion=False,
                )
            valid = None if mask is None else mask[b : b + step]
            table = weights(plan, valid, (height, width), normalize, device, kept)
            out[b : b + step] = combine(sums, table / UNIT)
    return out


def backward(
    grad: Tensor, position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool
) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm_backward`, whose arguments these are."""
    position = position.contiguous()
    marks = position if mask is None else mask.contiguous().view(torch.uint8)
    batch, height, width = position.shape
    device = position.device
    plan = plan_for(request, mask, normalize)
    entries = entries_for(request, _weighting(mask, normalize), device).entries
    block = PULL_BLOCK if device.type == "cuda" else 4096
    found = torch.empty_like(position)
    step = max(1, min(HELD_BYTES // (len(plan.groups) * levels * levels * 16), 65535))
    with on(device):
        for b in range(0, batch, step):
            part = position[b : b + step]
            valid = None if mask is None else mask[b : b + step]
            table = weights(plan, valid, (height, width), normalize, device, kept)
            grads = spread(grad[b : b + step], table).to(position.dtype).contiguous()
            if height * width:
                triton_kernels.pull_kernel[(triton.cdiv(height * width, block), len(part))](
                    part,
                    marks[b : b + step],
                    entries,
                    grads,
                    found[b : b + step],
                    height,
                    width,
                    len(entries),
                    len(plan.groups),
                    levels,
                    MASKED=mask is not None,
                    P=block,
                    num_warps=4,
                    enable_fp_fusion=False,
                )
    return found
