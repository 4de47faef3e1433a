"""Networks: the residual-diffusion UNet and its checkpoints, and what reads fingerprints while it is trained."""

from pathlib import Path

from .condition import Condition
from .glcm_encoder import DegradationClassifier, Fingerprint, GLCMEncoder, Projection
from .unet import SIZES, UNet, UNetConfig, UNetOutput

SHIPPED = Path(__file__).with_name("small")
"""The checkpoint that comes along; its README.md is the model card."""

__all__ = [
    "SHIPPED",
    "SIZES",
    "Condition",
    "DegradationClassifier",
    "Fingerprint",
    "GLCMEncoder",
    "Projection",
    "UNet",
    "UNetConfig",
    "UNetOutput",
]
