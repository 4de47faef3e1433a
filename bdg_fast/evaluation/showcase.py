"""Pictures of what a restoration does: of a photograph as it is, and of known degradations beside the clean one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.degrade import degrade
from ..metrics import psnr
from .restoration import as_saved

SHOWN = {"noise": 25.0, "blur": 2.0, "rain": 1.0, "snow": 0.7, "haze": 1.2, "lowlight": 2.5, "jpeg": 70.0}
"""Degradations and levels, in the units of `bdg_fast.data.degrade`: in the middle."""
GAP = 4
"""White pixels between pictures."""


class Case(NamedTuple):
    """Of one degradation: pixels float32 ``[3, H, W]`` in [0, 1]; PSNR in dB."""

    kind: str
    degraded: Tensor
    restored: Tensor
    psnr_degraded: float
    psnr: float


def cases(clean: Tensor, restore: Callable[[Tensor], Tensor], seed: int = 0) -> list[Case]:
    """Degrade a photograph in all ways of :data:`SHOWN`, at 8 bits, and restore it.

    Args:
        clean: float32 ``[3, H, W]`` in [0, 1].
        restore: float32 ``[1, 3, H, W]`` in [0, 1] to the same (`bdg_fast.Restorer.restore`).
        seed: of what is random in degradations.
    """
    found = []
    for kind, level in SHOWN.items():
        degraded = as_saved(degrade(clean[None], kind, level, torch.tensor([seed])))
        restored = as_saved(restore(degraded).clamp(0, 1))
        before, after = (float(psnr(each, clean[None])) for each in (degraded, restored))
        found.append(Case(kind, degraded[0], restored[0], before, after))
    return found


def case_table(found: Sequence[Case]) -> str:
    """PSNR before and after, as text."""
    lines = [f"{'':10}{'degraded':>10}{'restored':>10}{'gain':>8}   PSNR, dB"]
    lines += [
        f"{one.kind:10}{one.psnr_degraded:10.2f}{one.psnr:10.2f}{one.psnr - one.psnr_degraded:+8.2f}" for one in found
    ]
    return "\n".join(lines)


def side_by_side(*rows: Sequence[Tensor]) -> Tensor:
    """Rows of pictures float ``[3, H, W]`` in [0, 1], all of one size, as one uint8 ``[3, h, w]``."""
    height, width = rows[0][0].shape[1:]
    total = len(rows) * (height + GAP) - GAP, max(map(len, rows)) * (width + GAP) - GAP
    page = torch.full((3, *total), 255, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            page[:, top : top + height, left : left + width] = (picture * 255).round().to(torch.uint8)
    return page
