"""The registered op ``bdg_fast::local_glcm``: schema, shape inference, choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mas_glcm.ops import IMPLS, choose, raise_if_not_finite, refuse_tangent, report_not_finite, warn_if_outside
from ..mas_glcm.spec import decode

__all__ = ["IMPLS", "local_glcm", "refuse_tangent", "warn_if_outside", "zero_if_finite"]


@torch.library.custom_op("bdg_fast::local_glcm", mutates_args=())
def local_glcm(
    images: Tensor,
    window: list[int],
    stride: list[int],
    request: str,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: list[int],
    normalize: bool,
    check_finite: bool,
    impl: str,
) -> Tensor:
    """Matrices float32 ``[B, rows, columns, levels, levels]`` of the windows of ``images [B, 1 or 3, H, W]``.

    ``request``: `spec.encode` of offsets that all go to slot 0. The other arguments are those of ``bdg_fast::glcm``.
    """
    chosen = choose(impl, images.device)
    if chosen == "cpu":
        from . import cpu

        out, bad = cpu.local_glcm(
            images, window, stride, decode(request), levels, low, high, source, thresholds, normalize
        )
        if check_finite and bad is not None:
            report_not_finite(bad)
        return out
    if check_finite and images.is_floating_point():
        raise_if_not_finite(images)
    if chosen == "triton":
        from .triton import local_glcm as run
    else:
        from .reference import local_glcm as run
    return run(images, window, stride, decode(request), levels, low, high, source, thresholds, normalize)


@local_glcm.register_fake
def _(images, window, stride, request, levels, low, high, source, thresholds, normalize, check_finite, impl):  # type: ignore[no-untyped-def]
    rows, columns = ((size - w) // s + 1 for size, w, s in zip(images.shape[2:], window, stride, strict=True))
    return images.new_empty((images.shape[0], rows, columns, levels, levels), dtype=torch.float32)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    raise RuntimeError("a co-occurrence matrix of hard gray levels has no gradient; pass images.detach()")


local_glcm.register_autograd(_backward)


@torch.library.custom_op("bdg_fast::zero_if_finite", mutates_args=())
def zero_if_finite(images: Tensor) -> Tensor:
    """float32 0 (no dimensions); ValueError naming the image if ``images [B, ...]`` are not finite in float32.

    Results begin from it, so that a compiler keeps the check.
    """
    if images.is_floating_point():
        raise_if_not_finite(images.to(torch.float32) if images.dtype == torch.float64 else images)
    return images.new_zeros((), dtype=torch.float32)


@zero_if_finite.register_fake
def _(images):  # type: ignore[no-untyped-def]
    return images.new_empty((), dtype=torch.float32)
