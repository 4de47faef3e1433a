"""Training's noisy images, and their noise, in one launch."""

from .api import forward_process

__all__ = ["forward_process"]
