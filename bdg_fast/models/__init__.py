"""Networks: the residual-diffusion UNet and its checkpoints, and what reads fingerprints while it is trained."""

from .glcm_encoder import DegradationClassifier, Fingerprint, GLCMEncoder, Projection
from .unet import SIZES, UNet, UNetConfig, UNetOutput

__all__ = [
    "SIZES",
    "DegradationClassifier",
    "Fingerprint",
    "GLCMEncoder",
    "Projection",
    "UNet",
    "UNetConfig",
    "UNetOutput",
]
