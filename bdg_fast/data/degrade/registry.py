"""Degradations by name. Levels, mild to strong:

    noise              standard deviation of Gaussian noise, in 1/255                                  5 .. 50
    poisson            shot noise: its variance at white, in 1/255 (255 / level photons)             0.5 .. 10
    blur               standard deviation of a Gaussian blur, in pixels                              0.5 .. 4
    anisotropic_blur   standard deviation along a random direction; across, 0.2 to 0.7 of that         1 .. 4
    motion_blur        length of a straight path in a random direction, in pixels                      3 .. 25
    rain               share of pixels that a streak is centred on, in percent                       0.5 .. 2
    snow               share of pixels that a flake sits at, in percent                              0.3 .. 1.5
    haze               optical depth at the far end                                                  0.7 .. 2
    lowlight           gamma of the darkening, with shot noise                                       1.5 .. 3.5
    jpeg               100 - quality of a JPEG file                                                   10 .. 95
    resample           factor of bicubic down-sampling, undone                                       1.5 .. 8
    clean              nothing at all: so that what is good already is left alone                      0 .. 1

Names joined by ``+`` apply one after another (``blur+jpeg``), but haze last: it lies over the darkened scene and what
falls in it, as in CDD-11 (Guo et al., 2024). Their level is a share 0 .. 1 of each one's range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .blur import anisotropic_blur, blur, motion_blur
from .common import sent
from .jpeg import jpeg
from .noise import gaussian_noise, poisson_noise
from .resize import resample
from .weather import haze, low_light, rain, snow


def clean(images: Tensor, levels: Tensor, seeds: Tensor) -> Tensor:
    """The images."""
    return images


Degradation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of images float32 ``[B, 3, H, W]``, levels float32 ``[B]`` and seeds int64 ``[B]``, to images of any range."""

CLEAN = "clean"
"""The degradation that leaves an image as it is."""
FUNCTIONS: dict[str, tuple[Degradation, tuple[float, float]]] = {
    "noise": (gaussian_noise, (5, 50)),
    "poisson": (poisson_noise, (0.5, 10)),
    "blur": (blur, (0.5, 4)),
    "anisotropic_blur": (anisotropic_blur, (1, 4)),
    "motion_blur": (motion_blur, (3, 25)),
    "rain": (rain, (0.5, 2)),
    "snow": (snow, (0.3, 1.5)),
    "haze": (haze, (0.7, 2)),
    "lowlight": (low_light, (1.5, 3.5)),
    "jpeg": (jpeg, (10, 95)),
    "resample": (resample, (1.5, 8)),
    CLEAN: (clean, (0, 1)),
}
"""What each single name computes, before it is clamped, and its least and largest level."""
CDD11 = (
    "lowlight",
    "haze",
    "rain",
    "snow",
    "lowlight+haze",
    "lowlight+rain",
    "lowlight+snow",
    "haze+rain",
    "haze+snow",
    "lowlight+haze+rain",
    "lowlight+haze+snow",
)
"""The eleven classes of the CDD-11 benchmark of composite degradations."""
NAMES = (*FUNCTIONS, *(name for name in CDD11 if "+" in name))
"""Degradations, and the compositions of :data:`CDD11`; other compositions are allowed too."""
RANGES = {name: FUNCTIONS[name][1] if name in FUNCTIONS else (0.0, 1.0) for name in NAMES}
"""Least and largest level of each of :data:`NAMES`."""


@torch.no_grad()
def degrade(images: Tensor, name: str, level: float | Sequence[float] | Tensor, seeds: Tensor) -> Tensor:
    """Degraded copies of a batch, computed on its device.

    What is random in a sample depends on its own seed, level and size alone, neither on the other samples nor on its
    place among them. Convolutions and matrix products may round differently in another batch, in the last bits.

    Args:
        images: float32 ``[B, 3, H, W]`` in [0, 1], of any size from 1 x 1, on any device.
        name: one of :data:`NAMES`, or names of single degradations joined by ``+``, each at most once.
        level: one for all samples, or one each (``[B]``), in the range of :data:`RANGES`. A tensor on a GPU is waited
            for.
        seeds: int64 ``[B]``.

    Returns:
        float32 ``[B, 3, H, W]`` in [0, 1], without a gradient.

    Raises:
        TypeError: ``images`` or ``seeds`` of another type. ValueError: a bad shape, name or level, by name.
    """
    check_batch(images, seeds)
    parts = _parts(name)
    low, high = FUNCTIONS[name][1] if len(parts) == 1 else (0.0, 1.0)
    levels = torch.as_tensor(level, dtype=torch.float32)
    if levels.ndim > 1 or (levels.ndim == 1 and len(levels) != len(images)):
        raise ValueError(f"level must be one number or [{len(images)}], got {list(levels.shape)}")
    if not bool(((levels >= low) & (levels <= high)).all()):
        raise ValueError(f"level of {name!r} must be in {low}..{high}, got {levels.tolist()}")
    if len(images) == 0:
        return images.clone()
    levels, seeds = sent(levels, images.device).expand(len(images)), sent(seeds, images.device)
    for part in parts:
        function, (least, most) = FUNCTIONS[part]
        own = levels if len(parts) == 1 else least + (most - least) * levels
        images = function(images, own, seeds).clamp(0, 1)
    return images


def check_batch(images: Tensor, seeds: Tensor) -> None:
    """TypeError or ValueError unless they are images ``[B, 3, H, W]`` and their seeds."""
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        raise TypeError(f"images must be a float32 tensor, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must be [B, 3, H, W] of at least 1 x 1 pixel, got {list(images.shape)}")
    if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be an int64 tensor, got {getattr(seeds, 'dtype', type(seeds).__name__)}")
    if seeds.shape != images.shape[:1]:
        raise ValueError(f"seeds must be [{len(images)}], one a sample, got {list(seeds.shape)}")


def _parts(name: str) -> list[str]:
    parts = name.split("+") if isinstance(name, str) else []
    if not parts or any(part not in FUNCTIONS for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(f"name must be one of {', '.join(FUNCTIONS)}, or several joined by '+', got {name!r}")
    return sorted(parts, key=lambda part: part == "haze")
