"""Networks: what is asked of one, the residual-diffusion UNet, those of `diffusers`, checkpoints, and what reads
fingerprints while they are trained.
"""

import os
from pathlib import Path

from .backbone import Backbone, BackboneConfig, UNetOutput
from .condition import Condition
from .diffusers_unet import DiffusersConfig, DiffusersUNet
from .glcm_encoder import DegradationClassifier, Fingerprint, GLCMEncoder, Projection
from .kinds import ModuleConfig
from .unet import SIZES, UNet, UNetConfig

SHIPPED = Path(__file__).with_name("small")
"""The checkpoint that comes along; its README.md is the model card."""


def checkpoint_at(path: str | os.PathLike[str] | None) -> Path:
    """Where a checkpoint is: :data:`SHIPPED` for None and for its name, ``"small"``, unless that is a file's too."""
    if path is None or (str(path) == SHIPPED.name and not Path(path).exists()):
        return SHIPPED
    return Path(path)


__all__ = [
    "SHIPPED",
    "SIZES",
    "Backbone",
    "BackboneConfig",
    "Condition",
    "DegradationClassifier",
    "DiffusersConfig",
    "DiffusersUNet",
    "Fingerprint",
    "GLCMEncoder",
    "ModuleConfig",
    "Projection",
    "UNet",
    "UNetConfig",
    "UNetOutput",
    "checkpoint_at",
]
