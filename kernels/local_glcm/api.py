"""Public function: named errors for bad input, then the registered op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..mas_glcm.checks import (
    as_integer,
    as_tuple,
    check_choice,
    checked_flag,
    checked_images,
    checked_levels,
    checked_range,
    checked_thresholds,
    grid_of_offsets,
    materialized,
)
from ..mas_glcm.spec import encode
from . import ops

PUBLISHED_SCALES = (1, 2, 3, 4, 5, 6)


def local_mas_glcm(
    images: Tensor,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    angles: int | Sequence[float] = 9,
    scales: Sequence[int] = PUBLISHED_SCALES,
    levels: int = 32,
    value_range: tuple[float, float] = (0.0, 1.0),
    symmetric: bool = False,
    normalize: bool = True,
    source: str = "gray",
    quantizer: str | Sequence[int] = "uniform",
    impl: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """MAS-GLCM of every window of a grid: what :func:`mas_glcm` gives for the cropped window.

    On the CPU windows that overlap much share their work: the time hardly grows with their number. Elsewhere each
    window is counted by itself.

    Args:
        images: ``[B, 1 or 3, H, W]``.
        window: height and width of a window in pixels, or one number for both; no larger than the images.
        stride: from a window to the next, down and across, in pixels.

        The other arguments are those of :func:`mas_glcm`.

    Returns:
        float32 ``[B, (H - h) // sy + 1, (W - w) // sx + 1, levels, levels]`` for windows ``h x w`` and strides
        ``sy, sx``. Counts (``normalize=False``) equal those of the cropped window up to ``2**24``; frequencies equal
        them to one rounding. :func:`bdg_fast.local_texture_features` keeps features only, which need far less memory.

    Raises:
        TypeError, ValueError: a bad argument, by name. RuntimeError: ``impl`` cannot run here.
    """
    pixels = checked_images(images)
    ops.refuse_tangent(pixels)
    height, width = checked_size("window", window)
    down, across = checked_size("stride", stride)
    if height > pixels.shape[2] or width > pixels.shape[3]:
        raise ValueError(
            f"window must be no larger than images, {pixels.shape[2]} x {pixels.shape[3]}, got {height} x {width}"
        )
    levels = checked_levels(levels)
    low, high = checked_range(value_range)
    thresholds = checked_thresholds(levels, source, materialized(quantizer))
    check_choice("impl", impl, ops.IMPLS)
    symmetric, normalize = checked_flag("symmetric", symmetric), checked_flag("normalize", normalize)
    offsets = grid_of_offsets(materialized(angles), materialized(scales))
    check_finite = checked_flag("check_finite", check_finite)
    if check_finite:
        ops.warn_if_outside(pixels, None, (low, high))
    out: Tensor = ops.local_glcm(
        pixels,
        [height, width],
        [down, across],
        encode(offsets, (0,) * len(offsets)),
        levels,
        low,
        high,
        source,
        list(thresholds),
        normalize,
        check_finite,
        impl,
    )
    if symmetric:
        out = out + out.mT
        out = out * 0.5 if normalize else out
    return out


def checked_size(name: str, value: object) -> tuple[int, int]:
    """Height and width from one number or two, each at least 1."""
    given = as_tuple(value)
    sizes = [as_integer(size) for size in (given if given is not None else (value, value))]
    if len(sizes) != 2 or any(size is None or size < 1 for size in sizes):
        raise ValueError(f"{name} must be an integer >= 1 or two of them (down, across), got {value!r}")
    return sizes[0], sizes[1]  # type: ignore[return-value]
