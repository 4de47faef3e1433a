"""Representations of an image that a degradation might be read from, each ``[B, 3, H, W] -> [B, D]``.

The first five are those of the paper's Table 1; log-Fourier and the residual fingerprint are stronger rivals.
Images are float32 in [0, 1]; all representations but the fingerprints work on ITU-R 601 luma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from bdg_fast.kernels.mas_glcm import mas_glcm

LUMA = (0.299, 0.587, 0.114)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def pixels(images: Tensor) -> Tensor:
    """The image itself, averaged down to 32 x 32."""
    return F.adaptive_avg_pool2d(_luma(images), 32).flatten(1)


def _filtered(images: Tensor, *kernels: list[list[float]]) -> Tensor:
    weight = torch.tensor(kernels, dtype=images.dtype, device=images.device)[:, None]
    return F.conv2d(F.pad(_luma(images), [1] * 4, mode="replicate"), weight)


def sobel(images: Tensor) -> Tensor:
    """Gradient magnitude, averaged down to 32 x 32."""
    across = [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]
    down = [list(row) for row in zip(*across, strict=True)]
    gradient = _filtered(images, across, down).square().sum(1, keepdim=True).sqrt()
    return F.adaptive_avg_pool2d(gradient, 32).flatten(1)


def laplace(images: Tensor) -> Tensor:
    """Magnitude of the Laplacian, averaged down to 32 x 32."""
    response = _filtered(images, [[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]).abs()
    return F.adaptive_avg_pool2d(response, 32).flatten(1)


def _amplitude(images: Tensor) -> Tensor:
    spectrum = torch.fft.fftshift(torch.fft.fft2(_luma(images), norm="ortho").abs(), dim=(-2, -1))
    return F.adaptive_avg_pool2d(spectrum, 64).flatten(1)


def fourier(images: Tensor) -> Tensor:
    """Raw Fourier amplitude, averaged down to 64 x 64 (the paper's kind)."""
    return _amplitude(images)


def log_fourier(images: Tensor) -> Tensor:
    """Logarithm of the Fourier amplitude."""
    return (_amplitude(images) + 1e-4).log()


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Gray and residual MAS-GLCM, each raised to a power, L2-normalized and weighed, joined to one vector.

    The defaults are what ``bdg-fast probe --tune`` chose on training photographs (docs/probe.md): the gray
    matrix with the published angles and scales, the residual's at distance 2, across and down.
    """

    levels: int = 32
    power: float = 0.25
    gray_angles: int = 9
    gray_scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    gray_weight: float = 0.15
    residual_angles: int = 2
    residual_scales: tuple[int, ...] = (2,)
    residual_weight: float = 1.0
    order: float = 2.0
    """Of the Minkowski distance to compare by: 2 Euclidean, 1 city block."""

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, D]``; a part of weight 0 is left out."""
        return self.join(*self.matrices(images))

    def matrices(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Matrices ``[B, levels, levels]`` of gray levels and of the residual; None for a part of weight 0."""
        gray = residual = None
        if self.gray_weight > 0:
            gray = mas_glcm(images, self.gray_angles, self.gray_scales, self.levels)
        if self.residual_weight > 0:
            residual = mas_glcm(
                images,
                self.residual_angles,
                self.residual_scales,
                self.levels,
                source="laplacian",
                quantizer="companded",
            )
        return gray, residual

    def join(self, gray: Tensor | None, residual: Tensor | None) -> Tensor:
        """The vectors ``[B, D]`` of such matrices, or of means of them."""
        parts = ((gray, self.gray_weight), (residual, self.residual_weight))
        return torch.cat([self._vector(matrix, weight) for matrix, weight in parts if matrix is not None], 1)

    def _vector(self, matrix: Tensor, weight: float) -> Tensor:
        return weight * F.normalize(matrix.flatten(1) ** self.power)

    def __str__(self) -> str:
        """The fields that differ from the defaults."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "default"


def fingerprint(images: Tensor) -> Tensor:
    """The recommended fingerprint of degradation: :class:`Fingerprint` with its defaults.

    Args:
        images: ``[B, 1 or 3, H, W]`` as :func:`bdg_fast.mas_glcm` takes them.

    Returns:
        float32 ``[B, D]``; compare by Euclidean distance.
    """
    return Fingerprint()(images)


REPRESENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "LQ image": pixels,
    "Sobel": sobel,
    "Laplace": laplace,
    "Fourier (raw amplitude)": fourier,
    "log-Fourier": log_fourier,
    "MAS-GLCM (raw)": Fingerprint(power=1.0, residual_weight=0.0),
    "MAS-GLCM (power 1/4)": Fingerprint(residual_weight=0.0),
    "residual fingerprint": Fingerprint(gray_weight=0.0),
    "gray + residual": Fingerprint(),
}
"""Rows of the probe's table."""
