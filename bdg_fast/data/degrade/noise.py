"""Gaussian and Poisson noise, each channel by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import image_normals

from .common import Purpose, per_sample

FEW = 5.0
"""Photons up to which Poisson numbers are counted up one by one; beyond, the expansion's error is below 1e-3."""
MOST = 24
"""Photons that a mean of :data:`FEW` never reaches, but once in 10^9."""
LAST_RANK = 1 - 1e-6
"""Beyond, sums in float32 cannot tell a rank from 1."""


def gaussian_noise(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Add normals of standard deviation ``level / 255``."""
    return images + per_sample(level) / 255 * image_normals(seed, images.shape[2], images.shape[3], Purpose.NOISE)


def poisson_noise(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Shot noise of ``255 / level`` photons at white: variance ``level / 255`` times the brightness."""
    photons = 255 / per_sample(level)
    return poisson(images * photons, image_normals(seed, images.shape[2], images.shape[3], Purpose.POISSON)) / photons


def poisson(mean: Tensor, normal: Tensor) -> Tensor:
    """Poisson numbers of ``mean`` >= 0 from standard normals: the quantile of the same rank, whole numbers in float32.

    Small means count the distribution up; large ones take the first terms of its expansion in ``1 / sqrt(mean)``
    (Cornish and Fisher), less the variance 1/12 that rounding to whole numbers adds.
    """
    small = mean.clamp_max(FEW)
    rank = (0.5 * torch.erfc(-normal / math.sqrt(2))).clamp_max(LAST_RANK)
    probability = torch.exp(-small)
    below, count = probability.clone(), torch.zeros_like(mean)
    for k in range(1, MOST + 1):
        count += rank > below
        probability = probability * (small / k)
        below += probability
    great = mean.clamp_min(FEW)
    skewed = (normal**2 - 1) / 6 + normal * (1 - normal**2) / (72 * great.sqrt())
    large = (great + (great - 1 / 12).sqrt() * normal + skewed).round().clamp_min(0)
    return torch.where(mean <= FEW, count, large)
