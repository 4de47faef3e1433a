"""The parts of the residual-diffusion UNet, each one pass over memory: for a network's inference on the CPU."""

from __future__ import annotations

from .ops import parts, unavailable
from .spec import CHANNELS, Affine, ConvOutput

__all__ = ["CHANNELS", "Affine", "ConvOutput", "parts", "unavailable"]
