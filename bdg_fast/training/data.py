"""Where batches of a step come from, and how clean images are degraded: functions of positions, seeds and steps alone.

So a run that goes on at any step, or on another number of ranks, sees what it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import derived_seeds, uniforms

from ..data.crops import eight_bits
from ..data.datasets import Dataset, ImageFolder, Sample, SampleError, Stream
from ..data.degrade import RANGES, degrade, sent, two_order_chain
from ..data.images import bundled_photographs, read_image
from ..data.layouts import open_layout
from ..data.loader import Batch, Skipped, batches, stacked
from ..data.order import Order
from ..data.shards import ShardFolder
from .config import CHAIN, Data, TrainConfig, Validation
from .config_stage import Drawing, of_name

KEPT = 256
"""Images of a folder that stay in memory."""
UNKNOWN_KIND = "degraded"
"""The class of pairs that do not tell theirs."""
ALIKE = Drawing()
"""All degradations as often, at levels that are uniform over their ranges."""
DRAW = 0
"""Purpose of all random numbers here: each use has seeds of its own."""


class Source(Protocol):
    """Images to train on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Of degraded images that it has; empty if it has clean ones alone."""

    def batches(self, *, batch: int, crop: int, rank: int, world: int, start: int, seed: int) -> Iterator[Batch]:
        """Endless batches of one rank, from the ``start``-th.

        The ``n``-th batches of all ranks together are the positions ``n world batch`` to ``(n + 1) world batch - 1``.
        What stands at a position depends on it, ``crop`` and ``seed`` alone (on ``world`` too of a source that has a
        true ``by_ranks``: its runs go on with as many processes alone). An iterator that has ``close()`` is closed
        when its stage ends. Of a source that has them, ``count``, the images that are trained on, must be the same
        when a run goes on, and ``unreadable``, reads that failed so far, is logged.

        Args:
            batch: images of one rank.
            crop: side of the images.
            rank, world: number of this rank, and of all.
            start: batches of this rank that were taken before.
            seed: of order, places and seeds.
        """

    def held_out(self, crop: int) -> Batch | None:
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
        self.images = list(images)
        self.count = self.training = len(images) - held_out
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
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(eight_bits(read_image(image).numpy()))
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


class Collection:
    """A data set of `bdg_fast.data`: what cannot be read is replaced, and named once in a warning.

    Args:
        images: numbered, or a stream of them, of which none can be held out.
        held_out: of them, spread over all, to measure progress. What else has one of their clean files is left out of
            training too: other degradations of it, and its repetitions in a mixture.
        workers: threads that read ahead.

    Raises:
        ValueError: no image is left to train on, or a stream cannot hold any out.
    """

    def __init__(self, images: Dataset | Stream, held_out: int = 0, workers: int = 4) -> None:
        """Nothing is read yet."""
        if isinstance(images, Stream) and held_out:
            raise ValueError(f"held_out must be 0 for shards, which cannot hold any out, got {held_out}")
        if held_out >= len(images):
            raise ValueError(f"held_out must leave an image to train on, got {held_out} of {len(images)}")
        self.images, self.workers = images, workers
        self._skipped: list[Skipped] = []
        # those of mixtures stand in parts: the last ones would be of one kind
        numbers = range(len(images))
        apart = numbers[:: len(images) // held_out][:held_out] if held_out else ()
        self.apart = tuple(apart)
        self.training = images if isinstance(images, Stream) else _Without(images, self.apart)
        if not len(self.training):
            raise ValueError(f"held_out must leave an image to train on, got {held_out} with the clean files of all")

    @property
    def count(self) -> int | None:
        """Images that are trained on; None of streams, which do not know."""
        return None if isinstance(self.images, Stream) else len(self.training)

    @property
    def unreadable(self) -> int:
        """Reads that failed in this process, of which each was replaced; a file counts each time it comes up."""
        return sum(each.count for each in self._skipped)

    @property
    def by_ranks(self) -> bool:
        """Whether what is read depends on how many ranks there are."""
        return isinstance(self.images, Stream)

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of paired images, one for all of an unknown kind; none where degradations are made."""
        return (self.images.kinds or (UNKNOWN_KIND,)) if self.images.paired else ()

    def batches(self, *, batch: int, crop: int, rank: int, world: int, start: int, seed: int) -> Iterator[Batch]:
        """See :meth:`Source.batches`."""
        images, skipped, told = self.training, Skipped(), 0
        self._skipped.append(skipped)
        found = batches(
            images, Order(len(images), seed), batch=batch, crop=crop, rank=rank, world=world,
            start=start * batch * world, workers=self.workers, skipped=skipped,
        )  # fmt: skip
        for one in found:
            for file, reason in list(skipped.reasons.items())[told:]:
                warnings.warn(f"{file} cannot be read and is left out: {reason}", stacklevel=2)
            told = len(skipped.reasons)
            yield one

    def held_out(self, crop: int) -> Batch | None:
        """The middles of images that are left out of :meth:`batches`; their seeds are their numbers.

        Raises:
            SampleError: none of them can be read; if only some cannot, warnings name them.
        """
        return None if isinstance(self.images, Stream) else _middles(self.images, self.apart, crop)

    def name(self, number: int) -> str:
        """The file; for streams the number."""
        return f"image {number}" if isinstance(self.images, Stream) else self.images.name(number)


def _middles(images: Dataset, numbers: Sequence[int], crop: int) -> Batch | None:
    """Of some numbers; None of none. What cannot be read is named in a warning, but for the last hope."""
    samples: list[Sample] = []
    for number in numbers:
        try:
            samples.append(images.read(number, None, crop))
        except SampleError as error:
            if number == numbers[-1] and not samples:
                raise
            warnings.warn(f"{error.file} cannot be read and is left out: {error.reason}", stacklevel=2)
    return stacked(samples) if samples else None


class _Beside:
    """A source whose progress is measured on images of another folder."""

    def __init__(self, source: Source, settings: Validation) -> None:
        root = str(settings.root)
        if not Path(root).is_dir():
            raise FileNotFoundError(f"validation.root must name a folder of images, got {root!r}")
        self.images: Dataset = open_layout("paired", root) if source.classes else ImageFolder(root)
        count = min(settings.images, len(self.images))
        self.numbers = [index * len(self.images) // count for index in range(count)]
        self.source, self.by_ranks = source, getattr(source, "by_ranks", False)
        self.count: Any = getattr(source, "count", None)

    @property
    def unreadable(self) -> int:
        return getattr(self.source, "unreadable", 0)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def batches(self, *, batch: int, crop: int, rank: int, world: int, start: int, seed: int) -> Iterator[Batch]:
        return self.source.batches(batch=batch, crop=crop, rank=rank, world=world, start=start, seed=seed)

    def held_out(self, crop: int) -> Batch | None:
        return _middles(self.images, self.numbers, crop)

    def name(self, number: int) -> str:
        return self.source.name(number)


def validated_by(config: TrainConfig, source: Source | None = None) -> Source:
    """The source, or the one that settings name, which holds out what ``validation.root`` has, if that is given.

    Raises:
        FileNotFoundError: no image there. ValueError: files without partners, of pairs.
    """
    apart = config.validation.root is not None
    if source is None:
        source = open_source(replace(config.data, held_out=0) if apart else config.data)
    return _Beside(source, config.validation) if apart and config.validation.every else source


class _Without:
    """A data set but for the clean files of some numbers."""

    def __init__(self, images: Dataset, apart: Sequence[int]) -> None:
        self.images, self.paired, self.kinds = images, images.paired, images.kinds
        self.numbers: Sequence[int] = range(len(images))
        if apart:
            files = {images.clean_file(number) for number in apart}
            self.numbers = [number for number in self.numbers if images.clean_file(number) not in files]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        return self.images.read(self.numbers[number], seed, crop)

    def name(self, number: int) -> str:
        return self.images.name(self.numbers[number])

    def clean_file(self, number: int) -> str:
        return self.images.clean_file(self.numbers[number])


def _collection(data: Data) -> Source:
    root = data.root or ""
    images: Dataset | Stream
    if data.source == "shards":
        images = ShardFolder(root, kinds=data.degradations)
    elif data.exclude:
        files = ImageFolder(root).files
        left = [file for file in files if not any(fnmatch(file.name, each) for each in data.exclude)]
        if not left:
            raise ValueError(f"data.exclude leaves no image of {root}")
        images = ImageFolder(left)
    else:
        images = open_layout(data.source, root, factor=data.factor)
    return Collection(images, data.held_out, data.workers)


def open_source(data: Data) -> Source:
    """The source that settings name.

    Raises:
        ValueError: too few images. FileNotFoundError: no image in its folder.
    """
    return Pictures(bundled_photographs(), data.held_out) if data.source == "photographs" else _collection(data)


class Pair(NamedTuple):
    """Clean and degraded images with the class of each."""

    clean: Tensor  # float32 [B, 3, c, c] in [-1, 1]
    degraded: Tensor  # float32 [B, 3, c, c] in [-1, 1]
    classes: Tensor  # int64 [B]


def clean_images(batch: Batch, device: torch.device) -> Tensor:
    """float32 ``[B, 3, c, c]`` in [0, 1] on ``device``."""
    return batch.clean.to(device, non_blocking=True).to(torch.float32) / 255


def degraded_pair(
    batch: Batch,
    seeds: Tensor,
    device: torch.device,
    names: Sequence[str],
    drawing: Drawing = ALIKE,
) -> Pair:
    """Degrade a batch on ``device``, unless it has degraded images. Results are rounded to 1/255, as files hold them.

    Args:
        batch: of clean images.
        seeds: int64 ``[B]`` on the CPU, of everything random.
        device: where it is computed.
        names: of degradations: classes are their numbers.
        drawing: which of them, how often, at which levels, of how much brightened or darkened images.
    """
    clean = clean_images(batch, device)
    there = partial(sent, device=device)
    if batch.degraded is not None:
        degraded, classes = there(batch.degraded).to(torch.float32) / 255, there(batch.kinds)
    elif tuple(names) == (CHAIN,):
        degraded, classes = two_order_chain(clean, there(seeds))
    else:
        choice = [names.index(name) for name in (drawing.degradations or names)]
        which, share, bright = uniforms(derived_seeds(seeds, 0), 1, DRAW)[:, :3, 0].unbind(1)
        often = torch.tensor([of_name(drawing.draws, names[kind], 1.0) for kind in choice], dtype=torch.float64)
        place = (often.cumsum(0) <= which[:, None].double() * often.sum()).sum(1)
        kinds = torch.tensor(choice)[place.clamp_max(len(choice) - 1)]
        degraded, own = torch.empty_like(clean), derived_seeds(seeds, 1)
        for kind in sorted(set(kinds.tolist())):
            rows = (kinds == kind).nonzero()[:, 0]
            low, high = RANGES[names[kind]]
            places = there(rows)
            levels = low + (high - low) * share[rows] ** of_name(drawing.mild, names[kind], 1.0)
            if tone := of_name(drawing.tone, names[kind], 0.0):
                gamma = (tone * (2 * bright[rows] - 1)).exp()[:, None, None, None]
                clean[places] = (clean[places] ** there(gamma) * 255).round() / 255
            degraded[places] = degrade(clean[places], names[kind], levels, there(own[rows]))
        degraded, classes = (degraded * 255).round() / 255, there(kinds)
    return Pair(clean * 2 - 1, degraded * 2 - 1, classes)
