"""How well a network restores photographs, and how well its inner features tell their degradations apart.

Everything random is a function of a photograph's number, so that all networks are asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bdg_fast.data.degrade import CLEAN, RANGES, degrade
from bdg_fast.data.images import as_unit_rgb, read_image
from bdg_fast.evaluation.probe import knn
from bdg_fast.evaluation.restoration import as_saved, means, score
from bdg_fast.kernels.pixelwise import derived_seeds, image_normals, uniforms
from bdg_fast.models import UNetOutput
from bdg_fast.sampler import ResidualSampler
from bdg_fast.training.validate import MOST

TOGETHER = 8
"""Images evaluated at once."""
LEARNT = 1_000_000
"""Number of the first photograph that features are learnt from."""
LEVEL, VERSION, START = 0, 1, 2
"""What seeds of a photograph are derived for."""

Network = Callable[[Tensor, Tensor, Tensor], UNetOutput]
Represent = Callable[[Tensor, Tensor], Tensor]
"""Features ``[n, C]`` of degraded images in [-1, 1] and the seeds of their noise."""


class Versions(NamedTuple):
    """One photograph in every degradation."""

    degraded: Tensor  # float32 [n, 3, H, W] in [0, 1], of 8 bits
    seeds: Tensor  # int64 [n], of the noise that restoration starts from


def middle(image: Tensor, crop: int) -> Tensor:
    """At most ``crop`` rows and columns from the middle of ``[C, H, W]``; all of them for 0."""
    for dim in (1, 2):
        size = image.shape[dim]
        if 0 < crop < size:
            image = image.narrow(dim, (size - crop) // 2, crop)
    return image.contiguous()


def photographs(files: Sequence[Path], crop: int) -> Iterator[tuple[str, Tensor]]:
    """Names, and the middles as float32 ``[3, H, W]`` in [0, 1]."""
    for file in files:
        yield file.name, middle(as_unit_rgb(read_image(file)), crop)


def versions(files: Sequence[Path], kinds: Sequence[str], crop: int, first: int = 0) -> Iterator[Versions]:
    """The photographs, numbered from ``first``, each degraded by every kind at one random level of its range."""
    for number, (_, clean) in enumerate(photographs(files, crop), first):
        own = torch.tensor([number])
        drawn = uniforms(derived_seeds(own, LEVEL), len(kinds), 0)[0, 0].tolist()
        found = []
        for place, kind in enumerate(kinds):
            low, high = RANGES[kind]
            share = 0.0 if kind == CLEAN else drawn[place]
            seed = derived_seeds(derived_seeds(own, VERSION), 100 * place)
            found.append(as_saved(degrade(clean[None], kind, low + (high - low) * share, seed)))
        begin = derived_seeds(own, START)
        seeds = torch.cat([derived_seeds(begin, index) for index in range(len(kinds))])
        yield Versions(torch.cat(found), seeds)


def start(sampler: ResidualSampler, x_lq: Tensor, seeds: Tensor) -> Tensor:
    """The noisy image that restoration begins from."""
    return sampler.start(x_lq, noise=image_normals(seeds, x_lq.shape[2], x_lq.shape[3], 0))


def scores(
    network: Network, sampler: ResidualSampler, files: Sequence[Path], kinds: Sequence[str], crop: int = 0
) -> dict[str, dict[str, float]]:
    """Means over photographs and levels, by degradation, and under ``"mean"`` those over all but clean ones.

    Degradations and levels are those of the card of a checkpoint (`bdg_fast.evaluation.restoration`); restoration
    starts from the same noise for all images.

    Returns:
        ``psnr``, ``ssim`` and, of what was to be restored, ``psnr_degraded`` and ``ssim_degraded``.
    """
    seed = torch.zeros(1, dtype=torch.int64)

    @torch.no_grad()
    def restore(degraded: Tensor) -> Tensor:
        x_lq = degraded * 2 - 1
        return (
            sampler(network, x_lq, x_start=start(sampler, x_lq, seed), seed=seed if sampler.draws else None) / 2 + 0.5
        )

    found = means(score(restore, photographs(files, crop), [kind for kind in kinds if kind != CLEAN]))
    return {
        "mean" if kind == "all" else kind: {
            name: min(getattr(one, name), MOST) for name in ("psnr", "ssim", "psnr_degraded", "ssim_degraded")
        }
        for kind, one in found.items()
    }


def bottleneck(network: Network, sampler: ResidualSampler) -> Represent:
    """The network's inner features where sampling begins, averaged over pixels."""
    time = sampler.network_times()[:1]

    def represent(x_lq: Tensor, seeds: Tensor) -> Tensor:
        found = network(start(sampler, x_lq, seeds), x_lq, time.expand(len(x_lq)))
        return found.features.float().mean((2, 3))

    return represent


@torch.no_grad()
def represented(
    represent: Represent, files: Sequence[Path], kinds: Sequence[str], crop: int = 0, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Features ``[n, C]`` of the photographs in all degradations, each at a random level, and which, int64 ``[n]``.

    ``first``: number of the first photograph. What is learnt from has other numbers than what is asked (`LEARNT`):
    levels and noise that both had would be recognized.
    """
    features = [
        represent(x * 2 - 1, own)
        for one in versions(files, kinds, crop, first)
        for x, own in zip(one.degraded.split(TOGETHER), one.seeds.split(TOGETHER), strict=True)
    ]
    return torch.cat(features), torch.arange(len(kinds)).repeat(len(files))


def readout(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Share of test labels told by the vote of the five nearest training features, each channel of variance 1."""
    (known, labels), (asked, right) = train, test
    spread, mean = torch.std_mean(known, 0)
    spread = spread.clamp_min(1e-6)
    told = knn((known - mean) / spread, labels, (asked - mean) / spread)
    return (told == right).double().mean().item()
