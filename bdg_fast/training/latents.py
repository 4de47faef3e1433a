"""A step's images as latents, by a VAE that is no part of what is trained, averaged, sharded or in checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..data.loader import Batch
from ..latent import LATENT_FILE, LatentSpace
from ..latent.space import resized
from ..models.kinds import own_config
from .config import TrainConfig
from .config_latent import Latent
from .config_stage import Stage
from .data import Pair
from .stages import POSTERIOR, step_seeds

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Latents:
    """The VAE of a run, on one process.

    Args:
        settings: of the run.
        channels: of its network.
        device: of its process.

    Raises:
        FileNotFoundError, CheckpointError: the VAE is not there, or none. ImportError: diffusers is not installed.
        ValueError: ``channels`` are not those of its latents.
    """

    def __init__(self, settings: Latent, channels: int, device: torch.device) -> None:
        """Load it."""
        self.settings = settings
        self.space = LatentSpace.of(
            settings.vae, scale=settings.scale, colour=settings.colour, device=device, dtype=DTYPES[settings.dtype]
        )
        try:
            self.space.check(channels)
        except ValueError as error:
            raise ValueError(f"network.channels: {error}") from None

    @classmethod
    def of(cls, config: TrainConfig, device: torch.device) -> Latents | None:
        """That of a run; None for one of pixels."""
        if config.latent is None:
            return None
        found = cls(config.latent, own_config(config.network).channels, device)
        found.check(Path(config.output))
        return found

    def check(self, folder: Path) -> None:
        """Refuse to go on in a run's folder with another VAE than it began with.

        Raises:
            ValueError: the weights are others, whatever they are called.
        """
        path = folder / LATENT_FILE
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("sha256") != self.space.sha256:
            raise ValueError(f"latent.vae={self.settings.vae!r} is another VAE than the run in {folder} began with")

    def save(self, folder: Path, copy: bool | None = None) -> None:
        """Beside a network's files, what it takes to restore with it."""
        self.space.save(folder, self.settings.copy if copy is None else copy)

    def degraded(self, images: Tensor, *, paired: bool) -> tuple[Tensor, Tensor]:
        """Degraded images, of the size of clean ones: small, for fingerprints, and enlarged, to be encoded.

        Args:
            images: float32 ``[B, 3, H, W]`` in [-1, 1].
            paired: whether they are somebody's own, which are not reduced; else they are as from a small 8-bit file.
        """
        scale = self.space.scale
        if scale == 1:
            return images, images
        small = resized(images, [side // scale for side in images.shape[2:]])
        if paired:
            return small, images
        small = ((small + 1) * 127.5).round() / 255 * 2 - 1  # as a file's pixels are
        return small, resized(small, images.shape[2:])

    def encoded(self, pair: Pair, stage: Stage, batch: Batch, step: int) -> tuple[Pair, Tensor]:
        """Latents of clean and degraded images with their classes, and what fingerprints are read of.

        Args:
            pair: of pixels, made of ``batch``; ``degraded`` is ``clean`` itself where nothing is.
            stage: that is trained; one that reads fingerprints alone needs no latents.
            batch: for the seeds of its images.
            step: in which they are encoded.
        """
        seeds = step_seeds(batch.seeds, step, POSTERIOR) if self.settings.sample else None
        small, enlarged = pair.degraded, pair.degraded
        if pair.degraded is not pair.clean:
            small, enlarged = self.degraded(pair.degraded, paired=batch.degraded is not None)
        if stage.reads_only:
            return pair, small
        clean = self.space.codec.encode(pair.clean, seeds)
        degraded = clean if enlarged is pair.clean else self.space.codec.encode(enlarged)
        return Pair(clean, degraded, pair.classes), small
