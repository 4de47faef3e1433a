"""The only source of diffusion coefficients: cumulative tables, stages, respacing.

Images in [-1, 1], residual ``x_res = x_lq - x_0``. With increments ``alpha_t, beta_t^2, delta_t`` and their sums
``A_t, B_t^2, D_t`` (all 0 before the first step, ``t = -1``):

    one step       x_t = x_{t-1} + alpha_t x_res + beta_t eps - delta_t x_lq
    closed form    x_t = x_0 + A_t x_res + B_t eps - D_t x_lq
    implicit step  x_s = x_t - (A_t - A_s) res - (B_t - sqrt(B_s^2 - sigma^2)) eps + (D_t - D_s) x_lq + sigma z,
                   sigma^2 = eta (B_t^2 - B_s^2) B_s^2 / B_t^2

``eta = 0`` is exact for exact predictions, ``eta = 1`` has the published mean ``beta^2 / B_t eps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1000
STAGES = ("generation", "bridging", "restoration")
TIMES = ("scaled", "index")
"""Units of a network's time: ``1000 A_t``, or ``t`` itself."""


def _check_delta(delta_end: float) -> None:
    if not 0 <= delta_end < math.inf:
        raise ValueError(f"delta_end must not be negative, got {delta_end}")


class StepCoefficients(NamedTuple):
    """Of one reverse step: ``x_s = x_t - residual res - noise eps + degraded x_lq + sigma z``."""

    residual: float
    noise: float
    degraded: float
    sigma: float


@dataclass(frozen=True, eq=False)
class ResidualSchedule:
    """Cumulative coefficients ``A_t``, ``B_t^2`` and ``D_t``, float64 ``[T]`` each.

    Raises:
        ValueError: tables of different or no length, not finite, or decreasing.
    """

    alpha: Tensor
    beta2: Tensor
    delta: Tensor

    def __post_init__(self) -> None:
        """Refuse tables that are no schedule, by name."""
        for name in ("alpha", "beta2", "delta"):
            table = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if table.ndim != 1 or len(table) == 0:
                raise ValueError(f"{name} must be a table [T] with T >= 1, got shape {list(table.shape)}")
            if not bool(table.isfinite().all()) or table[0] < 0 or bool((table.diff() < 0).any()):
                raise ValueError(f"{name} must be finite, begin at 0 or above and not decrease")
            object.__setattr__(self, name, table)
        lengths = {name: len(getattr(self, name)) for name in ("alpha", "beta2", "delta")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"alpha, beta2 and delta must have one length, got {lengths}")
        if self.beta2[-1] == 0:
            raise ValueError("beta2 must not stay 0: without noise there is no diffusion")

    @classmethod
    def linear(cls, steps: int = STEPS, delta_end: float = 1.8e-3) -> ResidualSchedule:
        """The published one: DiffUIR's tables to the bit (``delta_end`` 1.8e-3 or 1.5e-3); 0 for RDDM's linear one."""
        _check_delta(delta_end)
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float32)
        product = (1 - beta).cumprod(0)  # float32, as the published codes have it
        if delta_end:
            delta = torch.linspace(1e-6, delta_end, steps, dtype=torch.float32).cumsum(0).clamp(0, 1)
        else:
            delta = torch.zeros(steps)
        return cls(1 - product**0.5, 1 - product, delta)

    @classmethod
    def cosine(cls, steps: int = STEPS, delta_end: float = 1.8e-3, offset: float = 0.008) -> ResidualSchedule:
        """Nichol and Dhariwal's cosine signal level, as the linear schedule uses its own."""
        _check_delta(delta_end)
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        level = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
        product = (level / math.cos(offset / (1 + offset) * (math.pi / 2)) ** 2).clamp(0, 1)
        delta = torch.linspace(1e-6, delta_end, steps, dtype=torch.float64).cumsum(0).clamp(0, 1)
        return cls(1 - product.sqrt(), 1 - product, delta if delta_end else torch.zeros(steps))

    @classmethod
    def rddm(cls, steps: int = STEPS, sum_scale: float = 1.0) -> ResidualSchedule:
        """RDDM's own tables: residual first, noise last, noise variance ``sum_scale`` in all."""
        increase = torch.linspace(1, steps, steps, dtype=torch.float64) / (0.5 * steps * (steps + 1))
        alpha, beta2 = increase.flip(0).cumsum(0), (increase * sum_scale).cumsum(0)
        return cls(alpha.clamp(0, 1).float(), beta2.clamp(0, 1).float(), torch.zeros(steps))

    def __len__(self) -> int:
        """Number of steps ``T``."""
        return len(self.alpha)

    def stage(self, name: str) -> ResidualSchedule:
        """The schedule of a training stage.

        ``"generation"``: noise alone; ``"bridging"``: residual and noise; ``"restoration"``: all.
        """
        if name not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(map(repr, STAGES))}, got {name!r}")
        none = torch.zeros_like(self.alpha)
        return ResidualSchedule(
            self.alpha if name != "generation" else none,
            self.beta2,
            self.delta if name == "restoration" else none,
        )

    def times(self, steps: int) -> list[int]:
        """``steps + 1`` times from ``T - 1`` down to -1, spaced as in the published codes.

        Raises:
            ValueError: ``steps`` is not in 1..T.
        """
        if not 1 <= steps <= len(self):
            raise ValueError(f"steps must be in 1..{len(self)}, got {steps}")
        spaced: list[int] = torch.linspace(-1, len(self) - 1, steps + 1).int().tolist()  # float32, truncated: as there
        return spaced[::-1]

    def at(self, t: int) -> tuple[float, float, float]:
        """``A_t, B_t, D_t``; zeros at ``t = -1``.

        Raises:
            ValueError: ``t`` is not in -1..T-1.
        """
        if not -1 <= t < len(self):
            raise ValueError(f"t must be in -1..{len(self) - 1}, got {t}")
        if t < 0:
            return 0.0, 0.0, 0.0
        return self.alpha[t].item(), math.sqrt(self.beta2[t].item()), self.delta[t].item()

    def coefficients(self, t: int, s: int, eta: float) -> StepCoefficients:
        """Of the implicit step from ``t`` to ``s < t``; ``eta`` in [0, 1].

        Raises:
            ValueError: times or ``eta`` beyond that.
        """
        if t <= s:
            raise ValueError(f"s must be below t = {t}, got {s}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        (a_t, b_t, d_t), (a_s, b_s, d_s) = self.at(t), self.at(s)
        sigma2 = eta * (b_t**2 - b_s**2) * b_s**2 / b_t**2 if b_t > 0 else 0.0
        return StepCoefficients(a_t - a_s, b_t - math.sqrt(max(b_s**2 - sigma2, 0.0)), d_t - d_s, math.sqrt(sigma2))

    def network_time(self, t: int | Tensor, units: str = "scaled") -> Tensor:
        """What the network takes for time ``t`` (`UNetConfig.time`): float32 ``1000 A_t``, or ``t`` itself.

        Raises:
            ValueError: other ``units``, or ``t`` is not in 0..T-1.
        """
        if units not in TIMES:
            raise ValueError(f"units must be 'scaled' or 'index', got {units!r}")
        index = self._index(t)
        found = self.alpha[index].float() * 1000 if units == "scaled" else index.float()
        return found.to(t.device) if isinstance(t, Tensor) else found

    def _index(self, t: int | Tensor) -> Tensor:
        """``t`` on the CPU, in 0..T-1: a negative one would count from the end."""
        index = torch.as_tensor(t, device="cpu")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(f"t must be in 0..{len(self) - 1}, got {index.tolist()}")
        return index

    def forward_table(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """``A_t, B_t, D_t`` of every time, ``[T, 3]``: what `bdg_fast.kernels.forward_process` takes."""
        return torch.stack((self.alpha, self.beta2.sqrt(), self.delta), 1).to(dtype).to(device)

    def increment_table(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """``alpha_t``, ``beta_t^2 / B_t`` and ``delta_t`` of every time, ``[T, 3]``: one published reverse step's.

        The noise's is 0 where there is none yet (``B_t = 0``). `bdg_fast.losses.generation_loss` takes this.
        """
        first = torch.zeros(1, dtype=torch.float64, device=self.alpha.device)
        alpha, beta2, delta = (table.diff(prepend=first) for table in (self.alpha, self.beta2, self.delta))
        noise = torch.where(self.beta2 > 0, beta2 / self.beta2.clamp_min(torch.finfo(torch.float64).tiny).sqrt(), 0.0)
        return torch.stack((alpha, noise, delta), 1).to(dtype).to(device)

    def diffuse(self, x_0: Tensor, x_lq: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_t`` by the closed form.

        Args:
            x_0, x_lq, noise: ``[B, 3, H, W]``.
            t: int64 ``[B]`` in 0..T-1, on any device.

        Raises:
            ValueError: ``t`` is beyond that.
        """
        index = self._index(t)
        # type before device: not every device has float64
        tables = (table[index].to(x_0.dtype).to(x_0.device) for table in (self.alpha, self.beta2, self.delta))
        a, b2, d = (table.view(-1, 1, 1, 1) for table in tables)
        return x_0 + a * (x_lq - x_0) + b2.sqrt() * noise - d * x_lq
