"""Fingerprints of photographs degraded in known ways: what the index of `bdg_fast.analysis` is made of and measured on.

Crops of one original and scale are a group and are degraded together, equally: the means of their matrices are then
those of a larger picture, without a larger picture.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdg_fast import fingerprint
from bdg_fast.analysis import KINDS
from bdg_fast.data.degrade import RANGES, degrade
from bdg_fast.data.images import as_unit_rgb, read_image

HELD_OUT = ("lomiri-", "gcompris-")
"""Collections that nothing is learned from, by the beginning of their names."""
TOGETHER = 9
"""Crops of one group, at most."""
SMALLEST, LARGEST = 64, 256
"""Sides of crops, in pixels."""
RESAVED = 1 / 3
"""Share of pictures that are stored as JPEG once more, at a quality that shows no more than in `QUALITIES`."""
QUALITIES = (95, 98)


@dataclass(frozen=True)
class Samples:
    """Fingerprints of degraded photographs, and what was done to each."""

    vectors: Tensor  # float16 [n, 2048]
    kinds: Tensor  # int64 [n], of KINDS
    shares: Tensor  # float32 [n], level as a share of its range
    originals: Tensor  # int64 [n], which photograph
    batches: Tensor  # int64 [n], those degraded equally share one

    def __getitem__(self, chosen: Tensor) -> Samples:
        return Samples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.kinds)

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        names = Samples.__dataclass_fields__
        return Samples(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def groups_of(folder: Path, manifest: Path, held_out: bool) -> list[tuple[str, list[Path]]]:
    """Names of originals and up to `TOGETHER` crops of each, of one scale; the held-out collections or all others."""
    found: dict[tuple[str, str], list[Path]] = {}
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source_package"].startswith(HELD_OUT) == held_out:
                key = f"{row['source_package']}:{row['source_file']}", row["scale"]
                found.setdefault(key, []).append(folder / Path(row["crop"]).name)
    return [
        (name, paths[at : at + TOGETHER])
        for (name, _), paths in sorted(found.items())
        for at in range(0, len(paths), TOGETHER)
    ]


def degraded(batch: Tensor, kind: str, level: float, seed: int, quality: int | None = None) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1], degraded equally, as files of 8 bits or of that JPEG quality hold it: uint8."""
    out = degrade(batch, kind, level, torch.full((len(batch),), seed))
    pixels = out.mul(255).round().to(torch.uint8)
    return pixels if quality is None else torch.stack([resaved(image, quality) for image in pixels])


def resaved(image: Tensor, quality: int) -> Tensor:
    """uint8 ``[3, H, W]`` by way of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def level_of(kind: str, share: float) -> float:
    """In its unit."""
    low, high = RANGES[kind]
    return low + (high - low) * share


def samples_of(groups: Sequence[tuple[str, list[Path]]], draws: int, seed: int, *, whole: bool = False) -> Samples:
    """Every group in every kind, ``draws`` times: at a random level and size, the first time as large as it is.

    ``whole``: always as large as it is.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in groups))}
    return Samples.join(list(_drawn(groups, names, draws, seed, whole)))


def _drawn(
    groups: Sequence[tuple[str, list[Path]]], names: dict[str, int], draws: int, seed: int, whole: bool
) -> Iterator[Samples]:
    count = 0
    for place, (name, paths) in enumerate(groups):
        photographs = torch.stack([as_unit_rgb(read_image(path)) for path in paths])
        for draw in range(draws):
            for kind in KINDS:
                rng = random.Random(f"{seed} {place} {draw} {kind}")
                part = photographs if whole or draw == 0 else _window(photographs, rng)
                share, resave = rng.random(), rng.random() < RESAVED
                quality = rng.randint(*QUALITIES) if resave else None
                images = degraded(part, kind, level_of(kind, share), rng.getrandbits(62), quality)
                n = len(images)
                yield Samples(
                    fingerprint(images).half(),
                    torch.full((n,), KINDS.index(kind)),
                    torch.full((n,), share),
                    torch.full((n,), names[name]),
                    torch.full((n,), count),
                )
                count += 1


def _window(images: Tensor, rng: random.Random) -> Tensor:
    """A part of random size and shape."""
    sides = [round(math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))) for _ in range(2)]
    height, width = (min(side, full) for side, full in zip(sides, images.shape[2:], strict=True))
    top, left = rng.randint(0, images.shape[2] - height), rng.randint(0, images.shape[3] - width)
    return images[:, :, top : top + height, left : left + width].contiguous()


def larger(samples: Samples, draws: int, seed: int) -> Samples:
    """Fingerprints of larger pictures: of the mean matrices of 2 to `TOGETHER` crops that were degraded equally."""
    rng = random.Random(seed)
    order = torch.argsort(samples.batches, stable=True)
    _, counts = samples.batches[order].unique_consecutive(return_counts=True)
    parts = [part for part in order.split(counts.tolist()) if len(part) > 1]
    rows, firsts = [], []
    for part in parts:
        for _ in range(draws):
            size = min(len(part), rng.choice((2, 3, 4, 6, TOGETHER)))
            chosen = part[torch.tensor(rng.sample(range(len(part)), size))]
            rows.append(joined(samples.vectors[chosen].float()))
            firsts.append(int(chosen[0]))
    first = samples[torch.tensor(firsts)]
    return Samples(torch.stack(rows).half(), first.kinds, first.shares, first.originals, first.batches)


def joined(vectors: Tensor) -> Tensor:
    """The fingerprint of the mean matrices ``[D]`` of fingerprints ``[n, D]``: matrices are their fourth powers."""
    halves = vectors.view(len(vectors), 2, -1)
    weights = halves[0].norm(dim=1, keepdim=True)
    matrices = halves.double() ** 4
    mean = (matrices / matrices.sum(2, keepdim=True).clamp_min(1e-30)).mean(0) ** 0.25
    return (weights * torch.nn.functional.normalize(mean, dim=1)).flatten().float()
