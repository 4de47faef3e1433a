"""Public functions: named errors for bad input, then the registered op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from . import ops
from .spec import FULL_SCALE, MAX_LEVELS, RESIDUAL_MAX, encode, offset_of, residual_thresholds

DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
PUBLISHED_SCALES = (1, 2, 3, 4, 5, 6)


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
    if torch.compiler.is_compiling():
        return _offsets(angles, scales)
    return _cached_offsets(angles if isinstance(angles, int) else tuple(angles), tuple(scales))


def _offsets(angles: int | Sequence[float], scales: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if isinstance(angles, int):
        if angles < 1:
            raise ValueError(f"angles must be at least 1 or a sequence of radians, got {angles}")
        angles = [j * math.pi / angles for j in range(angles)]
    if len(angles) == 0:
        raise ValueError("angles must not be empty: give their number or a sequence of radians")
    if len(scales) == 0:
        raise ValueError("scales must not be empty: give distances in pixels, integers >= 1")
    for angle in angles:
        if not abs(angle) < math.inf:  # math.isfinite would break the graph under torch.compile
            raise ValueError(f"angles must be finite radians, got {angle}")
    for scale in scales:
        if scale != int(scale) or scale < 1:
            raise ValueError(f"scales must be integers >= 1 (pixels), got {scale}")
    return tuple(offset_of(int(scale), angle) for scale in scales for angle in angles)


_cached_offsets = lru_cache(maxsize=64)(_offsets)
_cached_encode = lru_cache(maxsize=64)(encode)


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
            bfloat16, float32 or float64 (converted to float32 first), any strides.
        offsets: pairs ``(dy, dx)`` in pixels; may be negative, repeated, or larger than the image.
        levels: number of gray levels, 2..256.
        value_range: floating values that map to black and white; values outside are clamped. Integer images
            always use their whole type.
        symmetric: add the transpose (the pairs of ``-d``).
        normalize: divide each matrix by its number of pairs; a matrix without pairs stays zero.
        mask: bool ``[B, H, W]`` or ``[B, 1, H, W]`` (B may be 1); only pairs with both pixels inside count.
        source: ``"gray"``, or ``"laplacian"`` for the high-pass residual
            ``4 y - up - down - left - right`` of 16-bit luma (pixels that lack a neighbour do not count).
        quantizer: ``"uniform"``; ``"companded"`` (``"laplacian"`` only: finer near zero); or ``levels - 1``
            strictly increasing integers ``t`` with ``level = #{t : value >= t}`` on luma 0..65535 or on the
            residual -262140..262140.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``. All give the same counts.
        check_finite: raise on NaN or infinity (on a GPU this waits for the device). If False, NaN counts as
            ``value_range[0]`` and infinities clamp.

    Returns:
        ``[B, len(offsets), levels, levels]``: float32 if ``normalize``, else exact int64 counts.

    Raises:
        TypeError, ValueError: a bad argument, by name. RuntimeError: ``impl`` cannot run here.
    """
    pairs = _checked_offsets(offsets)
    out = _run(
        images,
        pairs,
        tuple(range(len(pairs))),
        len(pairs),
        levels,
        value_range,
        normalize,
        mask,
        source,
        quantizer,
        check_finite,
        impl,
    )
    return _symmetrized(out, normalize) if symmetric else out


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
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    pairs = glcm_offsets(angles, scales)
    slots = tuple(range(len(pairs))) if reduction == "none" else (0,) * len(pairs)
    out = _run(
        images,
        pairs,
        slots,
        slots[-1] + 1,
        levels,
        value_range,
        normalize,
        mask,
        source,
        quantizer,
        check_finite,
        impl,
    )
    if symmetric:
        out = _symmetrized(out, normalize)
    out = out.to(torch.float32)
    if reduction == "mean":
        return out[:, 0]
    return out.view(out.shape[0], len(scales), len(pairs) // len(scales), levels, levels)


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
        glcm_offsets(angles, scales)
        _checked_quantizer(levels, value_range, source, quantizer)
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


def _run(
    images: Tensor,
    offsets: tuple[tuple[int, int], ...],
    slots: tuple[int, ...],
    slot_count: int,
    levels: int,
    value_range: tuple[float, float],
    normalize: bool,
    mask: Tensor | None,
    source: str,
    quantizer: str | Sequence[int],
    check_finite: bool,
    impl: str,
) -> Tensor:
    images = _checked_images(images)
    thresholds = _checked_quantizer(levels, value_range, source, quantizer)
    if impl not in ops.IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, ops.IMPLS))}, got {impl!r}")
    request = (encode if torch.compiler.is_compiling() else _cached_encode)(offsets, slots)
    out: Tensor = ops.glcm(
        images,
        _checked_mask(mask, images),
        request,
        slot_count,
        levels,
        float(value_range[0]),
        float(value_range[1]),
        source,
        list(thresholds),
        normalize,
        check_finite,
        impl,
    )
    return out


def _symmetrized(out: Tensor, normalize: bool) -> Tensor:
    both = out + out.mT
    return both * 0.5 if normalize else both


def _checked_images(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor [B, 1 or 3, H, W], got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images must have rank 4, [B, 1 or 3, H, W], got shape {list(images.shape)}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 (gray) or 3 (RGB) channels, got {images.shape[1]}")
    if images.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"images must be one of {names}, got {str(images.dtype).removeprefix('torch.')}")
    return images.to(torch.float32) if images.dtype == torch.float64 else images


def _checked_mask(mask: Tensor | None, images: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a torch.bool tensor, got {kind}")
    batch, _, height, width = images.shape
    plane = mask[:, 0] if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if plane.ndim != 3 or plane.shape[1:] != (height, width) or plane.shape[0] not in (1, batch):
        raise ValueError(
            f"mask must have shape [{batch} or 1, {height}, {width}] (or [B, 1, H, W]) to fit images, "
            f"got {list(mask.shape)}"
        )
    if mask.device != images.device:
        raise ValueError(f"mask must be on the device of images, {images.device}, got {mask.device}")
    return plane.expand(batch, height, width)


def _checked_offsets(offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if len(offsets) == 0:
        raise ValueError("offsets must not be empty: give pairs (dy, dx) in pixels")
    for offset in offsets:
        if len(offset) != 2 or any(component != int(component) for component in offset):
            raise ValueError(f"offsets must be pairs of integers (dy, dx), got {offset!r}")
    return tuple((int(dy), int(dx)) for dy, dx in offsets)


def _fits_float32(low: float, high: float) -> bool:
    largest = torch.finfo(torch.float32).max
    return abs(low) <= largest and abs(high) <= largest and FULL_SCALE / (high - low) <= largest


def _checked_quantizer(
    levels: int, value_range: tuple[float, float], source: str, quantizer: str | Sequence[int]
) -> Sequence[int]:
    """The thresholds of the quantizer (empty: equal steps of gray), after checking all that shape it."""
    if levels != int(levels) or not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels must be an integer in 2..{MAX_LEVELS}, got {levels}")
    if len(value_range) != 2 or not value_range[0] < value_range[1] or not _fits_float32(*value_range):
        raise ValueError(f"value_range must be (low, high), finite in float32 and with low < high, got {value_range}")
    if source not in ("gray", "laplacian"):
        raise ValueError(f"source must be 'gray' or 'laplacian', got {source!r}")
    if isinstance(quantizer, str):
        if quantizer not in ("uniform", "companded"):
            raise ValueError(f"quantizer must be 'uniform', 'companded' or thresholds, got {quantizer!r}")
        if source == "laplacian":
            # dynamo sees through a cache, but warns
            find = residual_thresholds.__wrapped__ if torch.compiler.is_compiling() else residual_thresholds
            return find(int(levels), quantizer)
        if quantizer == "companded":
            raise ValueError("quantizer='companded' is for source='laplacian', got source='gray'")
        return ()
    if len(quantizer) != levels - 1:
        raise ValueError(f"quantizer must hold levels - 1 = {levels - 1} thresholds, got {len(quantizer)}")
    low, high = (0, 65535) if source == "gray" else (-RESIDUAL_MAX, RESIDUAL_MAX)
    for before, after in zip(quantizer, list(quantizer)[1:], strict=False):
        if before >= after:
            raise ValueError(f"quantizer must be strictly increasing, got {before} before {after}")
    for threshold in quantizer:
        if threshold != int(threshold) or not low <= threshold <= high:
            raise ValueError(f"quantizer must hold integers in {low}..{high}, got {threshold}")
    return [int(threshold) for threshold in quantizer]
