"""Images of training: crops of clean files, alone or with a degraded one each, as functions of a number and a seed."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .crops import NOISE, Pixels, View
from .images import ImageReadError, list_images, read_image
from .order import Order, mixed
from .pairing import match_pairs

__all__ = ["Dataset", "ImageFolder", "Mixture", "NoisyFolder", "Order", "PairedFolder", "Sample", "SampleError"]

UNKNOWN = -1
"""The kind of a sample whose degradation is not known, or not made yet."""


class Sample(NamedTuple):
    """One image of training.

    Fields:
        clean: uint8 ``[3, h, w]``.
        degraded: uint8 ``[3, h, w]``; None where degradations are made later, on the device.
        kind: the degradation, as an index of the data set's ``kinds``; -1 unknown.
        number: which image of the data set.
        seed: an int64 of the sample, which the crop was drawn from; degradations of the device are drawn from it too.
    """

    clean: Tensor
    degraded: Tensor | None
    kind: int
    number: int
    seed: int


class SampleError(ImageReadError):
    """A file that makes no sample.

    Attributes:
        file: its name, with which the message begins.
        reason: what is wrong with it.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return type(self), (self.file, self.reason)


class Dataset(Protocol):
    """Numbered images. Reading has no state, so any number of threads may."""

    @property
    def paired(self) -> bool:
        """Whether its samples have a degraded image."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the degradations that :attr:`Sample.kind` counts."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        """The image ``number``, cropped to ``crop x crop`` as ``seed`` says.

        None shows its middle, neither mirrored nor turned, as measurements do; the sample's seed is the number then.

        Raises:
            SampleError: a file of it cannot be used; the message names it.
        """

    def name(self, number: int) -> str:
        """What to call the image ``number``: its file, the degraded one where there are two."""

    def clean_file(self, number: int) -> str:
        """The file of the clean image of ``number``, which other numbers may share."""


class ImageFolder:
    """Clean images, whose degradations are made later.

    Args:
        root: a folder, searched to any depth, or the files.
        kind: name of the degradation that all of them will get, if it is known before.
        flip: also mirrored from left to right, half of the time.
        rotate: also turned by 90, 180 or 270 degrees, each a quarter of the time.

    Raises:
        FileNotFoundError: no such folder, or no image in it. ValueError: an empty sequence.
    """

    paired = False

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[Path],
        *,
        kind: str | None = None,
        flip: bool = True,
        rotate: bool = True,
    ) -> None:
        self.files = tuple(list_images([folder_at(root)]) if isinstance(root, (str, os.PathLike)) else root)
        if not self.files:
            raise ValueError("root must be a folder or at least one file, got an empty sequence")
        self.kinds = () if kind is None else (kind,)
        self.flip, self.rotate = flip, rotate

    def __len__(self) -> int:
        return len(self.files)

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        """As :meth:`Dataset.read`: images smaller than the crop are continued by reflection."""
        check_request(number, len(self), crop)
        clean = file_pixels(self.files[number])
        view = View.drawn(seed, clean.shape[1], clean.shape[2], crop, flip=self.flip, rotate=self.rotate)
        return Sample(view.of(clean), None, len(self.kinds) - 1, number, number if seed is None else seed)

    def name(self, number: int) -> str:
        """As :meth:`Dataset.name`."""
        return str(self.files[number])

    def clean_file(self, number: int) -> str:
        """As :meth:`Dataset.clean_file`."""
        return str(self.files[number])


class NoisyFolder(ImageFolder):
    """Clean images, and what Gaussian noise makes of them, drawn anew from every sample's seed.

    Args:
        root, kind, flip, rotate: as :class:`ImageFolder`'s; ``kind`` is ``noise<sigma>`` unless it is given.
        sigma: standard deviation of the noise, in 1/255.

    Raises:
        ValueError: ``sigma`` is not in 0..255, or as :class:`ImageFolder`'s.
    """

    paired = True

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[Path],
        sigma: float,
        *,
        kind: str | None = None,
        flip: bool = True,
        rotate: bool = True,
    ) -> None:
        if not 0 < sigma <= 255:
            raise ValueError(f"sigma must be above 0 and at most 255, got {sigma}")
        super().__init__(root, kind=f"noise{sigma:g}" if kind is None else kind, flip=flip, rotate=rotate)
        self.sigma = sigma

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        """As :meth:`Dataset.read`; the noisy image is clamped and rounded to 8 bits."""
        sample = super().read(number, seed, crop)
        draw = np.random.Generator(np.random.PCG64(mixed(sample.seed, NOISE)))
        noisy = draw.standard_normal(sample.clean.shape, np.float32) * np.float32(self.sigma)
        noisy = np.rint(np.clip(noisy + sample.clean.numpy(), 0, 255)).astype(np.uint8)
        return sample._replace(degraded=torch.from_numpy(noisy))


class PairedFolder:
    """Degraded images with their clean ones, in folders of their own or, told apart by their names, in one.

    Args:
        input: folder of the degraded images, searched to any depth.
        target: folder of the clean ones.
        kind: name of the degradation.
        match: how names belong together, by name (:data:`bdg_fast.data.pairing.RULES`); ``"auto"`` takes the first
            rule by which every degraded image has a clean one.
        partial: leave out degraded images without a clean one rather than raise; ``unmatched`` names them.
        flip, rotate: as :class:`ImageFolder`'s; a pair is always mirrored and turned alike.

    Attributes:
        pairs: the files, degraded and clean, in the order of the degraded ones' names.
        unmatched: files of either folder that belong to no pair.

    Degraded images are as large as their clean ones, or smaller by one whole factor: then they are enlarged by bicubic
    interpolation.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an unknown rule, or degraded images without a clean one (named), or with several.
    """

    paired = True

    def __init__(
        self,
        input: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        kind: str | None = None,
        match: str = "auto",
        partial: bool = False,
        flip: bool = True,
        rotate: bool = True,
    ) -> None:
        self.pairs, self.unmatched = match_pairs(folder_at(input), folder_at(target), match, partial)
        self.kinds = () if kind is None else (kind,)
        self.flip, self.rotate = flip, rotate

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        """As :meth:`Dataset.read`: the same crop of both, continued by reflection where they are smaller."""
        check_request(number, len(self), crop)
        input, target = self.pairs[number]
        clean, degraded = file_pixels(target), file_pixels(input)
        view = View.drawn(seed, clean.shape[1], clean.shape[2], crop, flip=self.flip, rotate=self.rotate)
        own = number if seed is None else seed
        return paired_sample(view, clean, degraded, len(self.kinds) - 1, number, own, str(input), str(target))

    def name(self, number: int) -> str:
        """As :meth:`Dataset.name`."""
        return str(self.pairs[number][0])

    def clean_file(self, number: int) -> str:
        """As :meth:`Dataset.clean_file`."""
        return str(self.pairs[number][1])


class Mixture:
    """Several data sets as one.

    One epoch has every image of every part at least once and the parts in proportion to their weights: a part that is
    smaller than its share comes round again, evenly.

    Args:
        parts: data sets, all with degraded images or all without.
        weights: the share of samples of each; None: as many as there are images.

    Attributes:
        kinds: those of all parts, each name once.

    Raises:
        ValueError: no part, parts that differ in having degraded images, or weights that are not one positive number
            for each.
    """

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float] | None = None) -> None:
        self.parts = tuple(parts)
        if not self.parts or len({part.paired for part in self.parts}) > 1:
            told = [f"{type(part).__name__} {'with' if part.paired else 'without'}" for part in self.parts]
            raise ValueError(f"parts must be data sets, all with degraded images or all without, got {told}")
        shares = [float(len(part)) for part in self.parts] if weights is None else [float(w) for w in weights]
        if len(shares) != len(self.parts) or not all(0 < share < math.inf for share in shares):
            raise ValueError(f"weights must be {len(self.parts)} positive numbers, one a part, got {weights}")
        self.paired = self.parts[0].paired
        self.kinds = tuple(dict.fromkeys(kind for part in self.parts for kind in part.kinds))
        self._kind = [[self.kinds.index(kind) for kind in part.kinds] for part in self.parts]
        scale = max(len(part) / share for part, share in zip(self.parts, shares, strict=True))
        # not below the part, whatever rounding did to the quotients
        sizes = [max(len(part), round(scale * share)) for part, share in zip(self.parts, shares, strict=True)]
        self._ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, number: int, seed: int | None, crop: int) -> Sample:
        """As :meth:`Dataset.read`; ``number`` counts the parts' images one part after another, with repetitions."""
        check_request(number, len(self), crop)
        which, own = self._place(number)
        sample = self.parts[which].read(own, seed, crop)
        kind = self._kind[which][sample.kind] if sample.kind >= 0 else UNKNOWN
        return sample._replace(kind=kind, number=number, seed=number if seed is None else seed)

    def name(self, number: int) -> str:
        """As :meth:`Dataset.name`."""
        which, own = self._place(number)
        return self.parts[which].name(own)

    def clean_file(self, number: int) -> str:
        """As :meth:`Dataset.clean_file`."""
        which, own = self._place(number)
        return self.parts[which].clean_file(own)

    def _place(self, number: int) -> tuple[int, int]:
        """The part, and the image of it."""
        which = bisect_right(self._ends, number)
        return which, (number - (self._ends[which - 1] if which else 0)) % len(self.parts[which])


def paired_sample(
    view: View, clean: Pixels, degraded: Pixels, kind: int, number: int, seed: int, input: str, target: str
) -> Sample:
    """The same view of both; SampleError unless ``degraded`` is as large as ``clean``, or smaller by a whole factor."""
    high, low = clean.shape[1:], degraded.shape[1:]
    factor = high[0] // low[0]
    if factor < 1 or (low[0] * factor, low[1] * factor) != tuple(high):
        raise SampleError(
            input, f"{low[0]} x {low[1]} pixels do not belong to the {high[0]} x {high[1]} of {target} by any factor"
        )
    return Sample(view.of(clean), view.of(degraded, factor), kind, number, seed)


def folder_at(path: str | os.PathLike[str]) -> Path:
    """FileNotFoundError unless it is a folder."""
    if not Path(path).is_dir():
        what = "is no folder" if Path(path).exists() else "does not exist"
        raise FileNotFoundError(f"{os.fspath(path)!r} {what}: a folder of images is needed")
    return Path(path)


def check_request(number: int, count: int, crop: int) -> None:
    """IndexError or ValueError for a number of no image, or a crop of no pixel."""
    if not 0 <= number < count:
        raise IndexError(f"number must be in 0..{count - 1}, got {number}")
    if crop < 1:
        raise ValueError(f"crop must be at least 1, got {crop}")


def file_pixels(path: Path) -> Pixels:
    try:
        return read_image(path).numpy()
    except ImageReadError as error:
        name = os.fspath(path)
        raise SampleError(name, str(error).removeprefix(f"{name}: ")) from error


Result = tuple[Sample | None, list[SampleError]]
"""A sample, None if neither it nor any in its stead can be read, and what could not be read."""
Task = Callable[[], Result]
"""Reads one sample, in any thread."""


@runtime_checkable
class Stream(Protocol):
    """Images that come in an order of their own, as from shards."""

    @property
    def paired(self) -> bool:
        """Whether its samples have a degraded image."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the degradations that :attr:`Sample.kind` counts."""

    def __len__(self) -> int:
        """Number of what its order is of."""

    def tasks(self, order: Order, *, crop: int, rank: int, world: int, start: int) -> Iterator[Task]:
        """Endless: the samples at positions ``start + rank``, ``start + rank + world``, ... of a run, to be read."""
