"""Pictures that are far from every known degradation, or should be: what `bdg_fast.analysis` is to call unknown.

Every function makes uint8 ``[3, H, W]`` of a random generator and a photograph uint8 ``[3, H, W]``, which some ignore.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bdg_fast.data.degrade import CDD11, degrade


def _of_array(values: np.ndarray) -> Tensor:
    """uint8 or [0, 1], ``[H, W]`` or ``[H, W, 3]``."""
    pixels = values if values.dtype == np.uint8 else (values.clip(0, 1) * 255).round().astype(np.uint8)
    pixels = np.repeat(pixels[:, :, None], 3, 2) if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _grid(photograph: Tensor) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: photograph.shape[1], : photograph.shape[2]]
    return y, x


def white_noise(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    return _of_array(rng.random((*photograph.shape[1:], 3)))


def binary_noise(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    return _of_array((rng.random(photograph.shape[1:]) < 0.5).astype(float))


def smooth_clouds(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """Noise of a spectrum that falls as a power of the frequency."""
    height, width = photograph.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency ** rng.uniform(1.5, 3)
    found = np.fft.irfft2(spectrum, (height, width))
    return _of_array(0.5 + 0.2 * found / found.std())


def stripes(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    y, x = _grid(photograph)
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
    return _of_array((np.sin(2 * np.pi * (y * np.sin(angle) + x * np.cos(angle)) / period) > 0).astype(float))


def checkerboard(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    y, x = _grid(photograph)
    side = int(rng.integers(2, 24))
    return _of_array(((y // side + x // side) % 2).astype(float))


def flat(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    return _of_array(np.broadcast_to(rng.random(3), (*photograph.shape[1:], 3)))


def gradient(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    y, x = _grid(photograph)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = y * np.sin(angle) + x * np.cos(angle)
    return _of_array((ramp - ramp.min()) / np.ptp(ramp))


def cartoon(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """Flat discs, boxes and triangles with black outlines."""
    height, width = photograph.shape[1:]
    image = Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(6, 25))):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        size = int(rng.integers(10, max(11, min(width, height) // 2)))
        shape = int(rng.integers(3))
        box = (x - size, y - size // 2, x + size, y + size // 2)
        if shape == 0:
            draw.ellipse(box, colour, "black", 2)
        elif shape == 1:
            draw.rectangle(box, colour, "black", 2)
        else:
            draw.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], colour, "black")
    return _of_array(np.array(image))


def page(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """Black text on white."""
    height, width = photograph.shape[1:]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for y in range(4, height, 12):
        line = "".join(chr(int(c)) for c in rng.integers(97, 123, width // 6))
        draw.text((4, y), line.replace("q", " ").replace("x", " "), fill="black")
    return _of_array(np.array(image))


def inverted(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    return 255 - photograph


def posterized(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """2 to 8 values a channel."""
    steps = int(rng.integers(1, 8))
    return (photograph.float() / 255 * steps).round().div(steps).mul(255).round().to(torch.uint8)


def salt_and_pepper(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """2 to 20 percent of the pixels."""
    share = rng.uniform(0.02, 0.2)
    hit = torch.from_numpy(rng.random(photograph.shape[1:]) < share)
    value = torch.from_numpy((rng.random(photograph.shape[1:]) < 0.5).astype(np.uint8) * 255)
    return torch.where(hit, value, photograph)


def rotated_half(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """The lower half upside down."""
    middle = photograph.shape[1] // 2
    return torch.cat((photograph[:, :middle], photograph[:, middle:].rot90(2, (1, 2))), 1)


def pixelated(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """Blocks of 3 to 10 pixels."""
    side = int(rng.integers(3, 11))
    rows, columns = (torch.arange(size) // side * side for size in photograph.shape[1:])
    return photograph[:, rows][:, :, columns]


def sharpened(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """By 3 to 6 times what a blur takes away."""
    x = photograph.float()[None] / 255
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return (x + rng.uniform(3, 6) * (x - blurred)).clamp(0, 1).mul(255).round().to(torch.uint8)[0]


def composed(rng: np.random.Generator, photograph: Tensor) -> Tensor:
    """Two or three known degradations at once."""
    names = [name for name in CDD11 if "+" in name] + ["blur+noise", "noise+jpeg", "rain+noise", "blur+haze"]
    seed = torch.tensor([int(rng.integers(2**62))])
    out = degrade(photograph[None].float() / 255, names[int(rng.integers(len(names)))], rng.uniform(0.3, 1), seed)
    return out[0].mul(255).round().to(torch.uint8)


STRANGE: dict[str, Callable[[np.random.Generator, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        white_noise, binary_noise, smooth_clouds, stripes, checkerboard, flat, gradient, cartoon, page,
        posterized, salt_and_pepper, pixelated, sharpened, inverted, rotated_half, composed,
    )
}  # fmt: skip


def strange(name: str, photograph: Tensor, seed: int) -> Tensor:
    """One of `STRANGE`, the same for the same seed."""
    return STRANGE[name](np.random.default_rng(random.Random(f"{name} {seed}").getrandbits(63)), photograph)
