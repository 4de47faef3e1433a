"""Where batches of a step come from, and how clean images are degraded: functions of positions, seeds and steps alone.

So a run that goes on at any step, or on another number of ranks, sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import derived_seeds, uniforms

from ..data.degrade import RANGES, degrade, two_order_chain
from ..data.images import bundled_photographs, list_images, read_image
from .config import CHAIN, Data

KEPT = 256
"""Images of a folder that stay in memory."""
DRAW = 0
"""Purpose of all random numbers here: each use has seeds of its own."""


class Batch(NamedTuple):
    """Images of one rank's part of a step, on the CPU."""

    clean: Tensor  # uint8 [B, 3, c, c]
    degraded: Tensor | None  # uint8 [B, 3, c, c], or None: to be made
    kinds: Tensor  # int64 [B], classes of degraded
    seeds: Tensor  # int64 [B]
    numbers: Tensor  # int64 [B], of the images in their source, to be named in errors


class BatchLike(Protocol):
    """What the trainer reads of a batch: :class:`Batch`, or any other type with the same names."""

    @property
    def clean(self) -> Tensor:
        """uint8 ``[B, 3, c, c]``."""

    @property
    def degraded(self) -> Tensor | None:
        """uint8 ``[B, 3, c, c]``, or None: to be made."""

    @property
    def kinds(self) -> Tensor:
        """int64 ``[B]``, classes of ``degraded``."""

    @property
    def seeds(self) -> Tensor:
        """int64 ``[B]``."""

    @property
    def numbers(self) -> Tensor:
        """int64 ``[B]``, of the images in their source."""


class Source(Protocol):
    """Images to train on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Of degraded images that it has; empty if it has clean ones alone."""

    def batches(self, *, batch: int, crop: int, rank: int, world: int, start: int, seed: int) -> Iterator[BatchLike]:
        """Endless batches of one rank, from the ``start``-th.

        The ``n``-th batches of all ranks together are the positions ``n world batch`` to ``(n + 1) world batch - 1``.
        What stands at a position depends on it, ``crop`` and ``seed`` alone. An iterator that has ``close()`` is closed
        when its stage ends.

        Args:
            batch: images of one rank.
            crop: side of the images.
            rank, world: number of this rank, and of all.
            start: batches of this rank that were taken before.
            seed: of order, places and seeds.
        """

    def held_out(self, crop: int) -> BatchLike | None:
        """Images that are not trained on, in an order that stays; None if there are none."""

    def name(self, number: int) -> str:
        """Of the image ``number``, for messages."""


class Pictures:
    """Clean images of files or memory, at random places and in all eight orientations.

    Each image comes once before any comes again. Those that are smaller than what is cut out are continued by
    reflection.

    Args:
        images: files, or uint8 ``[3, H, W]``.
        held_out: of them, the last, to measure progress.

    Raises:
        ValueError: no image is left to train on.
    """

    def __init__(self, images: Sequence[Path | Tensor], held_out: int = 0) -> None:
        """Nothing is read yet."""
        if held_out >= len(images):
            raise ValueError(f"held_out must leave an image to train on, got {held_out} of {len(images)}")
        self.images, self.training = list(images), len(images) - held_out
        self._read = lru_cache(KEPT)(self._load)
        self._order = lru_cache(2)(self._permutation)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: all images are clean."""
        return ()

    def batches(self, *, batch: int, crop: int, rank: int, world: int, start: int, seed: int) -> Iterator[Batch]:
        """See :meth:`Source.batches`."""
        while True:
            first = (start * world + rank) * batch
            yield self._cut(torch.arange(first, first + batch), crop, seed)
            start += 1

    def held_out(self, crop: int) -> Batch | None:
        """The middles of the last images; their seeds are their numbers."""
        numbers = torch.arange(self.training, len(self.images))
        if len(numbers) == 0:
            return None
        middle = torch.full((len(numbers), 4), 0.5)
        clean = torch.stack(
            [_window(self._read(n), crop, place) for n, place in zip(numbers.tolist(), middle, strict=True)]
        )
        return Batch(clean, None, torch.zeros_like(numbers), numbers, numbers)

    def name(self, number: int) -> str:
        """The file, or the number."""
        image = self.images[number]
        return image.name if isinstance(image, Path) else f"image {number}"

    def _cut(self, positions: Tensor, crop: int, seed: int) -> Batch:
        seeds = derived_seeds(positions ^ derived_seeds(torch.tensor([seed]), 0), 0)
        numbers = torch.tensor([self._order(p // self.training, seed)[p % self.training] for p in positions.tolist()])
        places = uniforms(derived_seeds(seeds, 0), 1, DRAW)[:, :, 0]  # [B, 4]
        clean = [
            _turned(_window(self._read(number), crop, place), int(place[2] * 8))
            for number, place in zip(numbers.tolist(), places, strict=True)
        ]
        return Batch(torch.stack(clean), None, torch.zeros_like(seeds), seeds, numbers)

    def _permutation(self, epoch: int, seed: int) -> list[int]:
        own = int(derived_seeds(derived_seeds(torch.tensor([seed]), 1), epoch))
        order: list[int] = torch.randperm(self.training, generator=torch.Generator().manual_seed(own)).tolist()
        return order

    def _load(self, number: int) -> Tensor:
        image = self.images[number]
        pixels = image if isinstance(image, Tensor) else read_image(image)
        if pixels.dtype != torch.uint8:  # 16 bits
            pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
        return pixels.expand(3, -1, -1)


def _window(image: Tensor, crop: int, place: Tensor) -> Tensor:
    """``[3, crop, crop]`` of ``image`` at a place of two numbers in [0, 1)."""
    for dim in (1, 2):
        size = image.shape[dim]
        if size < crop:
            index = torch.arange(crop) % max(2 * size - 2, 1)
            image = image.index_select(dim, torch.minimum(index, (2 * size - 2 - index).clamp_min(0)))
        else:
            image = image.narrow(dim, int(place[dim - 1] * (size - crop + 1)), crop)
    return image


def _turned(image: Tensor, way: int) -> Tensor:
    """One of eight orientations."""
    image = image.flip(2) if way & 1 else image
    image = image.flip(1) if way & 2 else image
    return image.mT if way & 4 else image


SOURCES: dict[str, Callable[[Data], Source]] = {
    "photographs": lambda data: Pictures(bundled_photographs(), data.held_out),
    "folder": lambda data: Pictures(list_images([data.root or ""]), data.held_out),
}
"""What `Data.source` names."""


def open_source(data: Data) -> Source:
    """The source that settings name.

    Raises:
        ValueError: there is none of this name, or too few images. FileNotFoundError: no image in its folder.
    """
    if data.source not in SOURCES:
        raise ValueError(f"data.source must be one of {', '.join(map(repr, SOURCES))}, got {data.source!r}")
    return SOURCES[data.source](data)


class Pair(NamedTuple):
    """Clean and degraded images with the class of each."""

    clean: Tensor  # float32 [B, 3, c, c] in [-1, 1]
    degraded: Tensor  # float32 [B, 3, c, c] in [-1, 1]
    classes: Tensor  # int64 [B]


def clean_images(batch: BatchLike, device: torch.device) -> Tensor:
    """float32 ``[B, 3, c, c]`` in [0, 1] on ``device``."""
    return batch.clean.to(device, non_blocking=True).to(torch.float32) / 255


def degraded_pair(
    batch: BatchLike, seeds: Tensor, device: torch.device, names: Sequence[str], used: Sequence[str] | None = None
) -> Pair:
    """Degrade a batch on ``device``, unless it has degraded images. Results are rounded to 1/255, as files hold them.

    Args:
        batch: of clean images.
        seeds: int64 ``[B]`` on the CPU, of everything random.
        device: where it is computed.
        names: of degradations: classes are their numbers.
        used: of them, those to choose from; all if not given.
    """
    clean = clean_images(batch, device)
    if batch.degraded is not None:
        degraded, classes = batch.degraded.to(device, non_blocking=True).to(torch.float32) / 255, batch.kinds.to(device)
    elif tuple(names) == (CHAIN,):
        degraded, classes = two_order_chain(clean, seeds.to(device))
    else:
        choice = [names.index(name) for name in (used or names)]
        which, share = uniforms(derived_seeds(seeds, 0), 1, DRAW)[:, :2, 0].unbind(1)  # on the CPU: nothing waits
        kinds = torch.tensor(choice)[(which * len(choice)).long().clamp_max(len(choice) - 1)]
        degraded, own = torch.empty_like(clean), derived_seeds(seeds, 1)
        for kind in sorted(set(kinds.tolist())):
            rows = (kinds == kind).nonzero()[:, 0]
            low, high = RANGES[names[kind]]
            there = rows.to(device)
            levels = low + (high - low) * share[rows]
            degraded[there] = degrade(clean[there], names[kind], levels, own[rows].to(device))
        degraded, classes = (degraded * 255).round() / 255, kinds.to(device)
    return Pair(clean * 2 - 1, degraded * 2 - 1, classes)
