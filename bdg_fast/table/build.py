"""Making a table: parts that appear whole or not at all, by any number of processes, interrupted at any time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bdg_fast.files import about, write_atomically

from .describe import Describer, Row, Settings
from .parts import read_note, require_pyarrow, write_part
from .sources import Item, parts_of

MANIFEST = "_manifest.json"
"""By its underscore no part of a Parquet data set, which other programs may take the folder for."""
VERSION = 1
"""Of the layout."""


@dataclass
class Built:
    """What a process did.

    Attributes:
        rows: of its parts, also of an earlier run's.
        kept: rows that an earlier run had made.
        failures: messages that name images that failed, in this run or an earlier one.
        complete: whether the table is: all processes are done.
        differing: numbers of processes whose last run saw other files, or had other settings, than this one.
    """

    rows: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    complete: bool = False
    differing: list[int] = field(default_factory=list)


def build(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    index: Path | None = None,
    force: bool = False,
    progress: Callable[[int], object] = lambda images: None,
) -> Built:
    """Make a table of images, or go on with it: parts of the same images are kept, failed images are tried again.

    Memory does not grow with the number of images (but with that of one folder's names, and of those that fail). The
    same images and settings give the same files, whether or not the run was interrupted, and in however many processes.

    Args:
        inputs: see :func:`bdg_fast.table.sources.parts_of`.
        output: folder of the table; it is made.
        settings: of the rows; None: the defaults.
        shard: number of this process, and how many there are. All get the same other arguments; whichever ends last
            completes the table.
        index: of the analysis, if not the one that comes along.
        force: make all parts anew, of whatever settings the table was.
        progress: called with numbers of images that are done.

    Raises:
        FileNotFoundError: an input matches nothing, or there is no image. FileExistsError: ``output`` has other files.
        ValueError: the table has other settings, or ``shard`` is none. ImportError: Parquet without pyarrow.
    """
    rank, world = shard
    if not 0 <= rank < world:
        raise ValueError(f"shard must be a number below how many there are, got {rank} of {world}")
    if (settings or Settings()).format == "parquet":
        require_pyarrow()
    describe = Describer(settings or Settings(), index)
    made_of = _digest_of(json.dumps(describe.settings.as_dict()))
    whole = hashlib.blake2b(made_of.encode(), digest_size=16)  # and of what all shares see
    parts = parts_of(
        [os.fspath(given) for given in inputs],
        describe.settings.per_part,
        rank,
        world,
        lambda path: whole.update(os.fsencode(path) + b"\0"),
    )
    folder = Path(output)
    _begin(folder, describe.settings, force)
    _record(folder, rank, world).unlink(missing_ok=True)
    built, record = Built(), list[dict[str, Any]]()
    for name, items in parts:
        path = folder / f"{name}.{describe.settings.format}"
        names = {"settings": made_of, "images": _digest_of("\0".join(item.key for item in items))}
        note = None if force else _kept(path, items, names, describe)
        if note is None:
            note = _make(path, items, names, describe, progress)
        else:
            built.kept += note["rows"]
            progress(len(items))
        built.rows += note["rows"]
        built.failures += [message for _, message in note["failures"]]
        record.append({"file": path.name, "rows": note["rows"], "failed": len(note["failures"])})
    if not record and world == 1:
        raise FileNotFoundError(f"no image in {', '.join(str(given) for given in inputs)}")
    built.complete, built.differing = _finish(folder, rank, world, {"of": whole.hexdigest(), "parts": record})
    return built


def _begin(folder: Path, settings: Settings, force: bool) -> None:
    """Claim the folder; until it is complete the manifest has no parts."""
    manifest = folder / MANIFEST
    content = {"version": VERSION, "settings": settings.as_dict(), "parts": None}
    folder.mkdir(exist_ok=True)
    if manifest.is_file():
        found = read_manifest(folder)["settings"]
        if found != content["settings"] and not force:
            names = [name for name, value in settings.as_dict().items() if found.get(name) != value]
            told = ", ".join(f"{name} {found.get(name)!r}" for name in names)
            raise ValueError(f"{folder} has other settings ({told}); --force makes it anew")
    elif any(not path.name.startswith(".") and path.name != MANIFEST for path in folder.iterdir()):
        raise FileExistsError(f"{folder} is no table of fingerprints, and not empty")
    _write_json(manifest, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What stands in it.

    Raises:
        FileNotFoundError: none. ValueError: of another program or version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no table of fingerprints: it has no {MANIFEST}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["version"], content["settings"], content["parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of a table of fingerprints: {error}") from error
    if found[0] != VERSION:
        raise ValueError(f"{path} must have version {VERSION}, got {found[0]!r}")
    return dict(content)


def _kept(path: Path, items: list[Item], names: Mapping[str, str], describe: Describer) -> Any:
    """The note of a part that is there, is of these images and settings, and of whose failures none can be read now."""
    try:
        note = read_note(path) if path.is_file() else None
    except ValueError:  # damaged: made again
        return None
    if note is None or any(note.get(name) != value for name, value in names.items()):
        return None
    failed = {key for key, _ in note["failures"]}
    return None if any(isinstance(_described(item, describe), Row) for item in items if item.key in failed) else note


def _make(
    path: Path, items: list[Item], names: Mapping[str, str], describe: Describer, progress: Callable[[int], object]
) -> Any:
    keys, rows, failures = list[str](), list[Row](), list[tuple[str, str]]()
    for item in items:
        found = _described(item, describe)
        if isinstance(found, Row):
            keys.append(_text(item.key))
            rows.append(found)
        else:
            failures.append((item.key, found))
        progress(1)
    note = {**names, "rows": len(rows), "failures": failures}
    write_atomically(path, lambda file: write_part(file, keys, rows, describe.width, describe.settings, note))
    return note


def _described(item: Item, describe: Describer) -> Row | str:
    """The row of an image, or what is wrong with it."""
    try:
        return describe(item.read())
    except Exception as error:  # decoders raise many types; one file must not end the run
        return about(item.key, error)


def _digest_of(text: str) -> str:
    """Tells settings, and lists of names, apart."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _text(key: str) -> str:
    r"""Bytes of a file name that are not UTF-8 as ``\xNN``: files of tables hold text alone."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _finish(folder: Path, rank: int, world: int, record: dict[str, Any]) -> tuple[bool, list[int]]:
    """Leave a record; whoever finds those of all others, of the same settings and files, completes the table.

    Returns:
        Whether it is complete, and whose records are of others.
    """
    paths = [_record(folder, number, world) for number in range(world)]
    _write_json(paths[rank], record)
    records = [_read_record(path) for path in paths]
    if any(other.get("of") != record["of"] for other in records):
        return False, [n for n, other in enumerate(records) if other and other.get("of") != record["of"]]
    parts = sorted((part for other in records for part in other["parts"]), key=lambda part: str(part["file"]))
    names = {part["file"] for part in parts} | {path.name for path in paths}
    # of inputs that were, of another format or number of processes; with several, a .bdg- file may be another's in work
    for pattern in ("part-*", ".shard-*") + ((".bdg-*",) if world == 1 else ()):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)
    content = read_manifest(folder)
    _write_json(folder / MANIFEST, content | {"parts": parts})
    return True, []


def _record(folder: Path, rank: int, world: int) -> Path:
    """What a process leaves when it is done: its parts."""
    return folder / f".shard-{rank}-of-{world}.json"


def _read_record(path: Path) -> dict[str, Any]:
    """Empty if there is none, or one of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
