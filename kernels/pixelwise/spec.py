"""Numbers that every backend shares."""

from __future__ import annotations

STEP_STREAM, FORWARD_STREAM, DRAW_STREAM, SEED_STREAM = 0, 1, 2, 3
"""Last word of the Philox counter: operators given the same seed draw different noise."""
