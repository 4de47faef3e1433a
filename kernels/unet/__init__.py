"""Fused parts of the residual-diffusion UNet for inference."""

from .api import CHANNELS, Affine, ConvOutput, parts, unavailable

__all__ = ["CHANNELS", "Affine", "ConvOutput", "parts", "unavailable"]
