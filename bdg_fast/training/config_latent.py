"""Settings of training in a VAE's latents. Their checks are those of all settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..latent.colour import COLOURS
from ..latent.space import LARGEST_SCALE
from .config_stage import check, choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """Training in latents: clean and degraded images are encoded in every step by a VAE that stays as it is.

    Losses of the network's output are those of latents; fingerprints are read of the degraded pixels, before they are
    enlarged. ``network.channels`` is that of the VAE's latents.

    Attributes:
        vae: `diffusers.AutoencoderKL`: its folder, one of a pipeline, or a name on the hub
            (`bdg_fast.latent.find_vae`).
        scale: of super-resolution: degraded images are reduced by it, rounded to 8 bits, and enlarged again; 1: not.
            Those of pairs are taken as they are, of the size of the clean ones.
        colour: of restored images, by checkpoints of this run: ``"none"``, ``"adain"``, ``"wavelet"``.
        sample: draw clean latents from their posteriors, by the image's seed of the step, instead of their modes.
        dtype: of the VAE: ``"float32"``, ``"bfloat16"``.
        copy: exported networks (``best``, ``network``) hold a copy of the VAE; else its name and the SHA-256 of its
            weights.
    """

    vae: str
    scale: int = 1
    colour: str = "none"
    sample: bool = False
    dtype: str = "float32"
    copy: bool = False

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        check(self.vae != "", "vae must name a folder or a repository of the hub, got ''")
        check(1 <= self.scale <= LARGEST_SCALE, f"scale must be in 1..{LARGEST_SCALE}, got {self.scale}")
        choice("colour", self.colour, COLOURS)
        choice("dtype", self.dtype, ("float32", "bfloat16"))
