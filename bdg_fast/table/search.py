"""Nearest rows of a table: exactly, part by part or by a tree of scipy's; or by an approximate index of faiss's.

A tree passes over most rows where they have few numbers, and less of them the smaller the distance that is asked for.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .parts import required
from .table import Table

BACKENDS = ("auto", "exact", "tree", "faiss")
EXACT = 1e9
"""Pairs of rows up to which ``"auto"`` compares all: on one core 20 seconds for 33 coordinates, 8 minutes for 2048."""
TREE = 1e8
"""Pairs from which on ``"auto"`` takes a tree, if rows are projected."""
BLOCK = 4096
"""Rows that are searched for at a time."""
LINKS, EFFORT_BUILD, EFFORT = 32, 100, 128
"""Of the graph (HNSW): neighbours of a node, and how many candidates are held while it is built and searched."""


class Index(Protocol):
    """What finds nearest rows."""

    def search(self, queries: Tensor, count: int, within: float = math.inf) -> tuple[Tensor, Tensor]:
        """Distances float32 and numbers int64 of the nearest rows of ``queries [Q, D]``, ``[Q, count]``, ascending.

        A row that was not found has distance infinity and number -1. Rows further away than ``within`` need not be
        looked for.
        """


class Exact:
    """Compares with every row, in float64, holding one part of the table at a time."""

    def __init__(self, table: Table) -> None:
        self._table = table

    @torch.no_grad()
    def search(self, queries: Tensor, count: int, within: float = math.inf) -> tuple[Tensor, Tensor]:
        """As :meth:`Index.search`."""
        best = torch.full((len(queries), count), torch.inf, dtype=torch.float64)
        rows = torch.full((len(queries), count), -1)
        begin = 0
        for part in (part for vectors in self._table.vectors() for part in torch.split(vectors, BLOCK)):
            for block in torch.split(torch.arange(len(queries)), BLOCK):
                squares = _squares(queries[block].double(), part.double())
                numbers = torch.arange(begin, begin + len(part)).expand(len(block), -1)
                best[block], order = torch.cat((best[block], squares), 1).topk(count, 1, largest=False)
                rows[block] = torch.cat((rows[block], numbers), 1).gather(1, order)
            begin += len(part)
        return best.sqrt().float(), rows


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances of ``[Q, D]`` and ``[n, D]``, ``[Q, n]``; 0 where they are no more than the rounding."""
    norms = one.square().sum(1, keepdim=True) + other.square().sum(1)
    squares = norms - 2 * one @ other.T
    return squares.masked_fill_(squares < 8 * torch.finfo(norms.dtype).eps * norms, 0)


class Tree:
    """A k-d tree (scipy) of all rows in memory, in float64: as exact as comparing with every row."""

    def __init__(self, table: Table) -> None:
        spatial = required("scipy.spatial", "backend 'tree'", "scipy")
        rows: Any = None
        begin = 0
        for vectors in table.vectors():
            if rows is None:
                rows = np.empty((len(table), vectors.shape[1]))
            rows[begin : begin + len(vectors)] = vectors.numpy()
            begin += len(vectors)
        self._tree = spatial.cKDTree(rows, copy_data=False)

    def search(self, queries: Tensor, count: int, within: float = math.inf) -> tuple[Tensor, Tensor]:
        """As :meth:`Index.search`."""
        distances, rows = self._tree.query(
            queries.double().numpy(),
            k=range(1, count + 1),  # as a number, 1 would give no second dimension
            distance_upper_bound=within * (1 + 1e-6) + 1e-30,  # itself not within, and squared it is 0 no more
            workers=torch.get_num_threads(),
        )
        found = torch.from_numpy(distances).float()
        return found, torch.from_numpy(rows).masked_fill_(found.isinf(), -1)


class Faiss:
    """A graph of neighbours (HNSW) in memory: of every row its vector in 16 bits, and 256 bytes of links."""

    def __init__(self, table: Table) -> None:
        faiss = required("faiss", "backend 'faiss'", "faiss-cpu")
        self._index: Any = None
        for vectors in table.vectors():
            if self._index is None:
                wide = vectors.shape[1]
                if table.settings.dtype == "float32":
                    self._index = faiss.IndexHNSWFlat(wide, LINKS)
                else:
                    self._index = faiss.IndexHNSWSQ(wide, faiss.ScalarQuantizer.QT_fp16, LINKS)
                    self._index.train(vectors.numpy())  # nothing is learned for 16 bits, but it insists
                self._index.hnsw.efConstruction = EFFORT_BUILD
            self._index.add(vectors.contiguous().numpy())

    def search(self, queries: Tensor, count: int, within: float = math.inf) -> tuple[Tensor, Tensor]:
        """As :meth:`Index.search`."""
        self._index.hnsw.efSearch = max(EFFORT, count)
        squares, rows = self._index.search(queries.float().contiguous().numpy(), count)
        numbers = torch.from_numpy(rows)
        distances = torch.from_numpy(squares).clamp_min(0).sqrt()
        return torch.where(numbers < 0, torch.inf, distances), numbers


def index_of(table: Table, backend: str = "auto", queries: int = 1) -> Index:
    """What searches a table.

    Args:
        table: with a row at least.
        backend: ``"exact"`` (every row is compared), ``"tree"`` (exact too), ``"faiss"`` (approximate), or ``"auto"``:
            a tree from `TREE` pairs on of projected rows, faiss from `EXACT` pairs on of others, where those are
            installed.
        queries: how many rows are going to be searched for.

    Raises:
        ValueError: another backend, or an empty table. ImportError: what was asked for needs a package that is not
            there.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not len(table):
        raise ValueError(f"{table.folder} has no rows")
    if backend == "auto":
        pairs = len(table) * queries
        if pairs > TREE and table.settings.project and importlib.util.find_spec("scipy") is not None:
            backend = "tree"
        elif pairs > EXACT and importlib.util.find_spec("faiss") is not None:
            backend = "faiss"
    kinds: dict[str, type[Tree | Faiss]] = {"tree": Tree, "faiss": Faiss}
    return kinds.get(backend, Exact)(table)


def nearest(table: Table, queries: Tensor, count: int = 10, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The rows that are nearest to some fingerprints.

    Args:
        table: searched.
        queries: ``[Q, D]``, as :class:`bdg_fast.table.Describer` gives them with the table's settings.
        count: of rows for each; fewer if the table has fewer.
        backend: see :func:`index_of`.

    Returns:
        Euclidean distances, float32 ``[Q, count]``, ascending, and numbers of rows, int64. What an approximate index
        did not find has distance infinity and number -1.

    Raises:
        ValueError: ``count`` below 1, queries of another shape, or not finite; as :func:`index_of`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not len(table):
        raise ValueError(f"{table.folder} has no rows")
    width = next(table.vectors()).shape[1]
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries must have shape [Q, {width}], got {list(queries.shape)}")
    if not bool(queries.isfinite().all()):
        raise ValueError("queries must be finite, got NaN or infinity")
    return index_of(table, backend, len(queries)).search(queries, min(count, len(table)))


class Pair(NamedTuple):
    """Two rows, ``first`` < ``second``."""

    distance: float
    first: int
    second: int


def duplicates(table: Table, threshold: float, count: int = 10, *, backend: str = "auto") -> list[Pair]:
    """Pairs of rows that are near each other, nearest first; some 400 bytes each (:func:`near_pairs`: 20).

    Args:
        table: searched.
        threshold: largest distance.
        count: of the nearest neighbours that are looked at for each row, at most.
        backend: see :func:`index_of`.

    Raises:
        ValueError: ``threshold`` below 0, ``count`` below 1; as :func:`index_of`.
    """
    distances, rows = near_pairs(table, threshold, count, backend=backend)
    return [Pair(distance, *pair) for distance, pair in zip(distances.tolist(), rows.tolist(), strict=True)]


def near_pairs(table: Table, threshold: float, count: int = 10, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """:func:`duplicates` as distances float32 ``[P]`` and numbers of rows int64 ``[P, 2]``: there may be millions."""
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    index = index_of(table, backend, len(table))
    keys, distances = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    total, begin = len(table), 0
    for queries in _blocks(table):
        near, rows = index.search(queries, min(count + 1, total), threshold)  # one of them is the row itself
        own = torch.arange(begin, begin + len(queries))[:, None].expand_as(rows)
        chosen = (near <= threshold) & (rows >= 0) & (rows != own)
        keys.append(torch.minimum(rows, own)[chosen] * total + torch.maximum(rows, own)[chosen])
        distances.append(near[chosen])
        begin += len(queries)
    found, which = np.unique(torch.cat(keys).numpy(), return_inverse=True)
    least = np.full(len(found), np.inf, np.float32)
    np.minimum.at(least, which, torch.cat(distances).numpy())  # seen from either side it may differ in the last bit
    order = least.argsort(kind="stable")
    pairs = np.stack(np.divmod(found[order], total), 1)
    return torch.from_numpy(least[order]), torch.from_numpy(pairs)


def _blocks(table: Table) -> Iterator[Tensor]:
    """Fingerprints of some parts together, `BLOCK` rows at a time: the table is read as seldom as that allows."""
    held = torch.empty(0)
    for vectors in table.vectors():
        held = torch.cat([held, vectors]) if len(held) else vectors
        while len(held) >= BLOCK:
            yield held[:BLOCK]
            held = held[BLOCK:]
    if len(held):
        yield held
