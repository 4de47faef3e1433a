"""How well a network's features tell kind and level of a degradation: by the nearest of what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bdg_fast.data.degrade import CLEAN
from bdg_fast.kernels.pixelwise import derived_seeds, uniforms

from .ablation_scores import LEVEL, Represent, represented

NEIGHBOURS = 5


class Known(NamedTuple):
    """Degraded photographs: features ``[n, C]``, numbers of kinds ``[n]``, levels as shares of their ranges ``[n]``."""

    features: Tensor
    kinds: Tensor
    levels: Tensor


class Readout(NamedTuple):
    """How often the kind is told, by kind, and how far the level is off where it is, as a share of its range."""

    accuracy: float
    by_kind: dict[str, float]
    level_error: float


def known(represent: Represent, files: Sequence[Path], kinds: Sequence[str], crop: int, first: int = 0) -> Known:
    """The photographs, numbered from ``first``, in all degradations, each at a random level."""
    features, labels = represented(represent, files, kinds, crop, first)
    numbers = range(first, first + len(files))
    shares = [uniforms(derived_seeds(torch.tensor([n]), LEVEL), len(kinds), 0)[0, 0] for n in numbers]
    return Known(features, labels, torch.cat(shares))


def readout(train: Known, test: Known, kinds: Sequence[str]) -> Readout:
    """Kind by the vote of the nearest, level by the mean of those that voted for it; channels have variance 1."""
    spread, mean = torch.std_mean(train.features, 0)
    scaled = [(each.features - mean) / spread.clamp_min(1e-6) for each in (train, test)]
    nearest = torch.cdist(scaled[1], scaled[0]).topk(NEIGHBOURS, largest=False).indices
    votes = train.kinds[nearest]  # [n, 5]
    told = votes.mode(1).values
    agreeing = (votes == told[:, None]).float()
    levels = (train.levels[nearest] * agreeing).sum(1) / agreeing.sum(1)
    right = told == test.kinds
    counted = right & (test.kinds != (kinds.index(CLEAN) if CLEAN in kinds else -1))
    by_kind = {kind: right[test.kinds == n].double().mean().item() for n, kind in enumerate(kinds)}
    error = (levels - test.levels).abs()[counted].double().mean().item()
    return Readout(right.double().mean().item(), by_kind, error)
