"""From a degraded image to a restored one: reverse steps of residual and noise.

A step needs the residual and the noise. A network with one head leaves the other to the closed form
``x_t = x_0 + A_t res + B_t eps - D_t x_lq`` with ``x_0 = x_lq - res``:

    eps = (x_t - (1 - D_t) x_lq - (A_t - 1) res) / B_t
    res = (x_t - (1 - D_t) x_lq - B_t eps) / (A_t - 1)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .kernels.sampler_step import StepRow, sampler_step, step_parts
from .schedule import TIMES, ResidualSchedule

METHODS = ("ddim", "ddpm", "paper")
OFFICIAL = ("use_pred_noise", "use_x_start", "special_eta_0", "special_eta_1")
"""DiffUIR's own updates by the names in its code, for its checkpoints; RDDM's is ``"ddim"``."""
NEARLY = 1e-5
"""Float32 rounds a residual that is divided by less to more than a gray level."""


class Prediction(Protocol):
    """What a network returns: `bdg_fast.models.UNetOutput`."""

    @property
    def residual(self) -> Tensor | None:
        """``[B, 3, H, W]``."""

    @property
    def noise(self) -> Tensor | None:
        """``[B, 3, H, W]``."""


class Config(Protocol):
    """What a configuration tells of the sampler: `bdg_fast.UNetConfig`."""

    @property
    def family(self) -> str:
        """``"bdg"``, ``"diffuir"`` or ``"rddm"``."""

    @property
    def time(self) -> str:
        """``"scaled"`` or ``"index"``."""

    @property
    def delta_end(self) -> float:
        """Last increment of the schedule's delta."""

    @property
    def sampler_steps(self) -> int:
        """Evaluations of the network."""

    @property
    def sum_scale(self) -> float:
        """Variance of RDDM's noise."""


Network = Callable[[Tensor, Tensor, Tensor], Prediction]


@dataclass(frozen=True)
class Step:
    """What a callback sees of one reverse step; images ``[B, 3, H, W]`` in [-1, 1] and noise."""

    index: int
    t: int
    s: int  # -1 at the last step
    x_t: Tensor
    residual: Tensor
    noise: Tensor
    x_0: Tensor  # the restored image as predicted here, clamped
    x_s: Tensor


@dataclass(frozen=True, kw_only=True)
class ResidualSampler:
    """Reverse diffusion in a few steps.

    Attributes:
        schedule: of the coefficients.
        steps: network evaluations.
        method: ``"ddim"`` (``eta = 0``, deterministic after the start), ``"ddpm"`` (``eta = 1``), ``"paper"`` (the mean
            of ``"ddpm"`` without its noise, as published), or one of :data:`OFFICIAL`.
        eta: in [0, 1], overrides that of ``"ddim"``; share of fresh noise a step.
        start_noise: standard deviation of the noise at the start; default ``B_T``. DiffUIR takes 0.1.
        clamp_residual: limit the predicted residual to [-1, 1] as the official codes do. Its true range is [-2, 2]:
            with the limit strong darkness or haze is not fully undone.
        time: units of the network's time (`UNetConfig.time`).
        bound: the predicted ``x_0`` is limited to [-bound, bound]; infinity for latents, which have no range.
    """

    schedule: ResidualSchedule
    steps: int = 3
    method: str = "ddim"
    eta: float | None = None
    start_noise: float | None = None
    clamp_residual: bool = False
    time: str = "scaled"
    bound: float = 1.0

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        self.schedule.times(self.steps)
        if self.method not in METHODS + OFFICIAL:
            raise ValueError(f"method must be one of {', '.join(map(repr, METHODS + OFFICIAL))}, got {self.method!r}")
        if self.eta is not None and (self.method in ("ddpm", "paper") or not 0 <= self.eta <= 1):
            raise ValueError(f"eta must be in [0, 1] and goes with 'ddim' or an official method, got {self.eta}")
        if self.start_noise is not None and not self.start_noise >= 0:
            raise ValueError(f"start_noise must not be negative, got {self.start_noise}")
        if not self.bound > 0:
            raise ValueError(f"bound must be above 0, got {self.bound}")
        if self.time not in TIMES:
            raise ValueError(f"time must be 'scaled' or 'index', got {self.time!r}")

    @classmethod
    def of(cls, config: Config, steps: int | None = None) -> ResidualSampler:
        """The sampler that weights were made for, by what their configuration (`bdg_fast.UNetConfig`) tells."""
        steps = config.sampler_steps if steps is None else steps
        if config.family == "diffuir":
            return cls.official(steps, config.delta_end)
        if config.family == "bdg":
            return cls(schedule=ResidualSchedule.linear(delta_end=config.delta_end), steps=steps, time=config.time)
        own = ResidualSchedule.rddm(sum_scale=config.sum_scale)
        return cls(
            schedule=own if config.time == "index" else ResidualSchedule.linear(delta_end=0),
            steps=steps,
            start_noise=config.sum_scale**0.5,
            clamp_residual=True,
            time=config.time,
        )

    @property
    def draws(self) -> bool:
        """Whether steps draw noise, beyond the start."""
        return self.method == "ddpm" or bool(self.eta)

    @classmethod
    def official(cls, steps: int = 3, delta_end: float = 1.8e-3) -> ResidualSampler:
        """DiffUIR's, to the bit of its intermediates: for its checkpoints."""
        return cls(
            schedule=ResidualSchedule.linear(delta_end=delta_end),
            steps=steps,
            method="use_pred_noise",
            start_noise=0.1,
            clamp_residual=True,
        )

    def start(self, x_lq: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """``x_T = (1 - D_T) x_lq`` and noise, as ``x_lq``; standard ``noise`` is drawn if it is not given."""
        _, b, d = self.schedule.at(len(self.schedule) - 1)
        z = noise
        if z is None:
            z = torch.randn(x_lq.shape, generator=generator, dtype=x_lq.dtype, device=x_lq.device)
        return (1 - d) * x_lq + (b if self.start_noise is None else self.start_noise) * z

    @torch.no_grad()
    def __call__(
        self,
        network: Network,
        x_lq: Tensor,
        *,
        generator: torch.Generator | None = None,
        x_start: Tensor | None = None,
        seed: Tensor | None = None,
        callback: Callable[[Step], object] | None = None,
    ) -> Tensor:
        """Restore images.

        With ``x_start``, and ``seed`` where steps draw, nothing is drawn from a generator and, after a first call,
        nothing is copied to the device, so that a CUDA graph can hold the whole loop.

        Args:
            network: ``network(x_t, x_lq, time)`` with residual, noise, or both.
            x_lq: degraded images, float ``[B, 3, H, W]`` in [-1, 1]; or latents of them, ``[B, C, H, W]``.
            generator: of all randomness, on the device of ``x_lq``; results repeat with its seed. After the start, the
                noise of all steps comes from one 64-bit seed an image (`bdg_fast.kernels.sampler_step`); official
                methods draw images step by step, as their codes do.
            x_start: to begin from, instead of :meth:`start`.
            seed: int64 ``[B]``, of the noise of all steps, instead of drawn ones; not for official methods.
            callback: called after every step; ``trajectory`` collects them. Results are the same with and without.

        Returns:
            Restored images, in [-1, 1].

        Raises:
            ValueError: ``seed`` for a method that draws images.
        """
        x = self.start(x_lq, generator) if x_start is None else x_start
        official = self.method in OFFICIAL
        if official and seed is not None:
            raise ValueError(f"seed must not be given for method={self.method!r}, which draws images step by step")
        if self.draws and not official and seed is None:
            seed = self.seeds(len(x), x.device, generator)
        times, inputs = self.schedule.times(self.steps), self.network_times(x_lq.device)
        for index, (t, s) in enumerate(itertools.pairwise(times)):
            heads, prediction = _prediction(network(x, x_lq, inputs[index].expand(len(x_lq))))
            table = self.table(heads, x.device, x.dtype)
            fresh = None
            if official and self.rows(heads)[index].sigma > 0:
                fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x_s = sampler_step(x, x_lq, prediction, table, index, heads=heads, seed=seed, fresh=fresh, bound=self.bound)
            if callback is not None:
                parts = step_parts(x, x_lq, prediction, table, index, heads=heads, bound=self.bound)
                callback(Step(index, t, s, x, *parts, x_s))
            x = x_s
        return x

    @torch.no_grad()
    def step(self, index: int, x_t: Tensor, x_lq: Tensor, found: Prediction) -> Tensor:
        """``x_s`` of one step that draws nothing, of images or any part of them ``[B, 3, H, W]``."""
        heads, prediction = _prediction(found)
        table = self.table(heads, x_t.device, x_t.dtype)
        return sampler_step(x_t, x_lq, prediction, table, index, heads=heads, bound=self.bound)

    def trajectory(self, network: Network, x_lq: Tensor, **options: object) -> list[Step]:
        """All steps of a call; the last ``x_s`` is its result."""
        steps: list[Step] = []
        self(network, x_lq, callback=steps.append, **options)  # type: ignore[arg-type]
        return steps

    @staticmethod
    def seeds(batch: int, device: str | torch.device = "cpu", generator: torch.Generator | None = None) -> Tensor:
        """Seeds of the noise of ``batch`` images, int64 ``[batch]`` over all 64 bits, as a call draws them."""
        ends = torch.iinfo(torch.int64)
        return torch.randint(ends.min, ends.max, (batch,), generator=generator, device=device)

    def network_times(self, device: str | torch.device = "cpu") -> Tensor:
        """What the network takes for the time of each step, float32 ``[steps]``; kept as :meth:`table` is."""
        key = torch.device(device)
        if key not in self._kept_times:
            times = torch.tensor(self.schedule.times(self.steps)[:-1])
            self._kept_times[key] = self.schedule.network_time(times, self.time).to(key)
        return self._kept_times[key]

    def table(self, heads: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Coefficients of all steps for `bdg_fast.kernels.sampler_step`, ``[steps, 16]``; float64 for float64 images.

        Made once for each device and kept with the sampler, as a captured CUDA graph holds their address.
        """
        key = (heads, torch.device(device), torch.float64 if dtype == torch.float64 else torch.float32)
        if key not in self._kept:
            rows = [row.padded() for row in self.rows(heads)]
            self._kept[key] = torch.tensor(rows, dtype=key[2]).to(key[1])
        return self._kept[key]

    def rows(self, heads: str) -> tuple[StepRow, ...]:
        """Coefficients of all steps, for a network with ``heads``: ``"residual"``, ``"noise"`` or ``"both"``.

        Raises:
            ValueError: a time at which noise alone does not tell the residual, ``A_t = 1`` or nearly.
        """
        if heads not in self._kept_rows:
            times = itertools.pairwise(self.schedule.times(self.steps))
            self._kept_rows[heads] = tuple(self._row(t, s, heads) for t, s in times)
        return self._kept_rows[heads]

    @cached_property
    def _kept(self) -> dict[tuple[str, torch.device, torch.dtype], Tensor]:
        return {}

    @cached_property
    def _kept_times(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _kept_rows(self) -> dict[str, tuple[StepRow, ...]]:
        return {}

    def _row(self, t: int, s: int, heads: str) -> StepRow:
        """Of the step from ``t`` to ``s``."""
        a, b, d = self.schedule.at(t)
        row = StepRow(clean_x_lq=1.0, clean_residual=-1.0)
        if heads == "both":
            row = StepRow(clean_x_t=1.0, clean_x_lq=d, clean_residual=-a, clean_noise=-b)
        elif heads == "noise":
            if 1 - a < NEARLY:  # rounding of the noise would become a residual of its own
                raise ValueError(f"the residual cannot be told from noise alone at t = {t}, where A_t = {a:.6g}")
            row = _completing(row, 1 / (a - 1), -(1 - d) / (a - 1), -b / (a - 1))
        elif b > 0:  # without noise there is none to tell
            row = _completing(row, 1 / b, -(1 - d) / b, -(a - 1) / b)
        if self.clamp_residual:
            row = row._replace(limit=1.0)
        return row._replace(next_x_0=1.0) if s < 0 else self._towards(row, t, s)

    def _towards(self, row: StepRow, t: int, s: int) -> StepRow:
        """``row`` with what makes ``x_s``."""
        eta = {"ddpm": 1.0, "paper": 1.0}.get(self.method, self.eta or 0.0)
        step = self.schedule.coefficients(t, s, eta)
        (a_t, b_t, d_t), (a_s, b_s, d_s) = self.schedule.at(t), self.schedule.at(s)
        row = row._replace(next_x_t=1.0, next_residual=-step.residual, sigma=step.sigma)
        if self.method in METHODS:
            row = row._replace(next_x_lq=step.degraded, next_noise=-step.noise)
            return row._replace(sigma=0.0) if self.method == "paper" else row
        if self.method == "use_pred_noise":
            return row._replace(next_x_lq=step.degraded)  # the noise term is dropped there
        if self.method == "special_eta_0":
            return row._replace(next_noise=-(b_t - b_s), sigma=0.0)
        if self.method == "special_eta_1":
            return row._replace(next_noise=-(b_t**2 - b_s**2) / b_t)
        kept = b_s**2 / b_t**2  # whatever eta is
        return row._replace(
            next_x_t=kept, next_x_lq=-(d_s - d_t * kept), next_residual=a_s - a_t * kept, next_x_0=1 - kept
        )


def _completing(row: StepRow, x_t: float, x_lq: float, predicted: float) -> StepRow:
    return row._replace(complete_x_t=x_t, complete_x_lq=x_lq, complete_predicted=predicted)


def _prediction(found: Prediction) -> tuple[str, Tensor | tuple[Tensor, Tensor]]:
    """What `sampler_step` takes for ``heads`` and ``prediction``."""
    residual, noise = found.residual, found.noise
    if residual is not None and noise is not None:
        return "both", (residual, noise)
    if residual is not None:
        return "residual", residual
    if noise is not None:
        return "noise", noise
    raise ValueError("network must predict a residual, noise, or both, got neither")
