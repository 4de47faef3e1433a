"""How well a network restores photographs, and how well its inner features tell their degradations apart.

Everything random is a function of a photograph's number, so that all networks are asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bdg_fast.data.degrade import RANGES, degrade
from bdg_fast.data.images import as_unit_rgb, read_image
from bdg_fast.evaluation.probe import knn
from bdg_fast.kernels.pixelwise import derived_seeds, image_normals, uniforms
from bdg_fast.metrics import psnr, ssim
from bdg_fast.models import UNetOutput
from bdg_fast.sampler import ResidualSampler

SHARES = (1 / 6, 1 / 2, 5 / 6)
"""Levels of each degradation, as shares of its range."""
CLEAN = "clean"
"""The degradation that is none. What was equal before has no PSNR: no mean counts it."""
MOST = 100.0
"""PSNR in dB that an image counts with where it is equal to the clean one, or nearly."""
TOGETHER = 8
"""Images evaluated at once."""
LEVEL, VERSION, START = 0, 1, 2
"""What seeds of a photograph are derived for."""

Network = Callable[[Tensor, Tensor, Tensor], UNetOutput]
Represent = Callable[[Tensor, Tensor], Tensor]
"""Features ``[n, C]`` of degraded images in [-1, 1] and the seeds of their noise."""


class Versions(NamedTuple):
    """One photograph, degraded in several ways."""

    kinds: list[str]
    clean: Tensor  # float32 [1, 3, H, W] in [0, 1]
    degraded: Tensor  # float32 [n, 3, H, W] in [0, 1], of 8 bits
    seeds: Tensor  # int64 [n], of the noise that restoration starts from


def middle(image: Tensor, crop: int) -> Tensor:
    """At most ``crop`` rows and columns from the middle of ``[C, H, W]``; all of them for 0."""
    for dim in (1, 2):
        size = image.shape[dim]
        if 0 < crop < size:
            image = image.narrow(dim, (size - crop) // 2, crop)
    return image


def versions(files: Sequence[Path], kinds: Sequence[str], shares: Sequence[float], crop: int) -> Iterator[Versions]:
    """The photographs in their order, each degraded by every kind; without ``shares`` at one random level a kind."""
    for number, file in enumerate(files):
        clean = middle(as_unit_rgb(read_image(file)), crop)[None].contiguous()
        own = torch.tensor([number])
        drawn = uniforms(derived_seeds(own, LEVEL), len(kinds), 0)[0, 0].tolist()
        names, found = [], []
        for place, kind in enumerate(kinds):
            low, high = RANGES[kind]
            for index, share in enumerate((0.0,) if kind == CLEAN else shares or (drawn[place],)):
                seed = derived_seeds(derived_seeds(own, VERSION), 100 * place + index)
                names.append(kind)
                found.append(degrade(clean, kind, low + (high - low) * share, seed))
        degraded = torch.cat(found).mul(255).round().div(255)  # as files hold them
        first = derived_seeds(own, START)
        seeds = torch.cat([derived_seeds(first, index) for index in range(len(names))])
        yield Versions(names, clean, degraded, seeds)


def start(sampler: ResidualSampler, x_lq: Tensor, seeds: Tensor) -> Tensor:
    """The noisy image that restoration begins from."""
    return sampler.start(x_lq, noise=image_normals(seeds, x_lq.shape[2], x_lq.shape[3], 0))


@torch.no_grad()
def restored(network: Network, sampler: ResidualSampler, degraded: Tensor, seeds: Tensor) -> Tensor:
    """``[n, 3, H, W]`` in [0, 1] as files hold it, of the same."""
    parts = []
    for x, own in zip(degraded.split(TOGETHER), seeds.split(TOGETHER), strict=True):
        x_lq = x * 2 - 1
        seed = own if sampler.draws else None
        parts.append(sampler(network, x_lq, x_start=start(sampler, x_lq, own), seed=seed))
    return torch.cat(parts).add(1).div(2).clamp(0, 1).mul(255).round().div(255)


def scores(
    network: Network, sampler: ResidualSampler, files: Sequence[Path], kinds: Sequence[str], crop: int = 0
) -> dict[str, dict[str, float]]:
    """Means over photographs and levels, by degradation, and under ``"mean"`` those over all but clean ones.

    Returns:
        ``psnr``, ``ssim`` and, of what was to be restored, ``psnr_degraded`` and ``ssim_degraded``.
    """
    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for one in versions(files, kinds, SHARES, crop):
        target = one.clean.expand_as(one.degraded)
        after = restored(network, sampler, one.degraded, one.seeds)
        measured = [psnr(after, target), ssim(after, target), psnr(one.degraded, target), ssim(one.degraded, target)]
        for kind, values in zip(one.kinds, torch.stack(measured, 1).clamp_max(MOST).tolist(), strict=True):
            found[kind].append(values)
    names = ("psnr", "ssim", "psnr_degraded", "ssim_degraded")
    result = {
        kind: dict(zip(names, torch.tensor(rows, dtype=torch.float64).mean(0).tolist(), strict=True))
        for kind, rows in found.items()
    }
    counted = [values for kind, values in result.items() if kind != CLEAN]
    result["mean"] = {name: sum(values[name] for values in counted) / len(counted) for name in names}
    return result


def bottleneck(network: Network, sampler: ResidualSampler) -> Represent:
    """The network's inner features where sampling begins, averaged over pixels."""
    time = sampler.network_times()[:1]

    def represent(x_lq: Tensor, seeds: Tensor) -> Tensor:
        found = network(start(sampler, x_lq, seeds), x_lq, time.expand(len(x_lq)))
        return found.features.float().mean((2, 3))

    return represent


@torch.no_grad()
def represented(
    represent: Represent, files: Sequence[Path], kinds: Sequence[str], crop: int = 0
) -> tuple[Tensor, Tensor]:
    """Features ``[n, C]`` of the photographs in all degradations, each at a random level, and which, int64 ``[n]``."""
    features, labels = [], []
    for one in versions(files, kinds, (), crop):
        for x, own in zip(one.degraded.split(TOGETHER), one.seeds.split(TOGETHER), strict=True):
            features.append(represent(x * 2 - 1, own))
        labels += [kinds.index(kind) for kind in one.kinds]
    return torch.cat(features), torch.tensor(labels)


def readout(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Share of test labels told by the vote of the five nearest training features, each channel of variance 1."""
    (known, labels), (asked, right) = train, test
    spread, mean = torch.std_mean(known, 0)
    spread = spread.clamp_min(1e-6)
    told = knn((known - mean) / spread, labels, (asked - mean) / spread)
    return (told == right).double().mean().item()
