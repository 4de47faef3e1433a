"""The registered ops ``bdg_fast::forward_process`` (noise given) and ``forward_process_drawn``, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mas_glcm.ops import choose
from ..pixelwise.checks import written_for_triton

IMPLS = ("auto", "reference", "triton")


def _run(
    x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor, noise: Tensor | None, seed: Tensor | None, impl: str
) -> tuple[Tensor, Tensor]:
    if choose(written_for_triton(impl, x_0), x_0.device, IMPLS) == "triton":
        from .triton import diffuse_into as run
    else:
        from .reference import diffuse_into as run
    x_t = torch.empty_like(x_0)
    eps = torch.empty_like(x_0) if noise is None else noise
    with torch.autocast(x_0.device.type, enabled=False):
        run(x_t, eps, x_0, x_lq, t, table, seed)
    return x_t, eps


@torch.library.custom_op("bdg_fast::forward_process", mutates_args=())
def forward_process(x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor, noise: Tensor, impl: str) -> Tensor:
    """``x_t`` like ``x_0``; images ``[B, C, H, W]`` of any floating types and strides.

    Args:
        t: int64 ``[B]``, rows of ``table``, float32 or float64 ``[T, 3]`` (A, B, D).
        noise: standard, ``[B, C, H, W]``.
    """
    x_t, _ = _run(x_0, x_lq, t, table, noise, None, impl)
    return x_t


@torch.library.custom_op("bdg_fast::forward_process_drawn", mutates_args=())
def forward_process_drawn(
    x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor, seed: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    """``x_t`` and noise drawn from ``seed``, int64 ``[B]``, both like ``x_0``: see :func:`forward_process`."""
    return _run(x_0, x_lq, t, table, None, seed, impl)


@forward_process.register_fake
def _(x_0, x_lq, t, table, noise, impl):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_0)


@forward_process_drawn.register_fake
def _(x_0, x_lq, t, table, seed, impl):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_0), torch.empty_like(x_0)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x_0, x_lq, t, table, noise = inputs[:5]
    ctx.dtypes = [x_0.dtype, x_lq.dtype, noise.dtype]
    ctx.save_for_backward(t, table)


def _setup_context_drawn(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _setup_context(ctx, inputs, output)  # type: ignore[no-untyped-call]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
    from .reference import coefficients

    t, table = ctx.saved_tensors
    a, b, d = coefficients(t, table, torch.promote_types(grad.dtype, torch.float32))
    found = [
        (grad * factor).to(dtype) if needed else None
        for factor, dtype, needed in zip(
            (1 - a, a - d, b), ctx.dtypes, (*ctx.needs_input_grad[:2], ctx.needs_input_grad[4]), strict=True
        )
    ]
    return found[0], found[1], None, None, found[2], None


forward_process.register_autograd(_backward, setup_context=_setup_context)
forward_process_drawn.register_autograd(_backward, setup_context=_setup_context_drawn)
