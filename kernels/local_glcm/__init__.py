"""Co-occurrence matrices of overlapping windows: a map of an image's texture or degradation."""

from .api import checked_size, local_mas_glcm
from .ops import zero_if_finite

__all__ = ["checked_size", "local_mas_glcm", "zero_if_finite"]
