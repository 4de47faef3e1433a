"""Seeded synthetic degradations of photographs.

Each takes images float32 ``[B, 3, H, W]`` in [0, 1] and a level; what is random depends on a sample's own seed
alone, so a sample looks the same whatever batch it is in. Levels, mild to strong:

    noise      standard deviation of Gaussian noise, in 1/255            15, 25, 50
    blur       standard deviation of a Gaussian blur, in pixels          1, 2, 3
    rain       share of pixels a streak starts at, in percent            0.5, 1, 2
    snow       share of pixels a flake sits at, in percent               0.3, 0.7, 1.5
    haze       optical depth at the far end: I = J t + A (1 - t)         0.7, 1.2, 2.0
    lowlight   gamma of the darkening, with shot noise                   1.8, 2.5, 3.5
    jpeg       100 - quality of a JPEG file                              50, 70, 90
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LEVELS: dict[str, tuple[float, float, float]] = {
    "noise": (15, 25, 50),
    "blur": (1, 2, 3),
    "rain": (0.5, 1, 2),
    "snow": (0.3, 0.7, 1.5),
    "haze": (0.7, 1.2, 2.0),
    "lowlight": (1.8, 2.5, 3.5),
    "jpeg": (50, 70, 90),
}
"""Three levels of each degradation, mild to strong; any value from the first to the last is allowed too."""
KINDS = tuple(LEVELS)


def degrade(images: Tensor, kind: str, level: float, seed: int | Sequence[int]) -> Tensor:
    """Degraded copies of ``images``.

    Args:
        images: float32 ``[B, 3, H, W]`` in [0, 1], on the CPU.
        kind: one of :data:`KINDS`.
        level: within the range of :data:`LEVELS`, whose units the module's docstring gives.
        seed: one per sample, or one for all.

    Returns:
        The same shape, in [0, 1].

    Raises:
        ValueError: a bad shape, kind, level or number of seeds.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(f"images must be float32 [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    if kind not in LEVELS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    low, _, high = LEVELS[kind]
    if not low <= level <= high:
        raise ValueError(f"level of {kind!r} must be in {low}..{high}, got {level}")
    seeds = [seed] * len(images) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(images):
        raise ValueError(f"seed must be one integer or {len(images)} of them, got {len(seeds)}")
    samples = [
        _DEGRADE[kind](image, level, torch.Generator().manual_seed(one)).clamp(0, 1)
        for image, one in zip(images, seeds, strict=True)
    ]
    return torch.stack(samples) if samples else images.clone()


def _noise(image: Tensor, sigma: float, random: torch.Generator) -> Tensor:
    return image + sigma / 255 * torch.randn(image.shape, generator=random)


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``[C, H, W]`` with edges replicated."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = F.pad(image[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def _blur(image: Tensor, sigma: float, random: torch.Generator) -> Tensor:
    return _gaussian(image, sigma)


def _seeds(image: Tensor, percent: float, random: torch.Generator) -> Tensor:
    """Random drops ``[1, H, W]``: where they are, as bright as they are near."""
    shape = image.shape[1:]
    where = torch.rand(shape, generator=random) < percent / 100
    return (where * (0.5 + 0.5 * torch.rand(shape, generator=random)))[None]


def _rain(image: Tensor, percent: float, random: torch.Generator) -> Tensor:
    """Streaks of one direction and length, screened over the image."""
    angle = math.radians(90 + 20 * (2 * float(torch.rand((), generator=random)) - 1))
    length = 9 + 2 * int(torch.randint(0, 5, (), generator=random))  # odd, so that the streak is centred
    kernel = torch.zeros(length, length)
    for step in torch.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * length).tolist():
        y, x = (length - 1) / 2 + step * math.sin(angle), (length - 1) / 2 + step * math.cos(angle)
        kernel[round(y), round(x)] = 1
    drops = _seeds(image, percent, random)
    streaks = F.conv2d(drops[None], kernel[None, None], padding="same")[0].clamp(0, 1) * 0.6
    return image + streaks * (1 - image)


def _snow(image: Tensor, percent: float, random: torch.Generator) -> Tensor:
    """Soft flakes of two sizes, screened over the image."""
    flakes = torch.zeros_like(image[:1])
    for share, sigma in ((0.7, 0.9), (0.3, 1.8)):
        spots = _gaussian(_seeds(image, percent * share, random), sigma)
        flakes = flakes + spots * (2 * math.pi * sigma**2)
    return image + flakes.clamp(0, 0.95) * (1 - image)


def _haze(image: Tensor, depth: float, random: torch.Generator) -> Tensor:
    """Scattering ``I = J t + A (1 - t)``, with depth that grows smoothly towards the top of the image."""
    height, width = image.shape[1:]
    rough = torch.rand(1, 1, 4, 4, generator=random)
    relief = F.interpolate(rough, size=(height, width), mode="bicubic", align_corners=True)[0].clamp(0, 1)
    far = torch.linspace(1, 0.4, height)[None, :, None] * (0.6 + 0.4 * relief)
    transmission = torch.exp(-depth * far)
    air = 0.75 + 0.2 * float(torch.rand((), generator=random))
    return image * transmission + air * (1 - transmission)


def _lowlight(image: Tensor, gamma: float, random: torch.Generator) -> Tensor:
    """Darkening ``x^gamma`` with the shot noise of a few hundred electrons and a little read noise."""
    dark = image.clamp(0, 1) ** gamma
    sigma = (dark / 400 + (1.5 / 255) ** 2).sqrt()
    return dark + sigma * torch.randn(image.shape, generator=random)


def _jpeg(image: Tensor, loss: float, random: torch.Generator) -> Tensor:
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=round(100 - loss))
    decoded = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1).to(torch.float32) / 255


_DEGRADE: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "rain": _rain,
    "snow": _snow,
    "haze": _haze,
    "lowlight": _lowlight,
    "jpeg": _jpeg,
}
