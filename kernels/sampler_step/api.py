"""Public functions: named errors for bad input, then the registered ops."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from ..mas_glcm.checks import check_choice
from ..pixelwise.checks import check_images, check_per_image, check_table, check_tensor, refuse_gradients
from . import ops
from .spec import COLUMNS, HEADS

Prediction = Tensor | tuple[Tensor, Tensor]


def sampler_step(
    x_t: Tensor,
    x_lq: Tensor,
    prediction: Prediction,
    table: Tensor,
    step: Tensor | SupportsIndex,
    *,
    heads: str,
    seed: Tensor | None = None,
    fresh: Tensor | None = None,
    out: Tensor | None = None,
    bound: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """One reverse step, from ``x_t`` to ``x_s``, in one launch.

    With the coefficients in row ``step`` of ``table`` (:class:`StepRow`):

        residual clamped, missing head completed, x_0 clamped to [-bound, bound]
        x_s = next . (x_t, x_lq, residual, noise, x_0) + sigma z

    Images are ``[B, C, H, W]`` of any strides, each float16, bfloat16, float32 or float64; arithmetic is in float32, or
    in float64 if one of them is. Nothing waits for the device, so one CUDA graph serves every step. Pixels have three
    channels and ``bound=1``, which Triton's kernel is for; latents may have any.

    Args:
        x_t: noisy images.
        x_lq: degraded images in [-1, 1].
        prediction: what the network returned for ``heads``: ``[B, C, H, W]``; for ``"both"`` ``[B, 2 C, H, W]``, the
            residual first, or the two as a tuple. Read in place, also where it is a view.
        table: float32 or float64 ``[steps, 16]``, a row of `StepRow.padded` each.
        step: the row: an integer, or int64 of one element on the device.
        heads: ``"residual"``, ``"noise"`` or ``"both"``.
        seed: int64 ``[B]``: draw ``z`` by Philox from the image's seed, its size and ``step`` alone.
        fresh: standard noise ``z`` instead, ``[B, C, H, W]``. Neither is read where ``sigma`` is 0.
        out: where to write ``x_s``; may be ``x_t`` (or another of the images) itself, else must not overlap them.
        bound: of ``x_0``; infinity leaves it as it is.
        impl: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``out``, or a new tensor of the type and strides of ``x_t``.

    Raises:
        TypeError, ValueError: a bad argument, by name. IndexError: there is no row ``step``. RuntimeError: an image
        requires a gradient, or ``impl`` cannot run here.

        The reference on the CPU also raises for a ``step`` tensor beyond the table (IndexError) and for ``sigma > 0``
        without ``seed`` or ``fresh`` (ValueError). On a GPU only the device knows: there the result is NaN.
    """
    check_choice("impl", impl, ops.IMPLS)
    if not bound > 0:
        raise ValueError(f"bound must be above 0, got {bound}")
    residual, noise = _heads(x_t, x_lq, prediction, heads)
    tensor, index = _row(table, step, x_t)
    if seed is not None:
        check_per_image("seed", seed, x_t)
        if fresh is not None:
            raise ValueError("seed and fresh are two sources of one noise: give one of them")
    if fresh is not None:
        check_images("fresh", fresh, x_t)
    for name, *tensors in (
        ("x_t", x_t), ("x_lq", x_lq), ("prediction", residual, noise), ("table", table), ("fresh", fresh), ("out", out)
    ):  # fmt: skip
        refuse_gradients("sampler_step", name, *tensors)
    if out is None:
        found: Tensor = ops.sampler_step(x_t, x_lq, residual, noise, table, tensor, index, seed, fresh, impl, bound)
        return found
    check_images("out", out, x_t)
    if out.numel() and any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(f"out must not be expanded: elements would share memory, got strides {list(out.stride())}")
    ops.sampler_step_out(out, x_t, x_lq, residual, noise, table, tensor, index, seed, fresh, impl, bound)
    return out


def step_parts(
    x_t: Tensor,
    x_lq: Tensor,
    prediction: Prediction,
    table: Tensor,
    step: Tensor | SupportsIndex,
    *,
    heads: str,
    bound: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, noise and ``x_0`` as :func:`sampler_step` has them within, float32 or float64 ``[B, C, H, W]``.

    Eager, on any device, for those who want to look; the arguments are those of :func:`sampler_step`.
    """
    residual, noise = _heads(x_t, x_lq, prediction, heads)
    tensor, index = _row(table, step, x_t)
    return ops.step_parts(x_t, x_lq, residual, noise, table, tensor, index, bound)


def _heads(x_t: Tensor, x_lq: Tensor, prediction: Prediction, heads: str) -> tuple[Tensor | None, Tensor | None]:
    """Residual and noise as views of ``prediction``."""
    check_choice("heads", heads, HEADS)
    check_images("x_t", x_t)
    check_images("x_lq", x_lq, x_t)
    if heads != "both":
        only = check_images("prediction", prediction, x_t)
        return (only, None) if heads == "residual" else (None, only)
    if isinstance(prediction, tuple):
        if len(prediction) != 2:
            raise ValueError(f"prediction must hold a residual and a noise, got {len(prediction)} tensors")
        residual, noise = prediction
        return check_images("prediction[0]", residual, x_t), check_images("prediction[1]", noise, x_t)
    channels = x_t.shape[1]
    both = check_images("prediction", prediction, x_t, 2 * channels)
    return both[:, :channels], both[:, channels:]


def _row(table: Tensor, step: Tensor | SupportsIndex, x_t: Tensor) -> tuple[Tensor | None, int]:
    """``step`` as a tensor, or as a number."""
    rows = check_table(table, COLUMNS, x_t).shape[0]
    if isinstance(step, Tensor):
        check_tensor("step", step, (torch.int64,), x_t)
        if step.numel() != 1:
            raise ValueError(f"step must have one element, got shape {list(step.shape)}")
        return step, 0
    if not isinstance(step, int) and hasattr(step, "__index__"):  # numpy's integers
        step = operator.index(step)
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"step must be an integer or an int64 tensor, got {type(step).__name__}")
    if not 0 <= step < rows:
        raise IndexError(f"step must be in 0..{rows - 1}, got {step}")
    return None, step
