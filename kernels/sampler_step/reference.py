"""The specification: the formulas of `spec.py`, eagerly, in float32 (float64 where an image is)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pixelwise.checks import compute_dtype
from ..pixelwise.reference import normals
from ..pixelwise.spec import STEP_STREAM
from .spec import StepRow


def row_of(table: Tensor, step: Tensor | None, index: int, dtype: torch.dtype) -> Any:
    """`StepRow` of a step, of 0-dimensional tensors; NaN on a GPU where there is no such row.

    Raises:
        IndexError: no such row, on the CPU.
    """
    if step is None:
        return _named(table[index].to(dtype))
    at = step.reshape(1)
    if at.device.type == "cpu" and not 0 <= int(at) < len(table):
        raise IndexError(f"step must be in 0..{len(table) - 1}, got {int(at)}")
    row = table.index_select(0, at.clamp(0, len(table) - 1))[0].to(dtype)
    return _named(torch.where((at >= 0) & (at < len(table)), row, torch.nan))


def _named(row: Tensor) -> StepRow:
    return StepRow(*row[: len(StepRow._fields)].unbind())  # type: ignore[arg-type]


def parts(
    x_t: Tensor, x_lq: Tensor, residual: Tensor | None, noise: Tensor | None, c: Any, bound: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual (clamped where predicted), noise and ``x_0`` in the type of the coefficients ``c``."""
    x, q = x_t.to(c.sigma.dtype), x_lq.to(c.sigma.dtype)
    if residual is not None:
        residual = residual.to(x.dtype).clamp(-c.limit, c.limit)
    if noise is not None:
        noise = noise.to(x.dtype)
    if residual is None:
        assert noise is not None
        residual = _sum((c.complete_x_t, x), (c.complete_x_lq, q), (c.complete_predicted, noise))
    elif noise is None:
        noise = _sum((c.complete_x_t, x), (c.complete_x_lq, q), (c.complete_predicted, residual))
    x_0 = _sum((c.clean_x_t, x), (c.clean_x_lq, q), (c.clean_residual, residual), (c.clean_noise, noise))
    return residual, noise, x_0.clamp_(-bound, bound)


def _sum(first: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor]) -> Tensor:
    """Products of coefficients and images, added in this order; one image at a time in memory beside the sum."""
    total = first[0] * first[1]
    for coefficient, image in others:
        total += coefficient * image
    return total


def step_into(
    out: Tensor,
    x_t: Tensor,
    x_lq: Tensor,
    residual: Tensor | None,
    noise: Tensor | None,
    table: Tensor,
    step: Tensor | None,
    index: int,
    seed: Tensor | None,
    fresh: Tensor | None,
    *,
    bound: float = 1.0,
) -> None:
    """See :func:`bdg_fast.kernels.sampler_step.ops.sampler_step_out`, whose arguments these are."""
    c = row_of(table, step, index, compute_dtype(x_t, x_lq, residual, noise, fresh, out))
    residual, noise, x_0 = parts(x_t, x_lq, residual, noise, c, bound)
    x, q = x_t.to(x_0.dtype), x_lq.to(x_0.dtype)
    x_s = _sum((c.next_x_t, x), (c.next_x_lq, q), (c.next_residual, residual), (c.next_noise, noise), (c.next_x_0, x_0))
    known = c.sigma.device.type == "cpu"  # elsewhere asking would wait for the device
    if not (known and c.sigma == 0):
        if fresh is not None:
            z = fresh.to(x_0.dtype)
        elif seed is not None:
            _, channels, height, width = x_t.shape
            z = normals(seed, height, width, index if step is None else step, STEP_STREAM, channels).to(x_0.dtype)
        elif known:
            raise ValueError(f"seed or fresh must be given: this step has sigma = {c.sigma.item():.6g}")
        else:
            z = torch.full_like(x_0, torch.nan)
        x_s = torch.where(c.sigma == 0, x_s, x_s + c.sigma * z)
    out.copy_(x_s)
