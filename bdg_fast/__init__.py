"""Fast, exact image restoration with BDG: one diffusion model that knows how its input is degraded.

Public names: :func:`mas_glcm` (the degradation fingerprint), :func:`glcm` (co-occurrence matrices at any
offsets), :class:`MASGLCM` (the module), :func:`glcm_offsets`, :func:`texture_features` and
:func:`graycoprops` (Haralick features of a matrix).
"""

from .kernels.mas_glcm import MASGLCM, glcm, glcm_offsets, mas_glcm
from .texture import graycoprops, texture_features

__version__ = "0.1.0"
__all__ = [
    "MASGLCM",
    "__version__",
    "glcm",
    "glcm_offsets",
    "graycoprops",
    "mas_glcm",
    "texture_features",
]
