"""The images of a collection, a part at a time: never are all of their names held (but for those of a glob).

A part's name and content follow from the inputs alone, so that an interrupted run and several processes agree on them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from bdg_fast.data.datasets import SampleError
from bdg_fast.data.images import EXTENSIONS, decode_image, read_image
from bdg_fast.data.shards import Entry, Member, entries_of

SHARD, LIST = ".tar", ".txt"
"""Files that stand for images: a tar file of them, and a list of paths."""
T = TypeVar("T")


class Item(NamedTuple):
    """An image: what it is called, and how to get ``[C, H, W]``, uint8 or uint16; that raises if it cannot be read."""

    key: str
    read: Callable[[], Tensor]


def parts_of(
    inputs: Sequence[str], size: int, rank: int = 0, world: int = 1, seen: Callable[[Path], object] = lambda path: None
) -> Iterator[tuple[str, list[Item]]]:
    """Names of parts and their images, in the order of the inputs.

    Args:
        inputs: folders (searched to any depth for images and tar files), image files, tar files, lists (``.txt``: a
            path on each line, from the list's folder), or globs. Hidden files of folders and tar files are left out.
        size: images of a part, at most; tar files begin a part of their own.
        rank, world: which share of the files: a tar file, or ``size`` image files, goes to one process.
        seen: called with every image file and tar file, of all shares.

    Raises:
        FileNotFoundError: an input that matches nothing; raised at once, before the first part.
    """
    for given in inputs:
        if not (given and (Path(given).exists() or any(_matches(given)))):
            raise FileNotFoundError(f"no such file, folder or match: {given!r}")
    return _parts(_told(_paths(inputs), seen), size, rank, world)


def _matches(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True) if glob.has_magic(pattern) else iter(())


def _told(paths: Iterator[Path], seen: Callable[[Path], object]) -> Iterator[Path]:
    for path in paths:
        seen(path)
        yield path


def _parts(paths: Iterator[Path], size: int, rank: int, world: int) -> Iterator[tuple[str, list[Item]]]:
    for number, group in enumerate(_groups(paths, size)):
        if number % world != rank:
            continue
        items = _inside(group) if isinstance(group, Path) else map(_file, group)
        for at, chunk in enumerate(_chunks(items, size)):
            yield f"part-{number:06d}-{at:04d}", chunk


def _paths(inputs: Iterable[str]) -> Iterator[Path]:
    """Image files and tar files."""
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            yield from _below(path)
        elif not path.exists() and glob.has_magic(given):
            yield from (found for found in map(Path, sorted(_matches(given))) if not found.is_dir())
        elif path.suffix.lower() == LIST:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
                yield from (path.parent / line.rstrip("\r\n") for line in lines if line.strip())
        else:
            yield path


def _below(top: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(top):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in (*EXTENSIONS, SHARD):
                yield Path(folder, file)


def _groups(paths: Iterator[Path], size: int) -> Iterator[Path | list[Path]]:
    """Tar files, and up to ``size`` image files that follow one another."""
    group: list[Path] = []
    for path in paths:
        if path.suffix.lower() != SHARD:
            group.append(path)
        if group and (len(group) == size or path.suffix.lower() == SHARD):
            yield group
            group = []
        if path.suffix.lower() == SHARD:
            yield path
    if group:
        yield group


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _file(path: Path) -> Item:
    return Item(str(path), partial(read_image, path))


def _inside(shard: Path) -> Iterator[Item]:
    for entry in entries_of(shard, lambda: False):
        if isinstance(entry, SampleError):
            yield Item(str(shard), partial(_fail, entry))
            continue
        for file in entry.files:
            if f".{file.name.lower().rpartition('.')[2]}" in EXTENSIONS:
                yield Item(entry.named(file), partial(_decode, entry, file))


def _decode(entry: Entry, file: Member) -> Tensor:
    return decode_image(entry.read(file), entry.named(file))


def _fail(error: SampleError) -> Tensor:
    raise error
