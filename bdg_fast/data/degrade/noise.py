"""Gaussian and Poisson noise, each channel by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import image_normals

from .common import Purpose, per_sample

FEW = 12.0
"""Photons up to which Poisson numbers are counted up one by one; beyond, the expansion's error is below 1e-3."""
MOST = 48
"""Photons that a mean of :data:`FEW` never reaches: their probability is below 1e-14."""


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
    rank = 0.5 * torch.erfc(-normal / math.sqrt(2))
    probability = torch.exp(-small)
    below, count = probability.clone(), torch.zeros_like(mean)
    for k in range(1, MOST + 1):
        count += rank > below
        probability = probability * (small / k)
        below += probability
    large = (mean + (mean - 1 / 12).clamp_min(0).sqrt() * normal + (normal**2 - 1) / 6).round().clamp_min(0)
    return torch.where(mean <= FEW, count, large)
