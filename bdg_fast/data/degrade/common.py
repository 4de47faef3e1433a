"""What degradations share: what each draws random numbers for, filters and coordinates.

Throughout, ``B`` samples of ``[3, H, W]``; levels are float32 ``[B]`` and seeds int64 ``[B]`` on the images' device.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from bdg_fast.kernels.pixelwise import uniforms


class Purpose(IntEnum):
    """What random numbers of a seed are for: no two uses in one composition share them."""

    NOISE = 0
    POISSON = 1
    ANISOTROPIC = 2
    MOTION = 3
    RAIN = 4
    RAIN_DROPS = 5
    SNOW_SMALL = 6
    SNOW_LARGE = 7
    HAZE = 8
    HAZE_RELIEF = 9
    LOWLIGHT = 10
    CHAIN = 11


def numbers(seed: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four numbers of each sample, uniform in [0, 1), ``[B, 1, 1, 1]`` each."""
    first, second, third, fourth = uniforms(seed, 1, purpose).view(-1, 4, 1, 1, 1).unbind(1)
    return first, second, third, fourth


def per_sample(level: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1]``."""
    return level.view(-1, 1, 1, 1)


def offsets(radius: int, device: torch.device) -> Tensor:
    """``-radius .. radius``, float32."""
    return torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)


def filtered(images: Tensor, kernels: Tensor, mode: str | None = "replicate") -> Tensor:
    """Each sample of ``[B, C, H, W]`` by its own kernel of ``[B, kh, kw]``, of odd sides; edges are replicated.

    ``mode="constant"`` continues images with zeros; None does not continue them, and the result is smaller.
    """
    batch, channels = images.shape[:2]
    across, down = kernels.shape[2] // 2, kernels.shape[1] // 2
    x = images if mode is None else F.pad(images, [across, across, down, down], mode=mode)
    weight = kernels.repeat_interleave(channels, 0)[:, None]
    found = F.conv2d(x.flatten(0, 1)[None], weight, groups=batch * channels)
    return found.view(batch, channels, *found.shape[2:])


def extended(canvas: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Every sample, of sizes ``[B]``, continued by its last row and column to the edge of ``canvas [B, C, H, W]``."""
    rows = torch.arange(canvas.shape[2], device=canvas.device).minimum(height.view(-1, 1).long() - 1)
    columns = torch.arange(canvas.shape[3], device=canvas.device).minimum(width.view(-1, 1).long() - 1)
    found = canvas.gather(2, rows[:, None, :, None].expand_as(canvas))
    return found.gather(3, columns[:, None, None, :].expand_as(canvas))


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of ``[B, C, H, W]`` with ``sigma [B]``, cut off at ``radius`` whatever the sigma."""
    kernel = torch.exp(-(offsets(radius, images.device) ** 2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    return filtered(filtered(images, kernel[:, None, :]), kernel[:, :, None])


def line(length: Tensor, angle: Tensor, radius: int) -> Tensor:
    """Line segments through the middle, one pixel wide, of soft edges: ``[B, 2 radius + 1, 2 radius + 1]``, at most 1.

    A pixel has 1 less its distance from the segment of ``length - 1`` between the middles of the outermost pixels, at
    least 0.

    Args:
        length, angle: ``[B, 1, 1]``, in pixels and radians, counted from the horizontal, downwards.
        radius: half of the kernel's side; longer segments are cut off.
    """
    at = offsets(radius, length.device)
    y, x = at[:, None], at[None, :]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    beyond = (along.abs() - (length - 1) / 2).clamp_min(0)
    return (1 - (beyond**2 + across**2).sqrt()).clamp_min(0)


def sent(small: Tensor, device: torch.device) -> Tensor:
    """A small tensor on another device. On its way to a CUDA device nothing waits.

    Elsewhere it must: MPS reads the source later, when it may be gone, and what is on its way to the CPU is not there.
    """
    return small.to(device, non_blocking=small.device.type == "cpu" and device.type == "cuda")
