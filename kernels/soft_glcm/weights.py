"""How the sums of groups of offsets make up the outputs, as small matrices: ``out = W C + (W' C)^T``.

Forward and backward of the fast backends share it. Computed in float64: the matrices are small, and neither
reduced-precision products nor their order then matter to float32 results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..mas_glcm.spec import Plan, Request, make_plan

Keep = Callable[[torch.device, Callable[[], Tensor]], Tensor]


def plan_for(request: Request, mask: Tensor | None, normalize: bool) -> Plan:
    """Groups of offsets that may share a sum."""
    return make_plan(request, "sum" if not normalize else "size" if mask is None else "pairs")


@cache
def _matrices(plan: Plan, normalize: bool, device: torch.device, keep: Keep) -> Tensor:
    """float64 ``[2, slots, groups]``: how often each group enters each slot, as it is and transposed."""
    table = torch.zeros(2, len(plan.totals), len(plan.groups), dtype=torch.float64)
    for g, group in enumerate(plan.groups):
        for slot, flip, times in group.uses:
            table[int(flip), slot, g] += times / (plan.totals[slot] if normalize else 1)
    return keep(device, lambda: table.to(device))


def _made(device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    return make()


@cache
def _reach(plan: Plan, device: torch.device, keep: Keep) -> Tensor:
    """int64 ``[2, groups]``: ``dy`` and ``|dx|`` of the offsets of each group."""
    reach = [[min(abs(component), 2**40) for component in group.offsets[0]] for group in plan.groups]
    return keep(device, lambda: torch.tensor(reach, dtype=torch.int64).T.contiguous().to(device))


def weights(
    plan: Plan, mask: Tensor | None, shape: tuple[int, int], normalize: bool, device: torch.device, keep: Keep = _made
) -> Tensor:
    """float64 ``[2, B or 1, slots, groups]``; ``shape`` is ``(H, W)``."""
    table = _matrices(plan, normalize, device, keep)[:, None]
    if not normalize:
        return table
    pairs: Tensor
    if mask is None:
        dy, dx = _reach(plan, device, keep)
        pairs = ((shape[0] - dy).clamp(min=0) * (shape[1] - dx).clamp(min=0))[None]
    else:
        pairs = torch.stack([_pairs(mask, *group.offsets[0]) for group in plan.groups], 1)
    table = table / pairs.clamp(min=1)[None, :, None]
    return table


def _pairs(mask: Tensor, dy: int, dx: int) -> Tensor:
    """Number of pairs ``[B]`` with both pixels in the mask; ``dy >= 0``."""
    height, width = mask.shape[1:]
    h, w, x = max(height - dy, 0), max(width - abs(dx), 0), max(-dx, 0)
    if h == 0 or w == 0:
        return mask.new_zeros(mask.shape[0], dtype=torch.int64)
    return (mask[:, :h, x : x + w] & mask[:, dy:, x + dx : x + dx + w]).sum((1, 2))


def combine(sums: Tensor, weights: Tensor) -> Tensor:
    """``[B, slots, L, L]`` from ``sums [B, groups, L, L]``, in float64."""
    flat = sums.to(torch.float64).flatten(2)
    plain, flipped = (weights @ flat).view(2, len(sums), weights.shape[2], *sums.shape[2:]).unbind()
    out: Tensor = plain + flipped.mT
    return out


def spread(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradient ``[B, groups, L, L]`` of the sums, in float64, from ``grad [B, slots, L, L]``."""
    wide = grad.to(torch.float64)
    plain, flipped = weights.mT.unbind()
    out: Tensor = plain @ wide.flatten(2) + flipped @ wide.mT.flatten(2)
    return out.view(len(grad), weights.shape[3], *grad.shape[2:])
