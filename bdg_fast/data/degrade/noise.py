"""Gaussian and Poisson noise, each channel by itself."""

from __future__ import annotations

from torch import Tensor

from bdg_fast.kernels.pixelwise import image_normals, poisson

from .common import Purpose, per_sample


def gaussian_noise(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Add normals of standard deviation ``level / 255``."""
    return images + per_sample(level) / 255 * image_normals(seed, images.shape[2], images.shape[3], Purpose.NOISE)


def poisson_noise(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Shot noise of ``255 / level`` photons at white: variance ``level / 255`` times the brightness."""
    photons = 255 / per_sample(level)
    return poisson(images * photons, image_normals(seed, images.shape[2], images.shape[3], Purpose.POISSON)) / photons
