"""What operators share that touch each pixel of ``[B, 3, H, W]`` images once: checks, addresses, noise by Philox."""

from .ops import derived_seeds, image_normals, poisson, uniforms

__all__ = ["derived_seeds", "image_normals", "poisson", "uniforms"]
