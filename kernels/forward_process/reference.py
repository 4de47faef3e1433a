"""The specification: ``x_t = x_0 + A_t (x_lq - x_0) + B_t eps - D_t x_lq`` in float32 (float64 where an image is)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pixelwise.checks import compute_dtype
from ..pixelwise.reference import normals
from ..pixelwise.spec import FORWARD_STREAM


def coefficients(t: Tensor, table: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """``A_t, B_t, D_t``, each ``[B, 1, 1, 1]``; NaN where there is no such row."""
    valid = (t >= 0) & (t < len(table))
    rows = torch.where(valid[:, None], table.index_select(0, t.clamp(0, len(table) - 1)), torch.nan)
    return rows.to(dtype).view(-1, 3, 1, 1, 1).unbind(1)


def diffuse_into(
    x_t: Tensor, eps: Tensor, x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor, seed: Tensor | None
) -> None:
    """Fill ``x_t``, from ``eps`` or, with a ``seed``, from noise drawn into ``eps`` first: see `ops.py`.

    Raises:
        IndexError: there is no row ``t``, on the CPU; on a GPU that image is NaN.
    """
    if t.device.type == "cpu":
        for time in t[(t < 0) | (t >= len(table))].tolist():
            raise IndexError(f"t must be in 0..{len(table) - 1}, got {time}")
    dtype = compute_dtype(x_0, x_lq, eps)
    a, b, d = coefficients(t, table, dtype)
    if seed is not None:
        eps.copy_(normals(seed, x_0.shape[2], x_0.shape[3], 0, FORWARD_STREAM, x_0.shape[1]))
    clean, degraded = x_0.to(dtype), x_lq.to(dtype)
    x_t.copy_(clean + a * (degraded - clean) + b * eps.to(dtype) - d * degraded)
