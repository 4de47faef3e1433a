"""Triton backend (CUDA and ROCm): windows are cut out and counted as a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..mas_glcm import triton
from ..mas_glcm.spec import Request
from .views import each_window


def local_glcm(
    images: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    request: Request,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: Sequence[int],
    normalize: bool,
) -> Tensor:
    """See :func:`bdg_fast.kernels.local_glcm.ops.local_glcm`, whose arguments these are."""

    def matrices(windows: Tensor) -> Tensor:
        return triton.glcm(windows, None, request, levels, low, high, source, thresholds, normalize)

    return each_window(images, window, stride, levels, matrices)
