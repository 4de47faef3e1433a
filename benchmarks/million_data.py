"""A collection of any size from a few photographs: small crops degraded in known ways, some of them changed copies.

Names tell what each image is: ``{number}-{photograph}-{kind}.jpg``, and ``{number}-{photograph}-{kind}-{change}.jpg``
of a copy of the image `BEFORE` numbers earlier. Each tar file has one that is cut off, which no decoder reads.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from bdg_fast.analysis import KINDS
from bdg_fast.data.degrade import degrade
from bdg_fast.data.images import as_unit_rgb, read_image
from bdg_fast.files import write_atomically

from .analysis_data import level_of

PER_SHARD = 10_000
"""Images of a tar file; a multiple of `COPY_EVERY`, as `TOGETHER` is."""
SIDE = 64
"""Of an image, in pixels."""
TOGETHER = 1000
"""Images that are made together."""
COPY_EVERY, BEFORE = 100, 50
"""One image in how many is a copy, and of which one before it."""
QUALITY = 97
"""Of the JPEG files that all images are."""


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "jpeg95": partial(_jpeg, quality=95),
    "jpeg75": partial(_jpeg, quality=75),
    "cropped": lambda image: image.crop((2, 2, image.width - 2, image.height - 2)),
}
"""What is done to a copy."""


class Name(NamedTuple):
    """What a key of the collection tells."""

    number: int
    photograph: int
    kind: str
    change: str | None

    @classmethod
    def of(cls, key: str) -> Name:
        """Of ``.../number-photograph-kind[-change].jpg``."""
        number, photograph, kind, *change = key.rpartition("/")[2].removesuffix(".jpg").split("-")
        return cls(int(number), int(photograph), kind, change[0] if change else None)


def is_copy(number: int) -> bool:
    """Whether an image is a copy of the one `BEFORE` numbers earlier."""
    return number % COPY_EVERY == COPY_EVERY - 1


def crops(photographs: Sequence[Tensor], numbers: range) -> list[tuple[str, Image.Image]]:
    """Names and pictures of some images that are not copies."""
    by_kind: dict[str, list[tuple[str, Tensor, float, int]]] = {kind: [] for kind in KINDS}
    for number in numbers:
        rng = random.Random(number)
        which, kind = rng.randrange(len(photographs)), rng.choice(KINDS)
        full = photographs[which]
        top, left = (rng.randrange(size - SIDE + 1) for size in full.shape[1:])
        crop = full[:, top : top + SIDE, left : left + SIDE]
        if rng.random() < 0.5:
            crop = crop.flip(2)
        name = f"{number:08d}-{which:04d}-{kind}"
        by_kind[kind].append((name, crop, level_of(kind, rng.random()), rng.getrandbits(62)))
    found = []
    for kind, members in by_kind.items():
        if members:
            names, images, levels, seeds = zip(*members, strict=True)
            shown = degrade(torch.stack(images), kind, torch.tensor(levels), torch.tensor(seeds))
            pixels = shown.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            found += zip(names, map(Image.fromarray, pixels), strict=True)
    return sorted(found, key=lambda each: each[0])


def with_copies(images: list[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """With copies in the place of the images whose numbers are theirs."""
    by_number = {int(name.partition("-")[0]): (name, image) for name, image in images}
    for number in by_number:
        if is_copy(number):
            name, image = by_number[number - BEFORE]
            change = list(CHANGES)[number // COPY_EVERY % len(CHANGES)]
            by_number[number] = (f"{number:08d}{name[8:]}-{change}", CHANGES[change](image))
    return list(by_number.values())


def write_shard(path: Path, photographs: Sequence[Tensor], numbers: range) -> None:
    """A tar file of these images and of one that is cut off."""

    def write(to: Path) -> None:
        with tarfile.open(to, "w") as tar:
            for begin in range(numbers.start, numbers.stop, TOGETHER):
                for name, image in with_copies(crops(photographs, range(begin, min(begin + TOGETHER, numbers.stop)))):
                    file = io.BytesIO()
                    image.save(file, format="JPEG", quality=QUALITY, subsampling=0)
                    _add(tar, f"{name}.jpg", file.getvalue())
            _add(tar, f"broken-{numbers.start:08d}.jpg", file.getvalue()[:200])

    write_atomically(path, write)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_collection(folder: Path, photographs: Sequence[Path], images: int) -> int:
    """Tar files of ``images`` images; those that are there are kept. How many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = [as_unit_rgb(read_image(path)) for path in photographs]
    begins = range(0, images, PER_SHARD)
    for begin in begins:
        path = folder / f"{begin // PER_SHARD:05d}.tar"
        if not path.exists():
            write_shard(path, pixels, range(begin, min(begin + PER_SHARD, images)))
    return len(begins)
