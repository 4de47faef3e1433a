"""What is evaluated: a degraded image and its clean one, from folders of pairs or made of clean photographs."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.crops import eight_bits
from ..data.datasets import folder_at
from ..data.degrade import CLEAN
from ..data.images import as_unit_rgb, list_images, read_image
from ..data.layouts import Part, find_parts
from ..data.pairing import match_pairs
from .restoration import KINDS, SHARES, degraded_version

Pair = tuple[Tensor, Tensor]
"""Degraded and clean image, uint8 ``[3, H, W]`` each, of one size."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to images before anything else.

    Fields:
        multiple: both are cut to a multiple of it, around the middle.
        equalize: degradations whose histograms are equalized, a channel each, as DiffUIR does in low light.
        fit_target: degradations whose clean images are resized to the degraded ones, where they differ.
    """

    multiple: int = 1
    equalize: Collection[str] = ()
    fit_target: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One image to restore.

    Fields:
        kind: its degradation.
        set: the test set.
        name: unique in the set; that of the degraded file, without extension where that is clear.
        pool: where the clean images lie; sets of one pool share scenes.
        scene: the clean image.
        source: what errors name.
        read: the images; raises where they cannot be.
        counted: whether the mean over degradations counts it.
        margin: fewer pixels than this were cut off its height and width (:class:`Preparation`).
    """

    kind: str
    set: str
    name: str
    pool: str
    scene: str
    source: str
    read: Callable[[], Pair]
    counted: bool = True
    margin: int = 1

    @property
    def key(self) -> tuple[str, str, str]:
        """Unique among all."""
        return self.kind, self.set, self.name


def collection_cases(
    layout: str,
    root: str | os.PathLike[str],
    *,
    factor: int | None = None,
    kinds: Sequence[str] | None = None,
    preparation: Preparation | None = None,
) -> tuple[list[Case], list[str]]:
    """The test split of a collection (`bdg_fast.data.layouts`), and degraded files that have no clean one.

    Raises:
        As :func:`bdg_fast.data.layouts.find_parts`; FileNotFoundError where a folder has no image.
    """
    base, parts = find_parts(layout, root, "test", factor, kinds)
    cases: list[Case] = []
    lost: list[str] = []
    for part in parts:
        found, without = _part_cases(base, part, preparation or Preparation())
        cases += found
        lost += without
    return cases, lost


def paired_cases(
    input: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    match: str = "auto",
    kind: str = "images",
    preparation: Preparation | None = None,
) -> tuple[list[Case], list[str]]:
    """Two folders whose files belong together, and degraded files that have no clean one.

    Raises:
        As :func:`bdg_fast.data.pairing.match_pairs`.
    """
    top = folder_at(input)
    return _part_cases(Path(), Part(kind, str(folder_at(target)), str(top), match), preparation or Preparation())


def photograph_cases(
    images: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = KINDS,
    shares: Sequence[float] = SHARES,
    clean: bool = True,
) -> list[Case]:
    """Clean photographs, degraded in known ways (`bdg_fast.evaluation.restoration`), and as they are.

    Args:
        images: folder, searched to any depth.
        kinds: of `bdg_fast.data.degrade.NAMES`.
        shares: of each one's range of levels, 0 to 1.
        clean: also as they are, to see what restoring does to them; no part of the mean over degradations.
    """
    top = folder_at(images)
    files = list_images([top])
    cases = []
    for kind in ((CLEAN,) if clean else ()) + tuple(kinds):
        for number, share in enumerate((0.0,) if kind == CLEAN else shares):
            for file, name in zip(files, _names(top, files), strict=True):
                called = name if kind == CLEAN else f"{name}_{round(100 * share)}"
                read = partial(_degraded, file, kind, number, share)
                cases.append(Case(kind, kind, called, str(top), name, str(file), read, kind != CLEAN))
    return cases


def _part_cases(base: Path, part: Part, preparation: Preparation) -> tuple[list[Case], list[str]]:
    kind = part.kind or "images"
    name = part.set or kind
    targets, margin = base / part.target, preparation.multiple
    if part.sigma is not None:
        noisy = []
        for file, called in zip(found := list_images([targets]), _names(targets, found), strict=True):
            read = partial(_noisy, file, called, part.sigma, margin)
            noisy.append(Case(kind, name, called, str(targets), called, str(file), read, margin=margin))
        return noisy, []
    inputs = targets if part.input is None else base / part.input
    pairs, unmatched = match_pairs(inputs, targets, part.match, partial=True)
    degraded, clean = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cases = []
    for file, target, called in zip(degraded, clean, _names(inputs, degraded), strict=True):
        read, scene = partial(_pair, file, target, kind, preparation), target.relative_to(targets).as_posix()
        cases.append(Case(kind, name, called, str(targets), scene, str(file), read, margin=margin))
    lost = [f"{file}: no clean image in {targets}" for file in unmatched if file.is_relative_to(inputs)]
    return cases, [] if inputs == targets else lost


def _names(root: Path, files: Sequence[Path]) -> list[str]:
    """Paths below ``root``, with extensions only where they differ in nothing else."""
    short = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    count = Counter(short)
    return [
        name if count[name] == 1 else file.relative_to(root).as_posix() for name, file in zip(short, files, strict=True)
    ]


def pixels(path: Path) -> Tensor:
    """uint8 ``[3, H, W]`` of an image file."""
    return torch.from_numpy(eight_bits(read_image(path).numpy())).expand(3, -1, -1).contiguous()


def _pair(input: Path, target: Path, kind: str, preparation: Preparation) -> Pair:
    degraded, clean = pixels(input), pixels(target)
    if kind in preparation.equalize:
        degraded = equalized(degraded)
    if degraded.shape != clean.shape:
        (low_h, low_w), (high_h, high_w) = degraded.shape[1:], clean.shape[1:]
        factor = high_h // low_h
        if factor > 1 and (low_h * factor, low_w * factor) == (high_h, high_w):
            degraded = _resized(degraded, high_h, high_w)
        elif kind in preparation.fit_target:
            clean = _resized(clean, low_h, low_w)
        else:
            raise ValueError(
                f"{low_h} x {low_w} pixels do not belong to the {high_h} x {high_w} of {target} by any whole factor"
            )
    return cut(degraded, preparation.multiple), cut(clean, preparation.multiple)


def _noisy(file: Path, name: str, sigma: float, multiple: int) -> Pair:
    """Gaussian noise, a function of name and strength, truncated to 8 bits as in AirNet's and PromptIR's programs."""
    clean = cut(pixels(file), multiple)
    draw = np.random.default_rng([zlib.crc32(name.encode()), round(1000 * sigma)])
    noisy = clean.numpy() + sigma * draw.standard_normal(tuple(clean.shape))
    return torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8)), clean


def _degraded(file: Path, kind: str, number: int, share: float) -> Pair:
    photograph = as_unit_rgb(read_image(file))
    degraded = photograph if kind == CLEAN else degraded_version(photograph, kind, number, share)[1]
    return tuple((255 * each).round().to(torch.uint8) for each in (degraded, photograph))  # type: ignore[return-value]


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """By Pillow's bicubic interpolation."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def cut(image: Tensor, multiple: int) -> Tensor:
    """``[3, H, W]`` around the middle, height and width down to a multiple."""
    height, width = (side // multiple * multiple for side in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()


def equalized(image: Tensor) -> Tensor:
    """Histograms of uint8 ``[3, H, W]`` equalized, a channel each, as OpenCV's ``equalizeHist`` does."""
    channels = []
    for channel in image:
        counts = torch.bincount(channel.flatten().int(), minlength=256)
        first = int(counts.nonzero()[0])
        rest = channel.numel() - int(counts[first])
        if rest == 0:  # of one value
            channels.append(channel)
            continue
        table = (counts.cumsum(0) - counts[first]).clamp(min=0).double().mul(255 / rest).round().to(torch.uint8)
        channels.append(table[channel.int()])
    return torch.stack(channels)
