"""Blurs: isotropic, anisotropic, and of a moving camera. Edges are replicated, flat images stay what they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .common import Purpose, filtered, gaussian_blur, line, numbers, offsets

RADIUS = 12
"""Of every kernel, a square whatever the level: three of the largest standard deviations, half of the longest path."""


def blur(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Gaussian of standard deviation ``level`` pixels."""
    return gaussian_blur(images, level, RADIUS)


def anisotropic_blur(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Gaussian of standard deviation ``level`` along a direction, and 0.2 to 0.7 of it across, both drawn evenly."""
    turn, ratio, _, _ = (number[:, 0] for number in numbers(seed, Purpose.ANISOTROPIC))  # [B, 1, 1]
    return filtered(images, anisotropic_kernel(level[:, None, None], 0.2 + 0.5 * ratio, math.pi * turn))


def anisotropic_kernel(sigma: Tensor, ratio: Tensor, angle: Tensor) -> Tensor:
    """``[B, 25, 25]`` of sum 1: sigma along ``angle``, ``ratio sigma`` across; arguments ``[B, 1, 1]``."""
    at = offsets(RADIUS, sigma.device)
    y, x = at[:, None], at[None, :]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    kernel = torch.exp(-(along**2 + (across / ratio) ** 2) / (2 * sigma**2))
    return kernel / kernel.sum((1, 2), keepdim=True)


def motion_blur(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Mean along a straight path of ``level`` pixels, a :func:`line`, in a direction drawn evenly."""
    turn = numbers(seed, Purpose.MOTION)[0][:, 0]
    kernel = line(level[:, None, None], math.pi * turn, RADIUS)
    return filtered(images, kernel / kernel.sum((1, 2), keepdim=True))
