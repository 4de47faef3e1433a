"""How well the averaged network restores images that it was not trained on: PSNR, SSIM and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import derived_seeds, image_normals
from bdg_fast.ranks import Ranks

from ..backends import Told
from ..data.degrade import CLEAN
from ..data.loader import Batch
from ..latent import unbounded
from ..metrics import psnr, ssim
from ..models import Backbone
from ..sampler import ResidualSampler
from .config import TrainConfig
from .config_stage import Drawing
from .data import Source, degraded_pair
from .latents import Latents

TOGETHER = 4
"""Images restored at once."""
DEGRADED, START = 0, 1
"""What an image's seeds are for."""
MOST = 100.0
"""PSNR in dB that counts for images that are equal."""


def count_of(source: Source) -> int | None:
    """Images that are trained on, of a source that tells by ``count``; sequences have a method of that name."""
    count = getattr(source, "count", None)
    return int(count) if isinstance(count, Integral) else None


def measured(config: TrainConfig, count: int | None) -> list[Any]:
    """What scores are of, ``count`` images being trained on: those of others, or by other steps, are not comparable."""
    each, data = config.validation, config.data
    held_out = [data.source, data.root, data.factor, data.held_out, list(data.exclude), count]
    return [each.crop, each.steps, list(data.degradations), [each.root, each.images] if each.root else held_out]


class Scores(NamedTuple):
    """Of held-out images, means over them."""

    psnr: float  # dB, restored
    ssim: float
    psnr_degraded: float  # dB, of what was to be restored
    picture: Tensor | None  # uint8 [3, H, W]: columns of degraded, restored and clean images
    psnr_clean: float | None = None  # dB, of images that were clean: in no other mean, where there are others

    @property
    def numbers(self) -> dict[str, float]:
        """By name; without what is not known."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, float)}


class HeldOut:
    """Held-out images, degraded once and for all, shared out among the ranks.

    Args:
        batch: the images; those without degraded ones are given all degradations in turn, and are taken again where
            there are more degradations than images.
        names: of the degradations.
        ranks: of the run.
        pictures: how many are shown.
        latents: of a run in latents: images are encoded, and scored as they are decoded.
    """

    def __init__(
        self, batch: Batch, names: Sequence[str], ranks: Ranks, pictures: int, latents: Latents | None = None
    ) -> None:
        """Degrade them."""
        self.ranks, self.pictures, self.latents = ranks, pictures, latents
        kinds = [""] * len(batch.clean)
        if batch.degraded is None:
            kinds = [names[row % len(names)] for row in range(max(len(kinds), len(names)))]
            again = torch.arange(len(kinds)) % len(batch.clean)
            batch = Batch(batch.clean[again], None, *(each[again] for each in batch[2:]))
        self.is_clean = torch.tensor([kind == CLEAN for kind in kinds])
        seeds = derived_seeds(batch.seeds, DEGRADED)
        parts = []
        for row in range(len(seeds)):  # each alone: the same whatever the others
            one = slice(row, row + 1)
            degraded = None if batch.degraded is None else batch.degraded[one]
            alone = Batch(batch.clean[one], degraded, batch.kinds[one], seeds[one], batch.numbers[one])
            parts.append(degraded_pair(alone, seeds[one], ranks.device, names, Drawing((kinds[row],))))
        self.clean, self.degraded = (torch.cat([part[i] for part in parts]) for i in range(2))
        self.seen = self.degraded  # pixels, which a conditional network is told of
        if latents is not None:
            self.seen, self.degraded = latents.degraded(self.degraded, paired=batch.degraded is not None)
        self.seeds = derived_seeds(batch.seeds, START).to(ranks.device)

    @torch.no_grad()
    def score(self, network: Backbone, sampler: ResidualSampler) -> Scores:
        """Restore all images; every rank has the result, the first one the picture too."""
        number, latents = len(self.clean), self.latents
        if latents is not None:
            sampler = unbounded(sampler)
        own = list(range(self.ranks.rank, number, self.ranks.world))
        restored = torch.zeros_like(self.clean)
        for first in range(0, len(own), TOGETHER):
            rows = torch.tensor(own[first : first + TOGETHER], device=self.clean.device)
            degraded = self.degraded[rows]
            x_lq = degraded if latents is None else latents.space.codec.encode(degraded)
            known = network.told(self.seen[rows])
            _, channels, height, width = x_lq.shape
            start = sampler.start(x_lq, noise=image_normals(self.seeds[rows], height, width, 0, channels))
            telling = network if known is None else Told(network, known)
            found = sampler(telling, x_lq, x_start=start, seed=self.seeds[rows] if sampler.draws else None)
            restored[rows] = found if latents is None else latents.space.decoded(found, degraded)
        self.ranks.sum(restored)
        clean, degraded, restored = ((x.clamp(-1, 1) + 1) / 2 for x in (self.clean, self.degraded, restored))
        restored = (restored * 255).round() / 255
        shown = min(self.pictures, number)
        picture = None
        if shown and self.ranks.first:
            picture = _grid([x[:shown] for x in (degraded, restored, clean)])
        before, after, alike = psnr(degraded, clean), psnr(restored, clean), ssim(restored, clean)
        # what is clean leaves nothing to restore: a network that does nothing would seem to be the best
        counted = self.is_clean if self.is_clean.all() else ~self.is_clean
        clean_to = _mean(after, self.is_clean) if self.is_clean.any() else None
        restored_to, similarity, degraded_to = (_mean(each, counted) for each in (after, alike, before))
        return Scores(restored_to, similarity, degraded_to, picture, clean_to)


def _mean(values: Tensor, rows: Tensor) -> float:
    """Of some images."""
    return float(values.cpu()[rows].clamp_max(MOST).mean())


def _grid(columns: list[Tensor]) -> Tensor:
    """uint8 ``[3, rows H, columns W]`` of ``[B, 3, H, W]`` in [0, 1], a column each."""
    table = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
    return (table * 255).round().to(torch.uint8).cpu()
