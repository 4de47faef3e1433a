"""Collections in tar files, as the webdataset package lays them out, read from end to end.

The files of one image stand one after another and share their name up to the first dot, its *key*::

    00000042.json  00000042.jpg                              a clean image
    00000042.json  00000042.input.png  00000042.target.png   a degraded one and its clean one

The JSON file may be missing; its ``"kind"`` names the degradation. Capitals after the first dot do not count: of
``1.png`` and ``1.PNG`` nobody knows which is meant, so training refuses both by name. Python's own tarfile reads this.
The webdataset package is not used: what it would save is a page of code, and neither its order nor its way of resuming
is by position.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bdg_fast.files import write_atomically

from .crops import Pixels, View
from .datasets import ImageFolder, PairedFolder, Result, Sample, SampleError, Task, folder_at, paired_sample
from .images import EXTENSIONS, ImageReadError, decode_image
from .order import Order, mixed

OTHERS = 16
"""Images that are tried in the stead of one that cannot be read: those that follow it."""
SHUFFLE = 0
"""What the run's seed is mixed with for the shuffled order, as nothing of :mod:`bdg_fast.data.order` is."""


class Member(NamedTuple):
    """What follows the first dot of a file's name, where it lies in a shard, and its bytes if they have been read."""

    name: str
    offset: int
    size: int
    data: bytes | None


class Entry(NamedTuple):
    """The files of one image, in their order."""

    shard: Path
    key: str
    files: tuple[Member, ...]

    def read(self, file: Member) -> bytes:
        """The bytes of one of them."""
        _, offset, size, data = file
        if data is None:
            with open(self.shard, "rb") as shard:
                shard.seek(offset)
                data = shard.read(size)
        return data

    def named(self, file: Member) -> str:
        """What errors call one of them."""
        return f"{self.shard}/{self.key}.{file.name}"

    def first(self, accepts: Callable[[str], bool]) -> Member | None:
        """The first one whose name, in small letters, is accepted."""
        return next((file for file in self.files if accepts(file.name.lower())), None)

    def check(self, file: Member) -> None:
        """Refuse, as a `SampleError`, one of several of a name: nobody knows which belongs to what."""
        same = [each.name for each in self.files if each.name.lower() == file.name.lower()]
        if len(same) > 1:
            raise SampleError(self.named(file), f"must be there once, got {', '.join(same)} of {self.key}")


class ShardFolder:
    """The images of tar files, for :func:`~bdg_fast.data.loader.batches` (with an order of ``len`` shards).

    An epoch has every image once. Ranks share out its shards (an equal number each is best), read theirs from end to
    end, in an order drawn for the epoch, and shuffle what they read in a buffer. All of it follows from the run's seed;
    a resumed run reads only names and sizes of what was before, of one epoch at most. Resuming needs the number of
    ranks to stay.

    Args:
        root: a folder, of which all ``*.tar`` at any depth are taken, or the files.
        kinds: names of degradations that the JSON files may name; empty: they are not looked at.
        buffer: images that are kept to be shuffled, as bytes of their files; 0 keeps the files' order.
        flip, rotate: as :class:`~bdg_fast.data.datasets.ImageFolder`'s.

    Attributes:
        paired: whether the first readable image has a degraded one; all must agree.

    Raises:
        FileNotFoundError: no such folder, or no tar file in it. ValueError: no readable image at the start of any.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[Path],
        *,
        kinds: Sequence[str] = (),
        buffer: int = 1000,
        flip: bool = True,
        rotate: bool = True,
    ) -> None:
        if isinstance(root, (str, os.PathLike)):
            top = folder_at(root)
            found = (path for path in top.rglob("*.tar") if not path.name.startswith("."))
            self.shards = tuple(sorted(found))
        else:
            self.shards = tuple(root)
        if not self.shards:
            raise FileNotFoundError(f"root must hold *.tar, got {root!r}")
        if buffer < 0:
            raise ValueError(f"buffer must be at least 0, got {buffer}")
        self.kinds, self.buffer, self.flip, self.rotate = tuple(kinds), buffer, flip, rotate
        firsts = (next(entries_of(shard, lambda: False), None) for shard in self.shards)
        first = next((entry for entry in firsts if isinstance(entry, Entry)), None)
        if first is None:
            raise ValueError(f"root must hold tar files of images, got {len(self.shards)} without a readable one")
        self.paired = _image(first, "input.") is not None

    def __len__(self) -> int:
        return len(self.shards)

    def tasks(self, order: Order, *, crop: int, rank: int, world: int, start: int) -> Iterator[Task]:
        """As :meth:`bdg_fast.data.datasets.Stream.tasks`.

        Raises:
            ValueError: fewer shards than ranks, or ``start`` is no multiple of ``world``.
        """
        if len(self) < world:
            raise ValueError(f"world must be at most the number of shards, {len(self)}, got {world}")
        if start % world:
            raise ValueError(f"start must be a multiple of world = {world}, got {start}")
        return self._tasks(order, crop, rank, world, start)

    def _tasks(self, order: Order, crop: int, rank: int, world: int, start: int) -> Iterator[Task]:
        stream = self._shuffled(order, rank, world, start // world)
        ahead: deque[Entry] = deque()
        broken: list[list[SampleError]] = []  # of shards, told with the entry after them
        for position in count(start + rank, world):
            while len(ahead) <= OTHERS:
                entry, errors = next(stream)
                ahead.append(entry)
                broken.append(errors)
            yield partial(self._read, tuple(ahead), order.seed_of(position), crop, broken.pop(0))
            ahead.popleft()

    def _shuffled(self, order: Order, rank: int, world: int, skip: int) -> Iterator[tuple[Entry, list[SampleError]]]:
        """Entries of a rank after the first ``skip``, and which shards turned out broken on the way to each."""
        sizes: dict[Path, int] = {}
        passed, errors = 0, list[SampleError]()

        def needed() -> bool:  # of what comes into the buffer before, few are still there, and are read one by one
            return passed >= skip

        for epoch in count():
            shards = [self.shards[order.number(epoch * len(self) + at)] for at in range(rank, len(self), world)]
            if all(shard in sizes for shard in shards):
                known = sum(sizes[shard] for shard in shards)
                if not known:
                    raise ValueError(f"no readable image in shards, such as {shards[0]}")
                if passed + known <= skip:
                    passed += known
                    continue
            sizes |= dict.fromkeys(shards, 0)
            held: list[Entry] = []
            for entry in chain(chain.from_iterable(entries_of(shard, needed) for shard in shards), repeat(None)):
                if isinstance(entry, SampleError):
                    errors.append(entry)
                    continue
                if entry is not None:
                    sizes[entry.shard] += 1
                    held.append(entry)
                elif not held:
                    break
                if entry is None or len(held) > self.buffer:
                    chosen = _drawn(held, order.seed, rank, passed)
                    passed += 1
                    if passed > skip:
                        yield chosen, errors
                    errors = []

    def _read(self, entries: tuple[Entry, ...], seed: int, crop: int, errors: list[SampleError]) -> Result:
        """The first of the entries that can be read."""
        errors = list(errors)
        for entry in entries:
            try:
                return self._sample(entry, seed, crop), errors
            except SampleError as error:
                errors.append(error)
        return None, errors

    def _sample(self, entry: Entry, seed: int, crop: int) -> Sample:
        kind, number = self._kind(entry), _number(entry)
        target, input = _image(entry, "target." if self.paired else ""), _image(entry, "input.")
        if target is None or (input is not None) is not self.paired:
            wanted = "input and target" if self.paired else "one clean image"
            names = ", ".join(file.name for file in entry.files)
            raise SampleError(f"{entry.shard}/{entry.key}", f"must have {wanted}, has {names}")
        entry.check(target)
        if input is not None:
            entry.check(input)
        clean = _decoded(entry, target)
        view = View.drawn(seed, clean.shape[1], clean.shape[2], crop, flip=self.flip, rotate=self.rotate)
        if input is None:
            return Sample(view.of(clean), None, kind, number, seed)
        degraded = _decoded(entry, input)
        return paired_sample(view, clean, degraded, kind, number, seed, entry.named(input), entry.named(target))

    def _kind(self, entry: Entry) -> int:
        file = entry.first(lambda name: name == "json") if self.kinds else None
        if file is None:
            return -1
        entry.check(file)
        try:
            kind = json.loads(entry.read(file)).get("kind")
        except (ValueError, AttributeError, OSError) as error:
            raise SampleError(entry.named(file), f"no JSON object: {error}") from error
        if kind is not None and kind not in self.kinds:
            raise SampleError(entry.named(file), f"kind must be one of {', '.join(self.kinds)}, got {kind!r}")
        return -1 if kind is None else self.kinds.index(kind)


def write_shards(
    folder: str | os.PathLike[str] | ImageFolder | PairedFolder,
    out: str | os.PathLike[str],
    *,
    per_shard: int = 1000,
    name: str = "shard",
    seed: int = 0,
) -> list[Path]:
    """Copy images into tar files ``<name>-000000.tar``, ... that :class:`ShardFolder` reads.

    Files are copied byte for byte, shuffled (so that a shard does not hold one scene), with a JSON file each that names
    where they came from and the degradation. Each shard appears whole or not at all; the same images and settings give
    the same bytes.

    Args:
        folder: a folder of clean images, or a data set of files.
        out: folder of the shards, made if it is missing.
        per_shard: images of each.
        name: what the files' names begin with.
        seed: of the shuffling.

    Returns:
        The shards' paths.

    Raises:
        FileExistsError: ``out`` has shards of that name already. ValueError: ``per_shard`` below 1.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1, got {per_shard}")
    source = folder if isinstance(folder, (ImageFolder, PairedFolder)) else ImageFolder(folder)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    present = sorted(target.glob(f"{name}-*.tar"))
    if present:
        raise FileExistsError(
            f"{str(target)!r} has shards already ({present[0].name}, ...): give another name or folder"
        )
    order, shards = Order(len(source), seed), list[Path]()
    for first in range(0, len(source), per_shard):
        path = target / f"{name}-{len(shards):06d}.tar"
        numbers = [order.number(at) for at in range(first, min(first + per_shard, len(source)))]
        write_atomically(path, partial(_write_shard, source=source, numbers=numbers))
        shards.append(path)
    return shards


def _write_shard(path: Path, *, source: ImageFolder | PairedFolder, numbers: list[int]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            if isinstance(source, PairedFolder):
                degraded, file = source.pairs[number]
                files = {"input.": degraded, "target.": file}
            else:
                file = source.files[number]
                files = {"": file}
            told = {"file": f"{file.parent.name}/{file.name}"} | ({"kind": source.kinds[0]} if source.kinds else {})
            _add(tar, f"{number:08d}.json", json.dumps(told).encode())
            for role, copied in files.items():
                _add(tar, f"{number:08d}.{role}{copied.suffix[1:].lower()}", copied.read_bytes())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def entries_of(shard: Path, read: Callable[[], bool]) -> Iterator[Entry | SampleError]:
    """The images of a shard, with their bytes where ``read`` says so; last, what is wrong with it."""
    key, files = "", list[Member]()
    try:
        with tarfile.open(shard, "r:") as tar:
            while (info := tar.next()) is not None:
                stem, _, name = PurePosixPath(info.name).name.partition(".")
                if not info.isfile() or not stem:  # folders, and hidden files
                    continue
                own = str(PurePosixPath(info.name).with_name(stem))
                if own != key and files:
                    yield Entry(shard, key, tuple(files))
                    files = []
                key = own
                file = tar.extractfile(info) if read() else None
                files.append(Member(name, info.offset_data, info.size, None if file is None else file.read()))
            end = tar.offset
        # tarfile takes damage for the end
        with open(shard, "rb") as raw:
            raw.seek(end)
            block = raw.read(tarfile.BLOCKSIZE)
        if files:
            yield Entry(shard, key, tuple(files))
        if block != bytes(tarfile.BLOCKSIZE):
            yield SampleError(str(shard), f"is damaged or cut off after {key}")
    except (tarfile.TarError, OSError) as error:
        yield SampleError(str(shard), str(error))


def _image(entry: Entry, role: str) -> Member | None:
    """The file of an entry that is an image of that role."""
    return entry.first(lambda name: name.startswith(role) and f".{name.removeprefix(role)}" in EXTENSIONS)


def _decoded(entry: Entry, file: Member) -> Pixels:
    try:
        return decode_image(entry.read(file), entry.named(file)).numpy()
    except ImageReadError as error:
        raise SampleError(entry.named(file), str(error).removeprefix(f"{entry.named(file)}: ")) from error
    except OSError as error:
        raise SampleError(entry.named(file), str(error)) from error


def _number(entry: Entry) -> int:
    """63 bits that tell an image from others, as no one has counted them."""
    digest = hashlib.blake2b(f"{entry.shard.name}/{entry.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _drawn(held: list[Entry], seed: int, rank: int, passed: int) -> Entry:
    """One of the entries, taken out."""
    at = mixed(seed, SHUFFLE, rank, passed) % len(held)
    held[at], held[-1] = held[-1], held[at]
    return held.pop()
