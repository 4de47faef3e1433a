"""Many pictures: read ahead in threads, those of one size restored together, each with an error of its own.

How pictures are restored is not known here: `bdg_fast.restorer` tells.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from .data.convert import Picture

READERS, GPU_READERS = 2, min(16, os.cpu_count() or 1)
"""Threads that read and decode pictures while the network works: on the same processors, or on a GPU."""
AHEAD = 2
"""Batches that a GPU has begun while results of the one before are made into pictures."""

KINDS = 8
"""Whole batches of pictures that may wait for others of their size: sizes that come in turn fill their batches."""
MOST_BYTES = 1 << 29
"""Of pictures that wait for others, and of those that are read ahead, but for two of these."""

Items = Sequence[tuple[int, Any, "Picture"]]
"""Number, source and what was read of it."""
Begun = tuple[Items, Callable[[], list[Any]]]
"""What is being restored, and what waits for it."""


class Restored(NamedTuple):
    """What :meth:`Restorer.stream` makes of one source."""

    number: int  # of the source, in the order they came
    source: Any
    image: Any  # restored, of the type of the source; None if it failed
    error: Exception | None


class Stream:
    """The work of :meth:`Restorer.stream`.

    Args:
        begin: begins to restore pictures of one kind; what it returns waits for the results.
        read: makes a picture of a source, in threads.
        batch: most pictures that are restored together.
        on_gpu: the network leaves the processors to others: more threads read, and a batch begins before the last is
            finished.
        leave: called when nothing more is read.
    """

    def __init__(
        self,
        begin: Callable[[Sequence[Picture]], Callable[[], list[Any]]],
        read: Callable[[Any], Picture],
        batch: int,
        *,
        on_gpu: bool,
        leave: Callable[[], object],
    ) -> None:
        """Nothing begins."""
        self.begin, self.read, self.batch, self.leave = begin, read, batch, leave
        self.readers, self.ahead = (GPU_READERS, AHEAD) if on_gpu else (READERS, 0)

    def restored(self, sources: Iterator[tuple[int, Any]]) -> Iterator[Restored]:
        """Of numbered sources; what cannot be read or restored comes with its error."""
        batch = self.batch
        waiting: dict[object, list[tuple[int, Any, Picture]]] = {}  # by size; the first has waited longest
        waits = size = 0  # bytes of those, and of the largest of late
        reading: deque[tuple[int, Any, Future[Picture]]] = deque()
        begun: deque[Begun] = deque()
        broken: Exception | None = None
        with contextlib.ExitStack() as leaving:
            leaving.callback(self.leave)  # at last
            readers = leaving.enter_context(ThreadPoolExecutor(self.readers))
            leaving.callback(readers.shutdown, wait=False, cancel_futures=True)  # whoever stops early waits for no more
            while True:
                # a whole batch is read while one is restored
                most = max(2, min(self.readers + 2 * batch, MOST_BYTES // size)) if size else 2
                try:
                    while broken is None and len(reading) < most:
                        index, source = next(sources)
                        reading.append((index, source, readers.submit(self.read, source)))
                except StopIteration:
                    pass
                except Exception as error:  # of the caller's iterable; what it gave before comes first
                    broken = error
                if not reading:
                    break
                index, source, future = reading.popleft()
                try:
                    picture = future.result()
                except Exception as error:  # decoders raise many types; one file must not end the run
                    yield from self._finish(begun)
                    yield Restored(index, source, None, error)
                    continue
                size = max(picture.pixels.nbytes, size * 15 // 16, 1)
                waits += picture.pixels.nbytes
                together = waiting.setdefault(kind_of(picture), [])
                together.append((index, source, picture))
                full = len(together) == batch
                while full or waits > MOST_BYTES or sum(map(len, waiting.values())) > KINDS * batch:
                    together = waiting.pop(kind_of(picture) if full else next(iter(waiting)))
                    waits -= sum(each.pixels.nbytes for _, _, each in together)
                    yield from self._together(together, begun)
                    full = False
            for together in waiting.values():
                yield from self._together(together, begun)
            yield from self._finish(begun)
        if broken is not None:
            raise broken

    def _together(self, items: Items, begun: deque[Begun]) -> Iterator[Restored]:
        """Begin to restore pictures of one size; on a GPU they are finished when others have begun."""
        try:
            begun.append((items, self.begin([picture for _, _, picture in items])))
        except Exception as error:  # as above
            begun.append((items, partial(_raise, error)))
        yield from self._finish(begun, self.ahead)

    def _finish(self, begun: deque[Begun], keep: int = 0) -> Iterator[Restored]:
        """Give back all but the last ``keep``. Where some fail, each alone, so that none fails for another."""
        while len(begun) > keep:
            items, finish = begun.popleft()
            try:
                images = finish()
            except Exception as error:  # as above
                if len(items) == 1:
                    index, source, _ = items[0]
                    yield Restored(index, source, None, error)
                    continue
                for item in items:
                    alone: deque[Begun] = deque()
                    yield from self._together([item], alone)
                    yield from self._finish(alone)
                continue
            for (index, source, _), image in zip(items, images, strict=True):
                yield Restored(index, source, image, None)


def kind_of(picture: Picture) -> object:
    """Pictures of one kind can be restored together."""
    return picture.pixels.shape[1:], picture.pixels.dtype


def _raise(error: Exception) -> NoReturn:
    raise error
