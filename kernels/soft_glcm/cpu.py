"""Compiled CPU backend (numba), parallel over images and offsets."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..mas_glcm.cpu_jit import jit as _jit
from ..mas_glcm.cpu_threads import in_parallel
from ..mas_glcm.spec import Plan, Request
from .weights import combine, plan_for, spread, weights


@_jit
def _split(position, levels, lower, fraction):
    """Integer and fractional parts, the former at most ``levels - 2``."""
    for y in range(position.shape[0]):
        for x in range(position.shape[1]):
            i = min(np.int32(position[y, x]), np.int32(levels - 2))
            lower[y, x] = i
            fraction[y, x] = position[y, x] - i


@_jit
def _add_offset(lower, fraction, mask, dy, dx, out):
    """Add the pairs at ``(dy, dx)``, ``dy >= 0``, to ``out [levels, levels]`` (float64)."""
    height, width = lower.shape
    for y in range(height - dy):
        for x in range(max(0, -dx), min(width, width - dx)):
            if mask.size == 0 or (mask[y, x] and mask[y + dy, x + dx]):
                i, j = lower[y, x], lower[y + dy, x + dx]
                f, g = np.float64(fraction[y, x]), np.float64(fraction[y + dy, x + dx])
                both = f * g
                out[i, j] += 1.0 - f - g + both
                out[i, j + 1] += g - both
                out[i + 1, j] += f - both
                out[i + 1, j + 1] += both


@_jit
def _pull_offset(lower, fraction, mask, dy, dx, grad, out):
    """Add the gradient of both pixels of the pairs at ``(dy, dx)``, ``dy >= 0``, to ``out`` (float64)."""
    height, width = lower.shape
    for y in range(height - dy):
        for x in range(max(0, -dx), min(width, width - dx)):
            if mask.size == 0 or (mask[y, x] and mask[y + dy, x + dx]):
                i, j = lower[y, x], lower[y + dy, x + dx]
                f, g = fraction[y, x], fraction[y + dy, x + dx]
                a, b, c, d = grad[i, j], grad[i, j + 1], grad[i + 1, j], grad[i + 1, j + 1]
                out[y, x] += (c - a) * (1 - g) + (d - b) * g
                out[y + dy, x + dx] += (b - a) * (1 - f) + (d - c) * f


@_jit
def _add_groups(position, mask, levels, offsets, group_of, sums):
    lower = np.empty(position.shape, np.int32)
    fraction = np.empty_like(position)
    _split(position, levels, lower, fraction)
    for k in range(len(group_of)):
        _add_offset(lower, fraction, mask, offsets[k, 0], offsets[k, 1], sums[group_of[k]])


@_jit
def _pull_groups(position, mask, levels, offsets, group_of, grads, out):
    lower = np.empty(position.shape, np.int32)
    fraction = np.empty_like(position)
    _split(position, levels, lower, fraction)
    for k in range(len(group_of)):
        _pull_offset(lower, fraction, mask, offsets[k, 0], offsets[k, 1], grads[group_of[k]], out)


def _jobs(plan: Plan, batch: int, height: int, width: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """``(image, offsets [n, 2], group of each)``, groups shared out where images alone do not fill the threads."""
    entries = [
        (dy, dx, g)
        for g, group in enumerate(plan.groups)
        for dy, dx in group.offsets
        if dy < height and abs(dx) < width
    ]
    table = np.array(entries, np.int64).reshape(-1, 3)
    pieces = 1 if batch >= torch.get_num_threads() else torch.get_num_threads()
    shares = [table[table[:, 2] * pieces // len(plan.groups) == piece] for piece in range(pieces)]
    return [(b, share[:, :2].copy(), share[:, 2].copy()) for b in range(batch) for share in shares]


def _arrays(position: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    pixels = position.detach().contiguous().numpy()
    return pixels, np.empty((len(pixels), 0, 0), np.bool_) if mask is None else mask.contiguous().numpy()


def _run(jobs, work) -> None:
    threads = max(1, min(torch.get_num_threads(), len(jobs)))

    def some(thread: int) -> None:
        for index in range(len(jobs) * thread // threads, len(jobs) * (thread + 1) // threads):
            work(index, *jobs[index])

    in_parallel(threads, some)


def forward(position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm`, whose arguments these are."""
    pixels, masks = _arrays(position, mask)
    plan = plan_for(request, mask, normalize)
    batch, height, width = pixels.shape
    sums = np.zeros((batch, len(plan.groups), levels, levels))  # groups are disjoint between the jobs of an image

    def work(_, b, offsets, group_of):
        _add_groups(pixels[b], masks[b], levels, offsets, group_of, sums[b])

    _run(_jobs(plan, batch, height, width), work)
    table = weights(plan, mask, (height, width), normalize, position.device)
    return combine(torch.from_numpy(sums), table).to(position.dtype)


def backward(
    grad: Tensor, position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool
) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm_backward`, whose arguments these are."""
    pixels, masks = _arrays(position, mask)
    plan = plan_for(request, mask, normalize)
    batch, height, width = pixels.shape
    table = weights(plan, mask, (height, width), normalize, position.device)
    grads = spread(grad, table).contiguous().numpy()
    jobs = _jobs(plan, batch, height, width)
    pieces = max(len(jobs) // max(batch, 1), 1)
    found = np.zeros((batch, pieces, height, width))

    def work(index, b, offsets, group_of):
        _pull_groups(pixels[b], masks[b], levels, offsets, group_of, grads[b], found[b, index % pieces])

    _run(jobs, work)
    return torch.from_numpy(found.sum(1)).to(position.dtype)
