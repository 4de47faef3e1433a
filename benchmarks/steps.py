"""A reverse step and a forward step as one writes them in PyTorch, and the cases they are timed on.

Images ``x_t`` and ``x_lq`` are ``[B, 3, H, W]``, the network's output ``both`` is ``[B, 6, H, W]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdg_fast import ResidualSampler, ResidualSchedule
from bdg_fast.kernels.forward_process import forward_process
from bdg_fast.kernels.sampler_step import sampler_step

SCHEDULE = ResidualSchedule.linear()
STEP = 1  # of three
ETA = {"step": 0.0, "step, noise drawn": 1.0}


def sampler(kind: str) -> ResidualSampler:
    """Three steps; with fresh noise, or without."""
    return ResidualSampler(schedule=SCHEDULE, steps=3, eta=ETA[kind], clamp_residual=True)


def eager_step(kind: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The formula with its numbers in it: nothing that this step does not need."""
    t, s = SCHEDULE.times(3)[STEP : STEP + 2]
    c = SCHEDULE.coefficients(t, s, ETA[kind])

    def step(x_t: Tensor, x_lq: Tensor, both: Tensor) -> Tensor:
        residual, noise = both[:, :3].clamp(-1, 1), both[:, 3:]
        x_s = x_t - c.residual * residual - c.noise * noise + c.degraded * x_lq
        return x_s + c.sigma * torch.randn_like(x_t) if c.sigma else x_s

    return step


def former_step(x_t: Tensor, x_lq: Tensor, both: Tensor) -> Tensor:
    """What the sampler did before `sampler_step`, for residual and noise without fresh noise: ``x_0`` every step."""
    t, s = SCHEDULE.times(3)[STEP : STEP + 2]
    a, b, d = SCHEDULE.at(t)
    residual, noise = both[:, :3].clamp(-1, 1), both[:, 3:]
    (x_t - a * residual - b * noise + d * x_lq).clamp(-1, 1)
    c = SCHEDULE.coefficients(t, s, 0.0)
    return x_t - c.residual * residual - c.noise * noise + c.degraded * x_lq


def fused_step(kind: str, device: str, impl: str = "auto") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Ours, the step's number on the device."""
    table = sampler(kind).table("both", device)
    step = torch.tensor(STEP, device=device)
    seeds: dict[int, Tensor] = {}

    def run(x_t: Tensor, x_lq: Tensor, both: Tensor) -> Tensor:
        seed = None
        if ETA[kind]:
            seed = seeds.setdefault(len(x_t), torch.arange(len(x_t), device=device))
        return sampler_step(x_t, x_lq, both, table, step, heads="both", seed=seed, impl=impl)

    return run


def eager_forward(x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy images and their noise."""
    a, b, d = table[t].view(-1, 3, 1, 1, 1).unbind(1)
    noise = torch.randn_like(x_0)
    return x_0 + a * (x_lq - x_0) + b * noise - d * x_lq, noise


def fused_forward(x_0: Tensor, x_lq: Tensor, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Ours; the images' seeds are whatever ``t`` is, which is all the same to the time it takes."""
    return forward_process(x_0, x_lq, t, table, seed=t)


class Case(NamedTuple):
    """Images to time on."""

    batch: int
    side: int
    dtype: torch.dtype = torch.float32
    last: bool = False

    @property
    def name(self) -> str:
        """Short label."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.batch} x 3 x {self.side} x {self.side}, {dtype}{', channels_last' * self.last}"

    def images(self, seed: int, device: str) -> list[Tensor]:
        """``x_t``, ``x_lq`` and the network's output."""
        generator = torch.Generator(device).manual_seed(seed)
        memory_format = torch.channels_last if self.last else torch.contiguous_format
        return [
            torch.randn(self.batch, n, self.side, self.side, generator=generator, device=device)
            .clamp(-1, 1)
            .to(self.dtype, memory_format=memory_format)
            for n in (3, 3, 6)
        ]

    def bytes_of(self, images: int) -> int:
        """Of that many images of three channels, each read or written once."""
        return images * 3 * self.batch * self.side**2 * self.dtype.itemsize
