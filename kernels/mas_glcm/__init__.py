"""Gray-level co-occurrence matrices of many offsets at once (MAS-GLCM, BDG eq. (4))."""

from .api import MASGLCM, glcm, glcm_offsets, mas_glcm

__all__ = ["MASGLCM", "glcm", "glcm_offsets", "mas_glcm"]
