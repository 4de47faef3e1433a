"""Lists of images: JSON Lines, CSV or Parquet with a column ``path``, perhaps ``id`` and ``output``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".csv", ".parquet")
COLUMNS = ("path", "id", "output")


class Entry(NamedTuple):
    """An image of a manifest.

    Fields:
        path: of its file; a relative one begins at the manifest's folder.
        id: what it is called, no two alike; by default ``path`` as it stands there.
        output: where its result goes, if that is told.
        place: of its row, ``line 3`` for example.
    """

    path: Path
    id: str
    output: str | None
    place: str = ""


def read_manifest(path: Path) -> list[Entry]:
    """The images of a manifest, in its order. Other columns are for others.

    Raises:
        FileNotFoundError: there is none. ImportError: Parquet without pyarrow.
        ValueError: it is of another type, damaged or empty, a row has no path, or two have one id; says where.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a manifest must end in {' or '.join(SUFFIXES)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no such manifest: {path}")
    rows = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()](path)
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for place, row in rows:
        entry = _entry(path, place, row)
        if entry.id in places:
            raise ValueError(f"{path}, {place}: {entry.id!r} is there already, in {places[entry.id]}; ids must differ")
        places[entry.id] = place
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path} names no image")
    return entries


def _entry(manifest: Path, place: str, row: dict[str, Any]) -> Entry:
    found: dict[str, str | None] = {}
    for name in COLUMNS:
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and name == "id":
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{manifest}, {place}: {name} must be a text, got {value!r}")
        if value and "\0" in value:  # no file can be called so
            raise ValueError(f"{manifest}, {place}: {name} must have no zero byte, got {value!r}")
        found[name] = value or None
    path = found["path"]
    if path is None:
        raise ValueError(f"{manifest}, {place}: has no path")
    return Entry(manifest.parent / path, found["id"] or path, found["output"], place)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number}: must be like {{"path": "a.png"}}, got {line.strip()[:60]}')
        yield f"line {number}", row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_text_of(path))
    try:
        _known(path, reader.fieldnames or ())
        yield from ((f"line {reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: is no CSV: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow.parquet  # optional
    except ImportError as error:
        raise ImportError("manifests in Parquet need pyarrow: pip install 'bdg-fast[table]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _known(path, file.schema_arrow.names)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        rows = (row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error


def _known(path: Path, names: Iterable[str]) -> None:
    if "path" not in names:
        raise ValueError(f"{path} must have a column path, got {', '.join(names) or 'none'}")


def _text_of(path: Path) -> Iterator[str]:
    # bytes of a file name that is not UTF-8 stay what they are; programs for tables begin a file with a mark
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield from lines
