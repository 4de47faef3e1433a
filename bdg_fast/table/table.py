"""Reading a table, a part at a time."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from .build import read_manifest
from .describe import Settings
from .parts import read_column, require_pyarrow

COLUMNS, ANALYSED = ("key", "width", "height"), ("kind", "level", "confidence")
"""Of all tables, and of those with an analysis."""


class Table:
    """A finished table; ``len`` is its number of rows, which are in the order of the inputs.

    Args:
        folder: that :func:`bdg_fast.table.build` made.

    Attributes:
        settings: of its rows.

    Raises:
        FileNotFoundError: no table. ValueError: it is not finished. ImportError: Parquet without pyarrow.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest["parts"] is None:
            raise ValueError(f"{self.folder} is not finished: the command that makes it goes on where it stopped")
        self.settings = Settings(**manifest["settings"])
        if self.settings.format == "parquet":
            require_pyarrow()
        self._files = [self.folder / part["file"] for part in manifest["parts"]]
        self._ends = list(accumulate(part["rows"] for part in manifest["parts"]))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def vectors(self) -> Iterator[Tensor]:
        """Fingerprints, float32 ``[n, D]``, of each part."""
        for path in self._files:
            vectors: Tensor = read_column(path, "fingerprint")
            if len(vectors):
                yield vectors

    def column(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Some values of a column.

        Args:
            name: ``key``, ``width``, ``height``, and where they are ``kind``, ``level``, ``confidence``.
            rows: their numbers, in any order; each part is read once.

        Raises:
            ValueError: a name that the table has not. IndexError: a number that is none of a row.
        """
        known = (*COLUMNS, *(ANALYSED if self.settings.analyse else ()))
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"rows must be in 0..{len(self) - 1}, got {row}")
        by_part: dict[int, list[int]] = {}
        for row in rows:
            by_part.setdefault(bisect_right(self._ends, row), []).append(row)
        found: dict[int, Any] = {}
        for part, members in by_part.items():
            values = read_column(self._files[part], name)
            begin = self._ends[part - 1] if part else 0
            found |= {row: values[row - begin] for row in members}
        return [value.item() if isinstance(value := found[row], Tensor) else value for row in rows]
