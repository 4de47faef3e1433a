"""The registered ops ``bdg_fast::soft_glcm`` and its backward: schema, shape inference, choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mas_glcm.ops import IMPLS, choose, raise_if_not_finite, refuse_tangent
from ..mas_glcm.spec import decode

__all__ = ["IMPLS", "refuse_tangent", "soft_glcm", "soft_glcm_backward"]


@torch.library.custom_op("bdg_fast::soft_glcm", mutates_args=())
def soft_glcm(
    position: Tensor,
    mask: Tensor | None,
    images: Tensor | None,
    request: str,
    slot_count: int,
    levels: int,
    normalize: bool,
    impl: str,
) -> Tensor:
    """Soft co-occurrence matrices of level positions, reduced into ``slot_count`` outputs.

    Args:
        position: float32 or float64 ``[B, H, W]`` in ``[0, levels - 1]``.
        mask: bool ``[B, H, W]``, or None.
        images: ``[B, ...]`` to refuse if they are not finite, or None.
        request: `spec.encode` of the offsets and the output slot of each.
        normalize: average of the matrices, each divided by its number of pairs; else their sum.

    Returns:
        ``[B, slot_count, levels, levels]`` of the type of ``position``.
    """
    if images is not None:
        raise_if_not_finite(images)
    chosen = choose(impl, position.device)
    if chosen == "cpu":
        from .cpu import forward as run
    elif chosen == "triton":
        from .triton import forward as run
    else:
        from .reference import forward as run
    with torch.autocast(position.device.type, enabled=False):
        return run(position, mask, decode(request), levels, normalize)


@torch.library.custom_op("bdg_fast::soft_glcm_backward", mutates_args=())
def soft_glcm_backward(
    grad: Tensor,
    position: Tensor,
    mask: Tensor | None,
    request: str,
    levels: int,
    normalize: bool,
    impl: str,
) -> Tensor:
    """Gradient ``[B, H, W]`` of ``position`` from ``grad [B, slot_count, levels, levels]``."""
    chosen = choose(impl, position.device)
    if chosen == "cpu":
        from .cpu import backward as run
    elif chosen == "triton":
        from .triton import backward as run
    else:
        from .reference import backward as run
    with torch.autocast(position.device.type, enabled=False):
        return run(grad, position, mask, decode(request), levels, normalize)


@soft_glcm.register_fake
def _(position, mask, images, request, slot_count, levels, normalize, impl):  # type: ignore[no-untyped-def]
    return position.new_empty((position.shape[0], slot_count, levels, levels))


@soft_glcm_backward.register_fake
def _(grad, position, mask, request, levels, normalize, impl):  # type: ignore[no-untyped-def]
    return torch.empty_like(position, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    position, mask, _, ctx.request, _, ctx.levels, ctx.normalize, ctx.impl = inputs
    ctx.save_for_backward(position, mask)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    position, mask = ctx.saved_tensors
    found = soft_glcm_backward(grad, position, mask, ctx.request, ctx.levels, ctx.normalize, ctx.impl)
    return found, None, None, None, None, None, None, None


def _backward_of_backward(ctx, grad):  # type: ignore[no-untyped-def]
    raise RuntimeError("soft_mas_glcm has first derivatives only")


soft_glcm.register_autograd(_backward, setup_context=_setup_context)
soft_glcm_backward.register_autograd(_backward_of_backward)
