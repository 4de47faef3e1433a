"""The registered ops ``bdg_fast::sampler_step`` and ``sampler_step_out``: schema, fake, choice of a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..mas_glcm.ops import choose
from ..pixelwise.checks import compute_dtype, written_for_triton

IMPLS = ("auto", "reference", "triton")


def _run(impl: str, bound: float, out: Tensor, *inputs: Any) -> None:
    with torch.autocast(out.device.type, enabled=False):
        if choose(written_for_triton(impl, out, bound), out.device, IMPLS) == "triton":
            from .triton import step_into

            step_into(out, *inputs)
        else:
            from .reference import step_into as by_reference

            by_reference(out, *inputs, bound=bound)


@torch.library.custom_op("bdg_fast::sampler_step_out", mutates_args=("out",))
def sampler_step_out(
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
    impl: str,
    bound: float = 1.0,
) -> None:
    """``x_s`` into ``out``, which may be ``x_t``; images ``[B, C, H, W]`` of any floating types and strides.

    Args:
        residual, noise: predictions; at least one.
        table: `StepRow.padded`, float32 or float64 ``[steps, 16]``.
        step: row, int64 of one element on the device; None: ``index`` is the row.
        seed: int64 ``[B]``, of noise drawn here.
        fresh: standard noise ``[B, C, H, W]`` instead.
        bound: of ``x_0``.
    """
    _run(impl, bound, out, x_t, x_lq, residual, noise, table, step, index, seed, fresh)


@torch.library.custom_op("bdg_fast::sampler_step", mutates_args=())
def sampler_step(
    x_t: Tensor,
    x_lq: Tensor,
    residual: Tensor | None,
    noise: Tensor | None,
    table: Tensor,
    step: Tensor | None,
    index: int,
    seed: Tensor | None,
    fresh: Tensor | None,
    impl: str,
    bound: float = 1.0,
) -> Tensor:
    """``x_s`` like ``x_t``: see :func:`sampler_step_out`."""
    out = torch.empty_like(x_t)
    _run(impl, bound, out, x_t, x_lq, residual, noise, table, step, index, seed, fresh)
    return out


@sampler_step_out.register_fake
def _(out, x_t, x_lq, residual, noise, table, step, index, seed, fresh, impl, bound=1.0):  # type: ignore[no-untyped-def]
    return None


@sampler_step.register_fake
def _(x_t, x_lq, residual, noise, table, step, index, seed, fresh, impl, bound=1.0):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_t)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    raise RuntimeError("sampler_step has no gradient; detach its images")


sampler_step.register_autograd(_backward)


def step_parts(
    x_t: Tensor,
    x_lq: Tensor,
    residual: Tensor | None,
    noise: Tensor | None,
    table: Tensor,
    step: Tensor | None,
    index: int,
    bound: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, noise and ``x_0`` of a step, eagerly."""
    from .reference import parts, row_of

    row = row_of(table, step, index, compute_dtype(x_t, x_lq, residual, noise))
    return parts(x_t, x_lq, residual, noise, row, bound)
