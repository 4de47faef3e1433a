"""Means over images, test sets and degradations, with their confidence intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 2000
BLOCK = 250
"""Draws that are made at once."""
LEVELS = ("set", "degradation", "mean")


class Value(NamedTuple):
    """What was measured of one image."""

    kind: str
    set: str
    pool: str  # sets of one pool share scenes
    scene: str  # the clean image
    counted: bool  # by the mean over degradations
    value: float


class Summary(NamedTuple):
    """A mean, and the bounds of its 95% confidence interval; NaN where it cannot be told."""

    level: str  # of LEVELS
    kind: str
    set: str
    images: int
    mean: float
    low: float
    high: float


def summarize(values: Sequence[Value], seed: int = 0, draws: int = DRAWS) -> list[Summary]:
    """Means of sets over their images, of degradations over their sets, and over degradations, each counting alike.

    The intervals are a bootstrap over clean images: those of a pool are drawn with replacement, and with each all of
    its degraded versions in all sets, which are alike. A set of a single clean image has none.

    Args:
        values: finite ones count, others are left out.
        seed: of what is drawn.
        draws: how often.
    """
    finite = [one for one in values if math.isfinite(one.value)]
    sets: dict[tuple[str, str], list[Value]] = defaultdict(list)
    for one in finite:
        sets[one.kind, one.set].append(one)
    drawn = _draw(sets, seed, draws)
    found, kinds = [], defaultdict(list)
    for (kind, name), members in sets.items():
        mean = math.fsum(one.value for one in members) / len(members)
        found.append(Summary("set", kind, name, len(members), mean, *_bounds(drawn[kind, name])))
        kinds[kind].append((mean, len(members), drawn[kind, name], members[0].counted))
    counted = []
    for kind, parts in kinds.items():
        mean = math.fsum(part[0] for part in parts) / len(parts)
        images, means = sum(part[1] for part in parts), torch.stack([part[2] for part in parts]).mean(0)
        found.append(Summary("degradation", kind, "", images, mean, *_bounds(means)))
        if parts[0][3]:
            counted.append((mean, images, means))
    if len(counted) > 1:
        mean = math.fsum(part[0] for part in counted) / len(counted)
        means = torch.stack([part[2] for part in counted]).mean(0)
        found.append(Summary("mean", "", "", sum(part[1] for part in counted), mean, *_bounds(means)))
    return found


def _draw(sets: dict[tuple[str, str], list[Value]], seed: int, draws: int) -> dict[tuple[str, str], Tensor]:
    """Means of each set in every draw, ``[draws]``; NaN where none of its images was drawn, or it has one scene."""
    pools: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, members in sets.items():
        pools[members[0].pool].append(key)
    found = {}
    generator = torch.Generator().manual_seed(seed)  # one for all: what pools draw does not hang together
    for pool in sorted(pools):
        keys = pools[pool]
        scenes = sorted({one.scene for key in keys for one in sets[key]})
        place = {scene: index for index, scene in enumerate(scenes)}
        total = torch.zeros(len(scenes), 2 * len(keys), dtype=torch.float64)
        for column, key in enumerate(keys):
            at = torch.tensor([place[one.scene] for one in sets[key]])
            total[:, column].index_add_(0, at, torch.tensor([one.value for one in sets[key]], dtype=torch.float64))
            total[:, len(keys) + column].index_add_(0, at, torch.ones(len(at), dtype=torch.float64))
        blocks = []
        for start in range(0, draws, BLOCK):
            count = min(BLOCK, draws - start)
            chosen = torch.randint(len(scenes), (count, len(scenes)), generator=generator)
            times = torch.zeros(count, len(scenes), dtype=torch.float64)
            times.scatter_add_(1, chosen, torch.ones_like(times))
            blocks.append(times @ total)
        sums, counts = torch.cat(blocks).chunk(2, 1)
        for column, key in enumerate(keys):
            alone = int((total[:, len(keys) + column] > 0).sum()) < 2
            found[key] = sums[:, column] / counts[:, column] * (math.nan if alone else 1)
    return found


def _bounds(means: Tensor) -> tuple[float, float]:
    if means.isnan().all():
        return math.nan, math.nan
    low, high = means[~means.isnan()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
