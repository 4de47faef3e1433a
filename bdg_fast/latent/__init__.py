"""Restoration in the latents of a VAE, as the paper does for real-world super-resolution with Stable Diffusion 2's.

vae.py: finding and loading a `diffusers.AutoencoderKL`; codec.py: images to latents and back; colour.py: colours of the
degraded image for the restored one; space.py: what a checkpoint tells of all that.
"""

from .codec import TILE as CODEC_TILE
from .codec import Codec
from .space import LATENT_FILE, LatentSpace, unbounded
from .vae import find_vae

__all__ = ["CODEC_TILE", "LATENT_FILE", "Codec", "LatentSpace", "find_vae", "unbounded"]
