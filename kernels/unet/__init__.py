"""Fused parts of the residual-diffusion UNet for inference."""

from .api import CHANNELS, Affine, Made, parts, unavailable

__all__ = ["CHANNELS", "Affine", "Made", "parts", "unavailable"]
