"""Differentiable co-occurrence matrices: each pixel is shared by its two nearest levels."""

from .api import soft_mas_glcm

__all__ = ["soft_mas_glcm"]
