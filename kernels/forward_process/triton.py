"""Triton backend (CUDA and ROCm): plans the launch of the kernel in `triton_kernels.py`."""

from __future__ import annotations

from torch import Tensor

from ..pixelwise.spec import FORWARD_STREAM
from ..pixelwise.triton import compute_type, image_of, layout_of, on
from . import triton_kernels


def diffuse_into(
    x_t: Tensor, eps: Tensor, x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor, seed: Tensor | None
) -> None:
    """Fill ``x_t``, from ``eps`` or, with a ``seed``, from noise drawn into ``eps`` first: see `ops.py`."""
    if x_t.numel() == 0:
        return
    layout = layout_of((x_0, x_lq, eps), x_t)
    with on(x_t.device):
        triton_kernels.forward_kernel[(layout.batch * layout.blocks,)](
            *(image_of(image, x_0) for image in (x_0, x_lq, eps, x_t)),
            t if seed is None else seed.contiguous(),
            t.contiguous(),
            table.contiguous(),
            len(table),
            layout.size,
            layout.width,
            layout.blocks,
            DRAW=seed is not None,
            STREAM=FORWARD_STREAM,
            COMPUTE=compute_type(x_0, x_lq, eps),
            **layout.constants,
        )
