"""Texture features of co-occurrence matrices (Haralick 1973), as scikit-image's ``graycoprops`` defines them.

With ``P(i, j)`` the matrix divided by its sum, ``mu_i = sum i P`` and ``sigma_i^2 = sum (i - mu_i)^2 P``:

    contrast       sum P (i - j)^2             energy       sqrt(ASM)
    dissimilarity  sum P |i - j|               entropy      -sum P log P  (natural logarithm)
    homogeneity    sum P / (1 + (i - j)^2)     mean         mu_i
    ASM            sum P^2                     variance     sigma_i^2;   std  sigma_i
    correlation    sum P (i - mu_i)(j - mu_j) / (sigma_i sigma_j), 1 where a sigma is 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels.local_glcm import checked_size, local_mas_glcm, zero_if_finite

BAND_CELLS = 1 << 24
"""Matrix elements that :func:`local_texture_features` holds at a time."""
NO_SPREAD = 1e-15
"""Standard deviations below this count as zero, as in scikit-image."""


def _sum(values: Tensor) -> Tensor:
    return values.sum((-2, -1))


def _index(p: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers that broadcast over ``p [..., L, L]``."""
    level = torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)
    return level[:, None], level[None, :]


def _safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def _centred(p: Tensor) -> tuple[Tensor, Tensor]:
    """``i - mu_i`` and ``j - mu_j``, ``[..., L, 1]`` and ``[..., 1, L]``."""
    i, j = _index(p)
    return i - _sum(i * p)[..., None, None], j - _sum(j * p)[..., None, None]


def _contrast(p: Tensor) -> Tensor:
    i, j = _index(p)
    return _sum(p * (i - j) ** 2)


def _dissimilarity(p: Tensor) -> Tensor:
    i, j = _index(p)
    return _sum(p * (i - j).abs())


def _homogeneity(p: Tensor) -> Tensor:
    i, j = _index(p)
    return _sum(p / (1 + (i - j) ** 2))


def _asm(p: Tensor) -> Tensor:
    return _sum(p * p)


def _energy(p: Tensor) -> Tensor:
    return _safe_sqrt(_asm(p))


def _correlation(p: Tensor) -> Tensor:
    di, dj = _centred(p)
    spread = _safe_sqrt(_sum(p * di**2)), _safe_sqrt(_sum(p * dj**2))
    flat = (spread[0] < NO_SPREAD) | (spread[1] < NO_SPREAD)
    return torch.where(flat, 1.0, _sum(p * di * dj) / torch.where(flat, 1.0, spread[0] * spread[1]))


def _entropy(p: Tensor) -> Tensor:
    return 0.0 - _sum(torch.where(p > 0, p * torch.where(p > 0, p, 1.0).log(), 0.0))  # 0 -, so that none is -0


def _mean(p: Tensor) -> Tensor:
    return _sum(p * _index(p)[0])


def _variance(p: Tensor) -> Tensor:
    return _sum(p * _centred(p)[0] ** 2)


def _std(p: Tensor) -> Tensor:
    return _safe_sqrt(_variance(p))


_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "contrast": _contrast,
    "dissimilarity": _dissimilarity,
    "homogeneity": _homogeneity,
    "ASM": _asm,
    "energy": _energy,
    "correlation": _correlation,
    "entropy": _entropy,
    "mean": _mean,
    "variance": _variance,
    "std": _std,
}
PROPS = tuple(_FEATURES)
"""Names of all features, in the order of :func:`texture_features`."""


def graycoprops(matrix: Tensor, prop: str = "contrast") -> Tensor:
    """One texture feature of co-occurrence matrices.

    Args:
        matrix: ``[..., L, L]``, counts or frequencies >= 0; normalized to sum 1 first. Integers are computed
            in float64 (float32 on MPS), float16 and bfloat16 in float32 and rounded once, float32 and
            float64 in their own precision.
        prop: one of :data:`PROPS`; the module's docstring gives the formulas.

    Returns:
        ``[...]``, differentiable in ``matrix`` (at a zero standard deviation or energy the gradient is 0). A
        matrix of zeros has all features 0 but correlation, which is 1.

    Raises:
        TypeError, ValueError: ``matrix`` is no tensor or not square in its last two dimensions, unknown ``prop``.
    """
    return _features(matrix, (prop,))[0]


def texture_features(matrix: Tensor, props: Sequence[str] = PROPS) -> Tensor:
    """Several texture features at once.

    Args:
        matrix: ``[..., L, L]``, as for :func:`graycoprops`.
        props: names out of :data:`PROPS`.

    Returns:
        ``[..., len(props)]``.

    Raises:
        ValueError: as :func:`graycoprops`, or ``props`` is empty.
    """
    if isinstance(props, str):
        raise ValueError(f"props must be a sequence of names, got the text {props!r}")
    props = tuple(props)
    if len(props) == 0:
        raise ValueError(f"props must not be empty; allowed are {', '.join(PROPS)}")
    return torch.stack(_features(matrix, props), dim=-1)


def local_texture_features(
    images: Tensor,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    props: Sequence[str] = PROPS,
    **options: Any,
) -> Tensor:
    """Maps of texture features: those of the co-occurrence matrix of every window of a grid.

    Args:
        images: ``[B, 1 or 3, H, W]``.
        window: height and width of a window in pixels, or one number for both.
        stride: from a window to the next, down and across, in pixels.
        props: names out of :data:`PROPS`.
        options: of :func:`bdg_fast.local_mas_glcm`: angles, scales, levels, source, ...

    Returns:
        float32 ``[B, len(props), rows, columns]``. A few rows of windows are computed at a time, so that memory does
        not grow with their number.

    Raises:
        TypeError, ValueError: as :func:`bdg_fast.local_mas_glcm` and :func:`texture_features`.
    """
    props = tuple(props) if not isinstance(props, str) else props
    options = {key: tuple(value) if isinstance(value, Iterator) else value for key, value in options.items()}
    texture_features(torch.ones(1, 1), props)  # bad names end here
    one = local_mas_glcm(images[:0], window, stride, **options)  # and bad options here
    _, rows, columns, levels, _ = one.shape
    (height, _), (down, _) = checked_size("window", window), checked_size("stride", stride)
    shape = (len(images), len(props), rows, columns)
    if options.get("check_finite", True):
        zero: Tensor = zero_if_finite(images.detach())
        maps = zero.expand(shape).clone()
    else:
        maps = torch.empty(shape, dtype=torch.float32, device=images.device)
    options = {**options, "check_finite": False}
    band = max(1, BAND_CELLS // max(columns * levels * levels, 1))
    for b in range(len(images)):
        for top in range(0, rows, band):
            bottom = min(top + band, rows)
            part = images[b : b + 1, :, top * down : (bottom - 1) * down + height]
            features = texture_features(local_mas_glcm(part, window, stride, **options)[0], props)
            maps[b, :, top:bottom] = features.movedim(-1, 0)
    return maps


def _features(matrix: Tensor, props: Sequence[str]) -> list[Tensor]:
    if not isinstance(matrix, Tensor):
        raise TypeError(f"matrix must be a torch.Tensor [..., L, L], got {type(matrix).__name__}")
    for prop in props:
        if prop not in _FEATURES:
            raise ValueError(f"prop must be one of {', '.join(PROPS)}, got {prop!r}")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"matrix must have shape [..., L, L] with L >= 1, got {list(matrix.shape)}")
    if not matrix.is_floating_point():
        matrix = matrix.to(torch.float32 if matrix.device.type == "mps" else torch.float64)
    dtype = matrix.dtype
    if dtype in (torch.float16, torch.bfloat16):  # float16 overflows at 65,504 pairs
        matrix = matrix.to(torch.float32)
    total = _sum(matrix)[..., None, None]
    p = matrix / torch.where(total == 0, 1.0, total)
    return [_FEATURES[prop](p).to(dtype) for prop in props]
