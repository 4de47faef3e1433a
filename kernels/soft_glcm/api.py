"""Public function: named errors for bad input, luma and level positions, then the registered op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..mas_glcm.checks import (
    check_choice,
    checked_flag,
    checked_levels,
    checked_mask,
    checked_pixels,
    checked_range,
    grid_of_offsets,
    materialized,
)
from ..mas_glcm.spec import LUMA, encode
from . import ops

PUBLISHED_SCALES = (1, 2, 3, 4, 5, 6)


def soft_mas_glcm(
    images: Tensor,
    angles: int | Sequence[float] = 9,
    scales: Sequence[int] = PUBLISHED_SCALES,
    levels: int = 32,
    value_range: tuple[float, float] = (0.0, 1.0),
    symmetric: bool = False,
    normalize: bool = True,
    reduction: str = "mean",
    mask: Tensor | None = None,
    impl: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """MAS-GLCM with a gradient: every pixel is shared by its two nearest levels, in proportion.

    With the level position ``t = clamp((y - low) / (high - low) levels - 1/2, 0, levels - 1)`` of luma ``y`` and the
    hat function ``w_i(t) = max(0, 1 - |t - i|)``,

        M_d(i, j) = sum over p, p + d inside of  w_i(t(p)) w_j(t(p + d)).

    It equals :func:`mas_glcm` where all values lie on level centres, ``low + (i + 1/2) / levels (high - low)``. The
    gradient is exact between level centres, one-sided on them, and zero for values beyond the outermost centres.

    Args:
        images: ``[B, 1 or 3, H, W]``, floating (half types are computed in float32), uint8 or uint16.
        mask: bool ``[B, H, W]`` or ``[B, 1, H, W]``; only pairs with both pixels inside count. Has no gradient.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

        The other arguments are those of :func:`mas_glcm`.

    Returns:
        ``[B, levels, levels]``, or ``[B, len(scales), len(angles), levels, levels]`` with ``reduction="none"``; float64
        for float64 images, else float32. Sums are deterministic on every backend.

    Raises:
        TypeError, ValueError: a bad argument, by name. RuntimeError: ``impl`` cannot run here.
    """
    pixels = checked_pixels(images)
    ops.refuse_tangent(pixels)
    levels = checked_levels(levels)
    low, high = checked_range(value_range)
    check_choice("reduction", reduction, ("mean", "none"))
    check_choice("impl", impl, ops.IMPLS)
    inside = checked_mask(mask, pixels)
    symmetric, normalize = checked_flag("symmetric", symmetric), checked_flag("normalize", normalize)
    # positions do not tell: NaN is a level there, and so is infinity
    seen = pixels.detach() if checked_flag("check_finite", check_finite) and pixels.is_floating_point() else None
    distances = materialized(scales)
    offsets = grid_of_offsets(materialized(angles), distances)
    slots = tuple(range(len(offsets))) if reduction == "none" else (0,) * len(offsets)
    position = level_position(pixels, levels, low, high)
    out: Tensor = ops.soft_glcm(position, inside, seen, encode(offsets, slots), slots[-1] + 1, levels, normalize, impl)
    if symmetric:
        out = out + out.mT
        out = out * 0.5 if normalize else out
    if reduction == "mean":
        return out[:, 0]
    number = len(distances)  # type: ignore[arg-type]
    return out.view(out.shape[0], number, len(offsets) // number, levels, levels)


def level_position(images: Tensor, levels: int, low: float, high: float) -> Tensor:
    """Positions ``[B, H, W]`` in units of levels, 0 at the centre of the first; NaN counts as ``low``."""
    if images.dtype in (torch.uint8, torch.uint16):
        pixels, low, high = images.to(torch.float32), 0.0, 255.0 if images.dtype == torch.uint8 else 65535.0
    else:
        pixels = images if images.dtype == torch.float64 else images.to(torch.float32)
        pixels = torch.where(pixels.isnan(), low, pixels)
    # clamped channel by channel, as the hard matrix has it, so that luma stays within the range too
    pixels = pixels.clamp(low, high)
    if pixels.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        luma = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / sum(LUMA)
    else:
        luma = pixels[:, 0]
    return ((luma - low) * (levels / (high - low)) - 0.5).clamp(0, levels - 1)
