"""Fast, exact fingerprints of image degradation (BDG): co-occurrence matrices on CPU and GPU.

Public names: :func:`mas_glcm` (the matrix), :func:`fingerprint` (the vector that tells degradations apart best),
:func:`glcm` (co-occurrence matrices at any offsets), :class:`MASGLCM` (the module), :func:`soft_mas_glcm`
(with a gradient), :func:`local_mas_glcm` (of overlapping windows), :func:`glcm_offsets`, :func:`texture_features`,
:func:`local_texture_features` and :func:`graycoprops` (Haralick features).
Restoration: :class:`Restorer` (pictures), :class:`UNet`, :class:`Backbone` (for networks of one's own),
:class:`ResidualSchedule`, :class:`ResidualSampler`.
"""

from .evaluation.representations import fingerprint
from .kernels.local_glcm import local_mas_glcm
from .kernels.mas_glcm import MASGLCM, glcm, glcm_offsets, mas_glcm
from .kernels.soft_glcm import soft_mas_glcm
from .models import SIZES, Backbone, BackboneConfig, UNet, UNetConfig, UNetOutput
from .restorer import Restorer
from .sampler import ResidualSampler
from .schedule import ResidualSchedule
from .texture import graycoprops, local_texture_features, texture_features

__version__ = "0.1.0"
__all__ = [
    "MASGLCM",
    "SIZES",
    "Backbone",
    "BackboneConfig",
    "ResidualSampler",
    "ResidualSchedule",
    "Restorer",
    "UNet",
    "UNetConfig",
    "UNetOutput",
    "__version__",
    "fingerprint",
    "glcm",
    "glcm_offsets",
    "graycoprops",
    "local_mas_glcm",
    "local_texture_features",
    "mas_glcm",
    "soft_mas_glcm",
    "texture_features",
]
