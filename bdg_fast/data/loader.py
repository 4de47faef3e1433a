"""Batches of training, read ahead in threads, always in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from typing import NamedTuple

import torch
from torch import Tensor

from .datasets import Dataset, Result, Sample, SampleError, Stream, Task
from .order import Order

ATTEMPTS = 16
"""Images that are tried for one sample."""
AHEAD = 2
"""Batches that are read while one is used."""
FEW = 100
"""Images that a stream has at least, as far as :attr:`Skipped.share` goes."""


class Batch(NamedTuple):
    """Samples of one step, on the CPU.

    Fields:
        clean: uint8 ``[B, 3, crop, crop]``.
        degraded: the same; None where the data set has none.
        kinds: int64 ``[B]``, indices of the data set's ``kinds``; -1 unknown.
        seeds: int64 ``[B]``, one a sample, for degradations and noise.
        numbers: int64 ``[B]``, which images of the data set.
    """

    clean: Tensor
    degraded: Tensor | None
    kinds: Tensor
    seeds: Tensor
    numbers: Tensor


class TooManySkipped(RuntimeError):
    """So much of a data set cannot be read that going on would hide it."""


@dataclass
class Skipped:
    """What could not be read, counted as batches are taken.

    Attributes:
        share: of a data set's images that may be unreadable, in 0..1; one file always may.
        reasons: what is wrong, by file.
        count: reads that failed; a file counts each time it comes up.
    """

    share: float = 0.1
    reasons: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in 0..1, got {self.share}")

    def add(self, error: SampleError, images: int) -> None:
        """Count one failure, of a data set of so many images.

        Raises:
            TooManySkipped: more than :attr:`share` of them have failed.
        """
        self.count += 1
        self.reasons.setdefault(error.file, error.reason)
        if len(self.reasons) > max(1, self.share * images):
            raise TooManySkipped(
                f"{len(self.reasons)} files of a data set of {images} cannot be read, more than the share of "
                f"{self.share:g}; the last: {error}"
            ) from error


def batches(
    dataset: Dataset | Stream,
    order: Order,
    *,
    batch: int,
    crop: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 4,
    skipped: Skipped | None = None,
) -> Iterator[Batch]:
    """Endless batches of a data set.

    The ``i``-th sample of a rank stands at position ``start + rank + i * world`` of the run, so all ranks' batches
    together are those of one rank with a batch of ``batch * world``, and a run resumes with
    ``start = steps * batch * world``. Everything follows from the order and the positions, whatever threads do.

    An image that cannot be read is replaced by one of the order's reserve, chosen by the position alone, so that ranks
    stay in step and a resumed run sees the same.

    Args:
        dataset: images, or a stream of them (:class:`~bdg_fast.data.shards.ShardFolder`).
        order: of ``len(dataset)``.
        batch: samples of one batch, on this rank.
        crop: side of the crops.
        rank, world: this process among how many.
        start: position of the first sample, over all ranks.
        workers: threads that read ahead, :data:`AHEAD` batches at most; 0 reads when asked. Closing the iterator ends
            them.
        skipped: where unreadable files are named and counted; None: the first is an error.

    Raises:
        TypeError, ValueError: an argument that is no integer or out of range, or an order of another count.
        SampleError, TooManySkipped: while iterating, as ``skipped`` says, or if :data:`ATTEMPTS` images in turn fail
            (all there are, if fewer).
    """
    for name, value, least in (
        ("batch", batch, 1),
        ("crop", crop, 1),
        ("world", world, 1),
        ("start", start, 0),
        ("workers", workers, 0),
    ):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
    if order.count != len(dataset):
        raise ValueError(f"order must be of the data set's {len(dataset)}, got one of {order.count}")
    if isinstance(dataset, Stream):
        tasks = dataset.tasks(order, crop=crop, rank=rank, world=world, start=start)
    else:
        tasks = _tasks(dataset, order, crop, rank, world, start)
    return _collated(tasks, dataset, batch, workers, skipped)


def _tasks(dataset: Dataset, order: Order, crop: int, rank: int, world: int, start: int) -> Iterator[Task]:
    for position in count(start + rank, world):
        yield partial(_read, dataset, order, position, crop)


def _read(dataset: Dataset, order: Order, position: int, crop: int) -> Result:
    """The sample at a position, of the first readable image of its own and its reserve."""
    seed, own = order.seed_of(position), order.number(position)
    reserve = (order.reserve(position, attempt) for attempt in range(min(ATTEMPTS, order.count)))
    errors: list[SampleError] = []
    for number in chain([own], (other for other in reserve if other != own)):
        try:
            return dataset.read(number, seed, crop), errors
        except SampleError as error:
            errors.append(error)
    return None, errors


def _collated(
    tasks: Iterator[Task], dataset: Dataset | Stream, batch: int, workers: int, skipped: Skipped | None
) -> Iterator[Batch]:
    """Results in the tasks' order; failures count when their batch is taken."""
    reading = _read_ahead(tasks, batch, workers) if workers else (task() for task in tasks)
    taken = 0
    try:
        while True:
            samples: list[Sample] = []
            for sample, errors in islice(reading, batch):
                taken += 1
                for error in errors:
                    if skipped is None:
                        raise error
                    # nobody knows how many images a stream has
                    skipped.add(error, max(taken, FEW) if isinstance(dataset, Stream) else len(dataset))
                if sample is None:
                    raise TooManySkipped(f"{len(errors)} files in turn cannot be read; the last: {errors[-1]}")
                samples.append(sample)
            yield stacked(samples)
    finally:
        reading.close()


def _read_ahead(tasks: Iterator[Task], batch: int, workers: int) -> Generator[Result, None, None]:
    """Results of the tasks in their order; threads read, and one more gets tasks (a stream reads its files there)."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, "bdg-feed") as feeder, ThreadPoolExecutor(workers, "bdg-read") as pool:
        feed = feeder.submit(_take, tasks, batch)
        try:
            while True:
                while len(waiting) <= AHEAD * batch:
                    waiting.extend(map(pool.submit, feed.result()))
                    feed = feeder.submit(_take, tasks, batch)
                yield waiting.popleft().result()
        finally:
            feed.cancel()
            for future in waiting:
                future.cancel()


def _take(tasks: Iterator[Task], count: int) -> list[Task]:
    return list(islice(tasks, count))


def stacked(samples: list[Sample]) -> Batch:
    """One batch of them all."""
    degraded = [sample.degraded for sample in samples if sample.degraded is not None]
    return Batch(
        torch.stack([sample.clean for sample in samples]),
        torch.stack(degraded) if degraded else None,
        torch.tensor([sample.kind for sample in samples]),
        torch.tensor([sample.seed for sample in samples]),
        torch.tensor([sample.number for sample in samples]),
    )
