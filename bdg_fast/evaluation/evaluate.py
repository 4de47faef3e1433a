"""Methods on cases: networks, folders of results that others made, and the degraded input itself."""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..data.datasets import folder_at
from ..data.images import list_images
from ..files import about
from .cases import Case, Pair, pixels
from .measures import Measure
from .statistics import Summary, Value, summarize

INPUT = "input"
"""The method that restores nothing."""
READERS = 2
AHEAD = 4
"""Pairs that are read before they are needed."""


class Outcome(NamedTuple):
    """What a method made of a case: both images, uint8 ``[3, H, W]``, or the error."""

    case: Case
    restored: Tensor | None
    target: Tensor | None
    error: Exception | None


class Method(Protocol):
    """Something that restores."""

    @property
    def name(self) -> str:
        """Unique among those that are compared."""

    def results(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Of every case, in any order."""


class Row(NamedTuple):
    """Scores of one image by the measures' names; NaN where one could not be taken."""

    case: Case
    scores: dict[str, float]


def read_ahead(cases: Iterable[Case]) -> Iterator[tuple[Case, Pair | Exception]]:
    """The images of cases in turn, read in threads before they are asked for."""
    waiting: deque[tuple[Case, Future[Pair]]] = deque()
    rest = iter(cases)
    with ThreadPoolExecutor(READERS) as readers:
        try:
            while True:
                for case in rest:
                    waiting.append((case, readers.submit(case.read)))
                    if len(waiting) >= AHEAD:
                        break
                if not waiting:
                    return
                case, future = waiting.popleft()
                try:
                    pair: Pair | Exception = future.result()
                except Exception as error:  # decoders raise many types; one file must not end the run
                    pair = error
                yield case, pair
        finally:  # whoever stops early waits for no more
            readers.shutdown(wait=False, cancel_futures=True)


class Input:
    """The degraded images as they are."""

    name = INPUT

    def results(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """As :meth:`Method.results`."""
        for case, pair in read_ahead(cases):
            yield Outcome(case, None, None, pair) if isinstance(pair, Exception) else Outcome(case, *pair, None)


class Streams(Protocol):
    """What a `bdg_fast.Restorer` does."""

    def stream(self, images: Iterable[Any], *, batch: int = 1) -> Iterator[Any]:
        """Restore many."""


class Network:
    """A restorer.

    Args:
        name: to call it.
        open: makes the `bdg_fast.Restorer` when it is first needed, so that only one is held at a time.
        batch: most images of one size that are evaluated together.
    """

    def __init__(self, name: str, open: Callable[[], Streams], batch: int = 1) -> None:
        self.name, self._open, self._batch = name, open, batch
        self._opened: Streams | None = None

    def open(self) -> Streams:
        """The restorer; errors of making it are raised."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def close(self) -> None:
        """Let it go."""
        self._opened = None

    def results(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """As :meth:`Method.results`; errors of :meth:`open` are raised."""
        restorer = self.open()
        held: list[tuple[Case, Tensor | None]] = []
        broken: list[Outcome] = []

        def inputs() -> Iterator[Tensor]:
            for case, pair in read_ahead(cases):
                if isinstance(pair, Exception):
                    broken.append(Outcome(case, None, None, pair))
                    continue
                held.append((case, pair[1]))
                yield pair[0]

        for restored in restorer.stream(inputs(), batch=self._batch):
            case, target = held[restored.number]
            held[restored.number] = case, None
            while broken:
                yield broken.pop()
            yield Outcome(case, restored.image, target, restored.error)
        yield from broken


class Folder:
    """Results that others made, as image files.

    They are found by the name of the degraded file (extension aside), or else of the clean one: in the folder named
    after the test set, after the degradation, or in all of it.

    Args:
        name: to call it.
        root: the folder.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """

    def __init__(self, name: str, root: str | os.PathLike[str]) -> None:
        self.name, self.root = name, folder_at(root)
        self._tops = {entry.name.lower(): entry for entry in self.root.iterdir() if entry.is_dir()}
        self._indices: dict[Path, dict[str, list[Path]]] = {}
        self._index(self.root)

    def results(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """As :meth:`Method.results`."""
        for case, pair in read_ahead(cases):
            if isinstance(pair, Exception):
                yield Outcome(case, None, None, pair)
                continue
            try:
                yield Outcome(case, self._read(case, pair[1]), pair[1], None)
            except Exception as error:  # as when reading ahead
                yield Outcome(case, None, pair[1], error)

    def _read(self, case: Case, target: Tensor) -> Tensor:
        file = self._find(case)
        result = pixels(file)
        spare = [have - want for have, want in zip(result.shape[1:], target.shape[1:], strict=True)]
        if all(0 <= each < case.margin for each in spare):  # whole, where its clean image was cut
            top, left = (each // 2 for each in spare)
            result = result[:, top : top + target.shape[1], left : left + target.shape[2]].contiguous()
        if result.shape != target.shape:
            sizes = " but ".join(f"{each.shape[1]} x {each.shape[2]}" for each in (result, target))
            raise ValueError(f"{file}: has {sizes} pixels are due")
        return result

    def _find(self, case: Case) -> Path:
        places = [self._tops[key.lower()] for key in (case.set, case.kind) if key.lower() in self._tops]
        for place in (*places, self.root):
            index = self._index(place)
            for name in (case.name, Path(case.scene).with_suffix("").as_posix()):
                for called in (name, Path(name).name, Path(name).stem):
                    found = index.get(called, [])
                    if len(found) > 1:
                        raise ValueError(f"several results for it: {', '.join(map(str, found[:3]))}")
                    if found:
                        return found[0]
        raise FileNotFoundError(f"no result for it in {self.root}")

    def _index(self, place: Path) -> dict[str, list[Path]]:
        """Files by path without extension, and by name alone."""
        if place not in self._indices:
            index: dict[str, list[Path]] = defaultdict(list)
            for file in list_images([place]):
                below = file.relative_to(place).with_suffix("").as_posix()
                for name in dict.fromkeys((below, file.stem)):
                    index[name].append(file)
            self._indices[place] = index
        return self._indices[place]


Keep = Callable[[Case, Tensor, Tensor], None]
"""Told every restored image and its clean one, uint8 ``[3, H, W]``."""


def score(
    method: Method, cases: Sequence[Case], measures: Sequence[Measure], keep: Keep | None = None
) -> Iterator[tuple[Row | None, list[str]]]:
    """Scores of a method case by case, and what failed: a case without scores has None.

    Measures of folders are left out: see :func:`folder_scores`.
    """
    single = [(measure.name, measure.compute) for measure in measures if measure.compute is not None]
    for outcome in method.results(cases):
        case = outcome.case
        if outcome.error is not None or outcome.restored is None or outcome.target is None:
            yield None, [about(case.source, outcome.error)]
            continue
        restored, target = (each[None].float() / 255 for each in (outcome.restored, outcome.target))
        scores, failed = {}, []
        for name, compute in single:
            try:
                scores[name] = compute(restored, target)
            except Exception as error:  # pyiqa's raise many types, for images that are too small for one
                scores[name] = math.nan
                failed.append(f"{case.source}: {name}: {str(error) or type(error).__name__}")
        if keep is not None:
            keep(case, outcome.restored, outcome.target)
        yield Row(case, scores), failed


def values(rows: Sequence[Row], metric: str) -> list[Value]:
    """Of one measure, as :func:`bdg_fast.evaluation.statistics.summarize` takes them."""
    return [
        Value(row.case.kind, row.case.set, row.case.pool, row.case.scene, row.case.counted, row.scores[metric])
        for row in rows
        if metric in row.scores
    ]


Folders = dict[tuple[str, str, bool], tuple[Path, Path, int]]
"""By degradation, set and whether it counts: restored images, clean ones, and how many there are."""


def folder_scores(measure: Measure, folders: Folders) -> list[Summary]:
    """Of a measure of folders: sets, means of degradations over sets, the mean over degradations; no intervals."""
    assert measure.folders is not None
    found = summarize(
        [
            Value(kind, name, f"{kind}/{name}", "", counted, measure.folders(restored, clean))
            for (kind, name, counted), (restored, clean, _) in folders.items()
        ]
    )
    counts = {(kind, name, counted): count for (kind, name, counted), (_, _, count) in folders.items()}

    def images(one: Summary) -> int:
        if one.level == "mean":
            return sum(count for (_, _, counted), count in counts.items() if counted)
        return sum(count for (kind, name, _), count in counts.items() if kind == one.kind and one.set in ("", name))

    return [one._replace(images=images(one)) for one in found]


def differences(before: Sequence[Row], after: Sequence[Row], metric: str) -> list[tuple[Case, float]]:
    """``after`` minus ``before`` of each image that both have a score of."""
    known = {row.case.key: row.scores.get(metric, math.nan) for row in before}
    pairs = [(row.case, row.scores.get(metric, math.nan) - known.get(row.case.key, math.nan)) for row in after]
    return [(case, value) for case, value in pairs if math.isfinite(value)]


def paired_summaries(found: Sequence[tuple[Case, float]], seed: int = 0) -> list[Summary]:
    """Means of differences, with paired intervals."""
    return summarize([Value(case.kind, case.set, case.pool, case.scene, case.counted, x) for case, x in found], seed)
