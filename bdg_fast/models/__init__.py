"""Networks: the residual-diffusion UNet and its checkpoints."""

from .unet import SIZES, UNet, UNetConfig, UNetOutput

__all__ = ["SIZES", "UNet", "UNetConfig", "UNetOutput"]
