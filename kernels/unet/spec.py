"""What all backends share: names of what goes between the parts."""

from __future__ import annotations

from typing import Any, NamedTuple

EPS = 1e-5
"""Of every normalization."""
HEADS, HEAD_WIDTH = 4, 32
"""Of the linear attention."""
HIDDEN = HEADS * HEAD_WIDTH
CHANNELS = 16
"""All images but a network's input have a multiple of as many channels."""


class ConvOutput(NamedTuple):
    """What a convolution made."""

    image: Any  # [B, H, W, C]
    moments: Any = None  # [B, blocks, 2, C]: means, and sums of squared distances from them, for the compiled backend
    counts: Any = None  # float64 [blocks], pixels


class Affine(NamedTuple):
    """Gain and offset of each image's channels, ``[B, C]``."""

    gain: Any
    offset: Any
