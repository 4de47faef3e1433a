"""Public functions: named errors for bad input, then the registered op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import ops
from .checks import (
    check_choice,
    checked_flag,
    checked_images,
    checked_levels,
    checked_mask,
    checked_range,
    checked_thresholds,
    grid_of_offsets,
    list_of_offsets,
    materialized,
    remembered,
)
from .spec import encode

PUBLISHED_SCALES = (1, 2, 3, 4, 5, 6)
REDUCTIONS = ("mean", "none")


def glcm_offsets(
    angles: int | Sequence[float] = 9, scales: Sequence[int] = PUBLISHED_SCALES
) -> tuple[tuple[int, int], ...]:
    """Offsets ``(dy, dx)`` in pixels, all angles of the first scale first.

    Args:
        angles: ``n`` for ``j pi / n, j < n``, or angles in radians.
        scales: distances in pixels, integers >= 1.

    Returns:
        ``len(scales) * n`` pairs ``(L sin a, L cos a)``, rounded half away from zero exactly as
        scikit-image's ``graycomatrix`` does; some may coincide.

    Raises:
        ValueError: ``angles`` or ``scales`` is empty, or a scale is not a positive integer.
    """
    return _grid(materialized(angles), materialized(scales))


_grid = remembered(grid_of_offsets)


class _Settings(NamedTuple):
    """What a call comes to, whatever its images."""

    op: tuple[object, ...]  # the op's arguments after images and mask
    symmetric: bool
    normalize: bool
    shape: tuple[int, int] | None  # scales and angles of a result that keeps them
    value_range: tuple[float, float]
    check_finite: bool


def glcm(
    images: Tensor,
    offsets: Sequence[tuple[int, int]],
    *,
    levels: int = 32,
    value_range: tuple[float, float] = (0.0, 1.0),
    symmetric: bool = False,
    normalize: bool = True,
    mask: Tensor | None = None,
    source: str = "gray",
    quantizer: str | Sequence[int] = "uniform",
    impl: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Gray-level co-occurrence matrices of each image at each offset.

    ``M_d(i, j) = #{p : p and p + d inside, level(p) = i, level(p + d) = j}`` (Haralick 1973; the rounding and
    options are those of scikit-image's ``graycomatrix``).

    Args:
        images: ``[B, C, H, W]``, C = 1 (gray) or 3 (RGB, converted to ITU-R 601 luma). uint8, uint16, float16,
            bfloat16, float32 or float64 (converted to float32 first, where values beyond 3.4e38 become
            infinite), any strides.
        offsets: pairs ``(dy, dx)`` in pixels; may be negative, repeated, or larger than the image.
        levels: number of gray levels, 2..256.
        value_range: floating values that map to black and white; values outside are clamped. The first calls with
            images on the CPU warn of what is far outside of the default. Integer images always use their whole type.
        symmetric: add the transpose (the pairs of ``-d``).
        normalize: divide each matrix by its number of pairs; a matrix without pairs stays zero.
        mask: bool ``[B, H, W]`` or ``[B, 1, H, W]`` (B may be 1); only pairs with both pixels inside count.
        source: ``"gray"``, or ``"laplacian"`` for the high-pass residual
            ``4 y - up - down - left - right`` of 16-bit luma (pixels that lack a neighbour do not count).
        quantizer: ``"uniform"``; ``"companded"`` (``"laplacian"`` only: finer near zero); or ``levels - 1``
            strictly increasing integers ``t`` with ``level = #{t : value >= t}`` on luma 0..65535 or on the
            residual -262140..262140.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``. All give the same counts.
        check_finite: raise on NaN or infinity (on a GPU this waits for the device), and warn as said. If False,
            NaN counts as ``value_range[0]`` and infinities clamp.

    Returns:
        ``[B, len(offsets), levels, levels]``: float32 if ``normalize``, else exact int64 counts.

    Raises:
        TypeError, ValueError: a bad argument, by name. RuntimeError: ``impl`` cannot run here.
    """
    return _run(
        images,
        mask,
        _glcm_settings(
            materialized(offsets),
            levels,
            value_range,
            symmetric,
            normalize,
            source,
            materialized(quantizer),
            impl,
            check_finite,
        ),
    )


def mas_glcm(
    images: Tensor,
    angles: int | Sequence[float] = 9,
    scales: Sequence[int] = PUBLISHED_SCALES,
    levels: int = 32,
    value_range: tuple[float, float] = (0.0, 1.0),
    symmetric: bool = False,
    normalize: bool = True,
    reduction: str = "mean",
    mask: Tensor | None = None,
    source: str = "gray",
    quantizer: str | Sequence[int] = "uniform",
    impl: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Multi-angle multi-scale gray-level co-occurrence matrix (MAS-GLCM, BDG): a fingerprint of degradation.

    ``M_mas = 1 / (n m) sum_ij M_{L_i, theta_j}`` over ``n`` scales and ``m`` angles, each matrix divided by
    its own number of pairs first. Arguments not named here are those of :func:`glcm`.

    Args:
        images: ``[B, 1 or 3, H, W]``.
        angles: ``m`` for ``j pi / m, j < m``, or angles in radians.
        scales: distances in pixels.
        normalize: if False the counts are summed instead of averaged; float32 holds them exactly up to
            ``2**24`` (:func:`glcm` gives exact int64).
        reduction: ``"mean"``, or ``"none"`` to keep the scale and angle axes.

    Returns:
        float32 ``[B, levels, levels]``; with ``reduction="none"``
        ``[B, len(scales), len(angles), levels, levels]``.

    Raises:
        TypeError, ValueError: a bad argument, by name. RuntimeError: ``impl`` cannot run here.
    """
    settings = _mas_settings(
        materialized(angles),
        materialized(scales),
        levels,
        value_range,
        symmetric,
        normalize,
        reduction,
        source,
        materialized(quantizer),
        impl,
        check_finite,
    )
    out = _run(images, mask, settings)
    if not settings.normalize:
        out = out.to(torch.float32)
    return out.squeeze(1) if settings.shape is None else out.view(len(out), *settings.shape, *out.shape[-2:])


class MASGLCM(nn.Module):
    """:func:`mas_glcm` with its settings, as a module without parameters.

    Example:
        >>> MASGLCM(levels=16)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        angles: int | Sequence[float] = 9,
        scales: Sequence[int] = PUBLISHED_SCALES,
        levels: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
        symmetric: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        source: str = "gray",
        quantizer: str | Sequence[int] = "uniform",
        impl: str = "auto",
        check_finite: bool = True,
    ) -> None:
        """Keep the arguments of :func:`mas_glcm`; bad ones raise here where that needs no image."""
        super().__init__()
        angles, scales, quantizer = map(materialized, (angles, scales, quantizer))  # type: ignore[assignment]
        _mas_settings(
            angles,
            scales,
            levels,
            value_range,
            symmetric,
            normalize,
            reduction,
            source,
            quantizer,
            impl,
            check_finite,
        )
        self.angles = angles
        self.scales = tuple(scales)
        self.levels = levels
        self.value_range = value_range
        self.symmetric = symmetric
        self.normalize = normalize
        self.reduction = reduction
        self.source = source
        self.quantizer = quantizer
        self.impl = impl
        self.check_finite = check_finite

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Matrices of ``images [B, 1 or 3, H, W]``; see :func:`mas_glcm`."""
        return mas_glcm(
            images,
            self.angles,
            self.scales,
            self.levels,
            self.value_range,
            self.symmetric,
            self.normalize,
            self.reduction,
            mask,
            self.source,
            self.quantizer,
            self.impl,
            self.check_finite,
        )

    def extra_repr(self) -> str:
        """The settings that shape the result."""
        return (
            f"angles={self.angles}, scales={self.scales}, levels={self.levels}, source={self.source!r}, "
            f"quantizer={self.quantizer!r}, reduction={self.reduction!r}"
        )


def _settings(
    offsets: tuple[tuple[int, int], ...],
    slots: tuple[int, ...],
    shape: tuple[int, int] | None,
    levels: object,
    value_range: object,
    symmetric: object,
    normalize: object,
    source: str,
    quantizer: object,
    impl: str,
    check_finite: object,
) -> _Settings:
    number = checked_levels(levels)
    low, high = checked_range(value_range)
    thresholds = checked_thresholds(number, source, quantizer)
    check_choice("impl", impl, ops.IMPLS)
    divide = checked_flag("normalize", normalize)
    check = checked_flag("check_finite", check_finite)
    request = encode(offsets, slots)
    op = (request, slots[-1] + 1, number, low, high, source, tuple(thresholds), divide, check, impl)
    return _Settings(op, checked_flag("symmetric", symmetric), divide, shape, (low, high), check)


@remembered
def _glcm_settings(offsets: object, *options: object) -> _Settings:
    pairs = list_of_offsets(offsets)
    return _settings(pairs, tuple(range(len(pairs))), None, *options)  # type: ignore[arg-type]


@remembered
def _mas_settings(
    angles: object,
    scales: object,
    levels: object,
    value_range: object,
    symmetric: object,
    normalize: object,
    reduction: object,
    *options: object,
) -> _Settings:
    check_choice("reduction", reduction, REDUCTIONS)
    pairs = grid_of_offsets(angles, scales)
    distances = len(scales)  # type: ignore[arg-type]
    keep = reduction == "none"
    slots = tuple(range(len(pairs))) if keep else (0,) * len(pairs)
    shape = (distances, len(pairs) // distances) if keep else None
    return _settings(pairs, slots, shape, levels, value_range, symmetric, normalize, *options)  # type: ignore[arg-type]


def _run(images: Tensor, mask: Tensor | None, settings: _Settings) -> Tensor:
    pixels = checked_images(images)
    ops.refuse_tangent(pixels)
    inside = checked_mask(mask, pixels)
    if settings.check_finite:
        ops.warn_if_outside(pixels, inside, settings.value_range)
    out = ops.run(pixels, inside, *settings.op)
    if not settings.symmetric:
        return out
    both = out + out.mT
    return both * 0.5 if settings.normalize else both
