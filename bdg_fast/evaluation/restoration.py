"""How much a restoration helps: photographs are degraded in known ways, restored, and compared with what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.degrade import CLEAN, RANGES, degrade
from ..metrics import psnr, ssim

KINDS = ("noise", "blur", "rain", "snow", "haze", "lowlight", "jpeg")
"""Degradations that are scored."""
SHARES = (1 / 6, 1 / 2, 5 / 6)
"""Of the range of a degradation's level: mild, medium and strong."""

Restore = Callable[[Tensor], Tensor]
"""Images float32 ``[B, 3, H, W]`` in [0, 1] to restored ones."""


class Score(NamedTuple):
    """Of one photograph, degraded in one way. PSNR in dB; infinite where nothing was degraded."""

    photograph: str
    kind: str
    level: float
    psnr_degraded: float
    psnr: float
    ssim_degraded: float
    ssim: float
    change: float  # root mean square of restored minus degraded, in 1/255


class Mean(NamedTuple):
    """Of several scores."""

    images: int
    psnr_degraded: float
    psnr: float
    ssim_degraded: float
    ssim: float
    change: float

    @property
    def gain(self) -> float:
        """In dB."""
        return self.psnr - self.psnr_degraded


def versions(
    photograph: Tensor, kinds: Sequence[str] = KINDS, shares: Sequence[float] = SHARES
) -> list[tuple[str, float, Tensor]]:
    """Degraded versions of a photograph, rounded to 8 bits: ``(kind, level, image)``, the clean one first.

    They are the same every time: seeds are numbers of kind and share.

    Args:
        photograph: float32 ``[3, H, W]`` in [0, 1].
        kinds: of `bdg_fast.data.degrade.NAMES`.
        shares: of each one's range of levels, 0 to 1.
    """
    found: list[tuple[str, float, Tensor]] = [(CLEAN, 0.0, photograph[None])]
    for kind in kinds:
        for number, share in enumerate(shares):
            level, degraded = degraded_version(photograph, kind, number, share)
            found.append((kind, level, degraded[None]))
    return found


def degraded_version(photograph: Tensor, kind: str, number: int, share: float) -> tuple[float, Tensor]:
    """One of :func:`versions`: the level, and ``[3, H, W]``; ``number`` counts the shares.

    Its random numbers are functions of kind and number alone: all photographs of one size have the same noise, streaks
    of rain, flakes of snow and relief of haze. Means over photographs are means over one draw of those.
    """
    low, high = RANGES[kind]
    level, seed = low + (high - low) * share, torch.tensor([100 * list(RANGES).index(kind) + number])
    return level, as_saved(degrade(photograph[None], kind, level, seed))[0]


def as_saved(images: Tensor) -> Tensor:
    """Images in [0, 1] as files of 8 bits hold them."""
    return images.mul(255).round().div(255)


def score(
    restore: Restore,
    photographs: Iterable[tuple[str, Tensor]],
    kinds: Sequence[str] = KINDS,
    shares: Sequence[float] = SHARES,
) -> list[Score]:
    """Degrade, restore, compare; restored images are rounded to 8 bits.

    Args:
        restore: takes and gives float32 ``[1, 3, H, W]`` in [0, 1].
        photographs: names and float32 ``[3, H, W]`` in [0, 1], of 11 x 11 pixels at least.
        kinds, shares: see :func:`versions`.
    """
    scores = []
    for name, photograph in photographs:
        clean = photograph[None]
        for kind, level, degraded in versions(photograph, kinds, shares):
            restored = as_saved(restore(degraded).clamp(0, 1))
            change = 255 * (restored - degraded).square().mean().sqrt()
            before, after = (float(psnr(each, clean)) for each in (degraded, restored))
            alike_before, alike = (float(ssim(each, clean)) for each in (degraded, restored))
            scores.append(Score(name, kind, level, before, after, alike_before, alike, float(change)))
    return scores


def means(scores: Sequence[Score]) -> Mapping[str, Mean]:
    """By kind, in their order; ``"all"`` is the mean over the degradations, each counting alike, without the clean."""
    found = {}
    for kind in dict.fromkeys(one.kind for one in scores):
        rows = [one[3:] for one in scores if one.kind == kind]
        found[kind] = Mean(len(rows), *(sum(column) / len(rows) for column in zip(*rows, strict=True)))
    degraded = [one for kind, one in found.items() if kind != CLEAN]
    if degraded:
        columns = list(zip(*(one[1:] for one in degraded), strict=True))
        number = sum(one.images for one in degraded)
        found["all"] = Mean(number, *(sum(column) / len(degraded) for column in columns))
    return found


def table(scores: Sequence[Score]) -> str:
    """:func:`means` in Markdown."""
    lines = ["| | images | PSNR before | after | gain | SSIM before | after |", "|---|---|---|---|---|---|---|"]
    for kind, one in means(scores).items():
        before, gain = ("", "") if math.isinf(one.psnr_degraded) else (f"{one.psnr_degraded:.2f}", f"{one.gain:+.2f}")
        alike = f"{one.ssim_degraded:.3f} | {one.ssim:.3f}"
        lines.append(f"| {kind} | {one.images} | {before} | {one.psnr:.2f} | {gain} | {alike} |")
    return "\n".join(lines)
