"""The coefficients of a reverse step: every method is linear between the same two clamps.

predicted    residual limited to [-limit, limit]
completed    the head that is not predicted = complete . (x_t, x_lq, predicted)
x_0          clamp(clean . (x_t, x_lq, residual, noise), -bound, bound)
x_s          next . (x_t, x_lq, residual, noise, x_0) + sigma z
"""

from __future__ import annotations

import math
from typing import NamedTuple

HEADS = ("residual", "noise", "both")
COLUMNS = 16
"""Of the table; the row's own first, then zeros."""


class StepRow(NamedTuple):
    """Of one step, in the order of the table's columns."""

    complete_x_t: float = 0.0
    complete_x_lq: float = 0.0
    complete_predicted: float = 0.0
    clean_x_t: float = 0.0
    clean_x_lq: float = 0.0
    clean_residual: float = 0.0
    clean_noise: float = 0.0
    next_x_t: float = 0.0
    next_x_lq: float = 0.0
    next_residual: float = 0.0
    next_noise: float = 0.0
    next_x_0: float = 0.0
    sigma: float = 0.0
    limit: float = math.inf

    def padded(self) -> list[float]:
        """A row of the table."""
        return [*self, *[0.0] * (COLUMNS - len(self))]
