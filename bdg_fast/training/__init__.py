"""Training in stages, from a folder of photographs to a network that restores: settings, one loop, checkpoints."""

from .config import TrainConfig
from .settings import load_config
from .trainer import NonFiniteError, Trainer

__all__ = ["NonFiniteError", "TrainConfig", "Trainer", "load_config"]
