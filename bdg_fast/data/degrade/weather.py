"""Rain, snow, haze and low light."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bdg_fast.kernels.pixelwise import image_normals, uniforms

from .common import Purpose, filtered, gaussian_blur, line, numbers, per_sample

LONGEST = 17
"""Of the streaks of rain, in pixels."""
FLAKES = ((Purpose.SNOW_SMALL, 0.7, 0.9, 3), (Purpose.SNOW_LARGE, 0.3, 1.8, 6))
"""Share of all flakes, standard deviation and radius of their blur, in pixels."""
GRID = 4
"""Side of the grid of random numbers that relief in the distance is interpolated from."""


def _drops(images: Tensor, percent: Tensor, seed: Tensor, purpose: Purpose) -> Tensor:
    """Drops ``[B, 1, H, W]`` at ``percent [B]`` of the pixels: 0.5 to 1 where there is one, else 0."""
    height, width = images.shape[2:]
    where, bright, _, _ = uniforms(seed, height * width, purpose).view(-1, 4, 1, height, width).unbind(1)
    return (where < per_sample(percent) / 100) * (0.5 + 0.5 * bright)


def rain(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Streaks, screened over the sample by 0.6, centred on ``level`` percent of the pixels.

    Each is a :func:`line` of brightness 0.5 to 1; where they cross, their sum is at most 1. A sample's have one length,
    9 to 17 pixels, and one direction, up to 20 degrees from the vertical, both drawn evenly.
    """
    turn, size, _, _ = (number[:, 0] for number in numbers(seed, Purpose.RAIN))
    angle = (90 + 20 * (2 * turn - 1)) * (math.pi / 180)
    kernel = line(9 + (LONGEST - 9) * size, angle, LONGEST // 2 + 1)
    streaks = filtered(_drops(images, level, seed, Purpose.RAIN_DROPS), kernel, mode="constant").clamp(0, 1)
    return images + 0.6 * streaks * (1 - images)


def snow(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Soft flakes, screened over the sample, at ``level`` percent of the pixels.

    Seven in ten are Gaussians of standard deviation 0.9, cut off at 3 pixels, the others of 1.8, cut off at 6. In their
    middle they are 0.5 to 1 bright, drawn evenly; their sum is at most 0.95. Edges are replicated.
    """
    flakes = torch.zeros_like(images[:, :1])
    for purpose, share, sigma, radius in FLAKES:
        spots = gaussian_blur(_drops(images, share * level, seed, purpose), torch.full_like(level, sigma), radius)
        flakes = flakes + spots * (2 * math.pi * sigma**2)
    return images + flakes.clamp(0, 0.95) * (1 - images)


def haze(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Scattering ``J t + A (1 - t)``, ``t = exp(-level d)``, at light ``A`` in 0.75..0.95.

    The depth ``d`` in 0.24..1 falls evenly from 1 at the top to 0.4 at the bottom, times ``0.6 + 0.4 r`` of relief:
    ``r`` is a grid of 4 x 4 numbers drawn evenly from 0..1, its corners those of the image, bicubic in between
    (a = -3/4, edges replicated) and cut to 0..1. ``A`` is gray, and drawn evenly.
    """
    height, width = images.shape[2:]
    rough = uniforms(seed, GRID * GRID // 4, Purpose.HAZE_RELIEF).reshape(-1, 1, GRID, GRID)
    relief = F.interpolate(rough, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)
    far = torch.linspace(1, 0.4, height, device=images.device)[:, None] * (0.6 + 0.4 * relief)
    transmission = torch.exp(-per_sample(level) * far)
    air = 0.75 + 0.2 * numbers(seed, Purpose.HAZE)[0]
    return images * transmission + air * (1 - transmission)


def low_light(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Darkening ``x^level`` with the shot noise of 400 electrons at white and read noise of 1.5/255.

    One normal a channel: of variance ``x^level / 400 + (1.5 / 255)^2``.
    """
    dark = images.clamp(0, 1) ** per_sample(level)
    sigma = (dark / 400 + (1.5 / 255) ** 2).sqrt()
    return dark + sigma * image_normals(seed, images.shape[2], images.shape[3], Purpose.LOWLIGHT)
