"""Numbers that every backend shares."""

from __future__ import annotations

STEP_STREAM, FORWARD_STREAM, DRAW_STREAM, SEED_STREAM = 0, 1, 2, 3
"""Last word of the Philox counter: operators given the same seed draw different noise."""

FEW = 5.0
"""Photons up to which Poisson numbers are counted up one by one; beyond, the expansion's error is below 1e-3."""
MOST = 24
"""Photons that a mean of :data:`FEW` never reaches, but once in 10^9."""
LAST_RANK = 1 - 1e-6
"""Beyond, sums in float32 cannot tell a rank from 1."""
