"""Triton backend (CUDA and ROCm): plans the launch of the kernel in `triton_kernels.py`."""

from __future__ import annotations

from torch import Tensor

from ..pixelwise.spec import STEP_STREAM
from ..pixelwise.triton import compute_type, image_of, layout_of, on
from . import triton_kernels


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
) -> None:
    """See :func:`bdg_fast.kernels.sampler_step.ops.sampler_step_out`, whose arguments these are."""
    if out.numel() == 0:
        return
    predicted, second = (noise, None) if residual is None else (residual, noise)
    layout = layout_of((x_t, x_lq, predicted, second, fresh), out)
    with on(out.device):
        triton_kernels.step_kernel[(layout.batch * layout.blocks,)](
            *(image_of(image, x_t) for image in (x_t, x_lq, predicted, second, fresh, out)),
            x_t if seed is None else seed.contiguous(),
            table.contiguous(),
            table if step is None else step,
            index,
            len(table),
            layout.size,
            layout.width,
            layout.blocks,
            HEADS="noise" if residual is None else "residual" if noise is None else "both",
            NOISE="fresh" if fresh is not None else "none" if seed is None else "seed",
            INDEXED=step is None,
            STREAM=STEP_STREAM,
            COMPUTE=compute_type(x_t, x_lq, residual, noise, fresh, out),
            **layout.constants,
        )
