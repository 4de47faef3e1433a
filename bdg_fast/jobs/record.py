"""The output manifest of a job: a line an image, on disk as soon as the image is done, joined at the end.

``BASE.jsonl`` has the lines, ``BASE.json`` the settings and a summary; ``BASE.parts/`` what workers have written
meanwhile. Whatever is interrupted, the next command goes on from both.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdg_fast.files import held, write_atomically

Line = dict[str, Any]
"""Of an image: ``id``, ``path``, ``output`` (both from the manifest's folder), ``status`` (``done``, ``found`` there,
``failed``), ``bytes``, ``sha256``, ``seconds``, ``worker``, ``error``; ``again`` of what failed: a result is replaced.
"""
VERSION = 1
LOADED = "loaded"
"""A file of parts: there were workers that could begin."""
BEST = {"failed": 0, "found": 1, "done": 2}
"""Which line counts where a worker died and another tried again."""


class Record:
    """An output manifest.

    Args:
        base: its name without ``.jsonl``; the folder is made when the job begins.
    """

    def __init__(self, base: Path) -> None:
        self.folder = base.parent
        self.table = base.with_name(f"{base.name}.jsonl")
        self.state = base.with_name(f"{base.name}.json")
        self.parts = base.with_name(f"{base.name}.parts")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Have it for one job, where files can be locked.

        Raises:
            ValueError: another job is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder / f".{self.table.name}.lock") as mine:
            if not mine:
                raise ValueError(f"another job is at {self.table}: an output takes one at a time")
            yield

    def begin(self, command: str, settings: Mapping[str, Any], force: bool, pending: dict[str, Line]) -> None:
        """Make it this job's; join what an interrupted one left.

        Args:
            command, settings: what results depend on.
            force: whatever it is of; results that are there count for nothing, until they are made again.
            pending: lines of images whose results may be there, by id, for ``force``.

        Raises:
            ValueError: it has results of other settings or of another program, unless ``force`` is given.
        """
        content = {"version": VERSION, "command": command, "settings": json.loads(json.dumps(settings))}
        if self.state.is_file() and not force:
            self._compare(content)
        elif not force and (self.table.exists() or self.parts.exists()):
            raise ValueError(f"{self.state} is missing beside {self.table} or {self.parts}; --force makes them anew")
        results = not force and self._began()
        self.parts.mkdir(exist_ok=True)
        lines = self.lines()
        if force:
            lines = {name: old for name, line in lines.items() if (old := self._outdated(line)) is not None} | pending
        self._write(lines.values())
        for path in self.parts.iterdir():
            if path.suffix in (".jsonl", ".begun") or (force and path.name != LOADED):
                path.unlink()
        _write_json(self.state, content | {"results": results, "summary": None})
        (self.parts / LOADED).unlink(missing_ok=True)  # once the state tells of it

    def _compare(self, content: Mapping[str, Any]) -> None:
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            version, command, settings = (found[name] for name in ("version", "command", "settings"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.state} is no output manifest of bdg-fast: {error!r}; --force replaces it"
            ) from None
        if (version, command) != (content["version"], content["command"]):
            raise ValueError(f"{self.state} is of {command!r}, version {version}; --force makes it anew")
        if settings != content["settings"] and self._has_results():
            names = [name for name, value in content["settings"].items() if settings.get(name) != value]
            told = ", ".join(f"{name} {settings.get(name)!r}" for name in names)
            raise ValueError(f"{self.state} has other settings ({told}); --force makes it anew")

    def _has_results(self) -> bool:
        known = self.lines().values()
        return self._began() or any(x["status"] != "failed" or "again" in x for x in known)

    def _began(self) -> bool:
        """Whether workers of a run that was killed may have left results that no line tells of."""
        if (self.parts / LOADED).exists():
            return True
        return self.state.is_file() and bool(json.loads(self.state.read_text(encoding="utf-8")).get("results"))

    def _outdated(self, line: Line) -> Line | None:
        """What a line becomes whose result is of other settings; None if it keeps none, or its result is removed."""
        if "again" in line:
            return line
        if line["status"] == "failed" or line["output"].startswith(f"{self.parts.name}/"):
            return None
        told = {name: line[name] for name in ("id", "path", "output") if name in line}
        return told | {"status": "failed", "error": f"{line['output']}: from before --force", "again": True}

    def lines(self) -> dict[str, Line]:
        """By id, of the table and of parts that are not joined; of several the one that tells of success."""
        return _best((self.table, *_written(self.parts)))

    def join(self, kept: Mapping[str, Line], paths: Mapping[str, str]) -> list[Line]:
        """The lines of all images of a job, in order; the table then has them, and before them those of other jobs.

        Args:
            kept: of images that were done before.
            paths: of all images by id, as lines tell them.
        """
        before = {line["id"]: line for line in _read(self.table) if line["id"] not in paths}
        now, lines = lines_below(self.parts), []
        for name, path in paths.items():
            line = now.get(name) or kept.get(name)
            lines.append(line or {"id": name, "path": path, "status": "failed", "error": f"{path}: not reached"})
        self._write((*before.values(), *lines))
        return lines

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add a summary, and remove what is joined."""
        content = json.loads(self.state.read_text(encoding="utf-8"))
        _write_json(self.state, content | {"summary": dict(summary)})
        outputs = {line.get("output") for line in _read(self.table)}
        for path in self.parts.iterdir():
            if path.relative_to(self.folder).as_posix() not in outputs:
                path.unlink(missing_ok=True)
        if not any(self.parts.iterdir()):
            self.parts.rmdir()

    def _write(self, lines: Iterable[Line]) -> None:
        def write(file: Path) -> None:
            with open(file, "w", encoding="utf-8") as out:
                out.writelines(map(line_text, lines))

        write_atomically(self.table, write)


def line_text(line: Line) -> str:
    """A line as it stands in a file."""
    return json.dumps(line) + "\n"


def summary_of(
    lines: Sequence[Line], kept: Mapping[str, Line], seconds: float, workers: int, runner: str
) -> dict[str, Any]:
    """What a job came to: images by status, and how fast, altogether and by worker.

    Args:
        lines: of all images.
        kept: of those that were done before.
        seconds: from the start of the workers to the end of the last one.
        workers: how many there were.
        runner: ``local``, ``torchrun`` or ``ray``.
    """
    now = [line for line in lines if line["id"] not in kept]
    counts = {status: sum(line["status"] == status for line in now) for status in BEST}
    each: dict[str, dict[str, float]] = {}
    for line in now:
        if line["status"] == "done":
            one = each.setdefault(line["worker"], {"images": 0, "seconds": 0.0})
            one["images"] += 1
            one["seconds"] = round(one["seconds"] + line["seconds"], 4)
    for one in each.values():
        one["images_per_second"] = round(one["images"] / max(one["seconds"], 1e-9), 4)
    rate = counts["done"] / max(seconds, 1e-9)
    return {
        "runner": runner,
        "images": len(lines),
        "kept": len(kept),
        **counts,
        "seconds": round(seconds, 3),
        "images_per_second": round(rate, 4),
        "workers": workers,
        "images_per_second_and_worker": round(rate / max(workers, 1), 4),
        "by_worker": each,
    }


def lines_below(parts: Path, names: Container[str] | None = None) -> dict[str, Line]:
    """By id, what workers have written: of all images, or of some."""
    return _best(_written(parts), names)


def _written(parts: Path) -> list[Path]:
    return sorted(parts.glob("*.jsonl"))


def _best(files: Iterable[Path], names: Container[str] | None = None) -> dict[str, Line]:
    best: dict[str, Line] = {}
    for file in files:
        for line in _read(file):
            if names is not None and line["id"] not in names:
                continue
            known = best.get(line["id"])
            if known is None or BEST[line["status"]] >= BEST[known["status"]]:
                best[line["id"]] = line
    return best


def _read(path: Path) -> Iterator[Line]:
    """Its whole lines: the last one of a process that was killed may be none."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("id"), str) and line.get("status") in BEST:
                yield {sys.intern(name): value for name, value in line.items()}  # half of what lines take otherwise


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
