"""``python -m benchmarks.million --photos DIR --out DIR``: a table of a million images, and what a search finds there.

A collection is made first (tar files of 64 x 64 crops, see `million_data`). ``bdg-fast fingerprints`` is then killed
with part of its table done, and goes on; its processor time, its memory along the way, and the size of the table are
told. Of the table: the images that are nearest, and what they have in common with what was searched for; copies that
were planted; all pairs within a distance, by the tree, with time and memory. ``--out`` is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bdg_fast.data.images import list_images
from bdg_fast.table import Table, nearest
from bdg_fast.table.search import Exact, Tree

from .gpu_report import write_json
from .million_data import BEFORE, CHANGES, COPY_EVERY, SIDE, Name, is_copy, make_collection

KILLED_AT = 0.4
"""Share of the table's files, when the first command is killed."""
SEEN_AT = (0.01, 0.1, 0.4, 0.7, 1.0)
"""Shares of the table's files, when memory is looked at."""
QUERIES, CANDIDATES = 4000, 50
THRESHOLDS = (0.01, 0.02, 0.03)
PACKAGES = ("torch", "numpy", "pillow", "scipy")


def resident(pid: int) -> tuple[float, float]:
    """Memory of a process now and at most so far, in MB; 0 of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    now, most = (int(found[name].split()[0]) / 1024 if name in found else 0.0 for name in ("VmRSS", "VmHWM"))
    return now, most


def done_of(table: Path, parts: int) -> float:
    """Share of a table's files that are there."""
    return len(list(table.glob("part-*"))) / parts if parts else 0.0


def run(command: Sequence[str], table: Path, parts: int, kill_at: float | None = None) -> dict[str, Any]:
    """A command to its end, or until it is killed with that share of the table's files done."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bdg_fast.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    memory: dict[str, float] = {}
    most = 0.0
    before = done_of(table, parts)
    ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    while not ended:
        # not the usage's: a process inherits the largest one of the process that started it
        now, peak = resident(process.pid)
        done, most = done_of(table, parts), max(most, peak)
        for share in SEEN_AT:
            if done >= share > before:
                memory.setdefault(str(share), now)
        if kill_at is not None and done >= kill_at:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.2)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    assert process.stdout is not None
    told = process.stdout.read()
    return {
        "command": " ".join(["bdg-fast", *command]),
        "exit_code": os.waitstatus_to_exitcode(status),
        "told": told.strip().splitlines()[-1:],
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "memory_most_mb": most,
        "memory_mb_at": memory,
    }


def alike(table: Table, names: Sequence[Name]) -> dict[str, Any]:
    """How often the nearest image of another photograph, and most of ten, are degraded in the same way."""
    chosen = some([row for row, name in enumerate(names) if not name.change])
    _, rows = nearest(table, rows_of(table, chosen), CANDIDATES, backend="tree")
    first, ten, all_ = 0, 0, 0
    by_kind: dict[str, list[bool]] = {}
    for own, near in zip(chosen, rows.tolist(), strict=True):
        others = [names[row].kind for row in near if names[row].photograph != names[own].photograph][:10]
        right = [kind == names[own].kind for kind in others]
        first, ten, all_ = first + sum(right[:1]), ten + sum(right), all_ + len(right)
        by_kind.setdefault(names[own].kind, []).append(bool(right and right[0]))
    kinds = {kind: sum(found) / len(found) for kind, found in sorted(by_kind.items())}
    return {"queries": len(chosen), "nearest": first / len(chosen), "of_ten": ten / all_, "nearest_by_kind": kinds}


def copies(table: Table, names: Sequence[Name]) -> dict[str, Any]:
    """How often a planted copy's original is the nearest image, or one of ten."""
    row_of = {name.number: row for row, name in enumerate(names)}
    chosen = some([row for row, name in enumerate(names) if name.change])
    _, rows = nearest(table, rows_of(table, chosen), 11, backend="tree")
    found: dict[str, list[int]] = {change: [] for change in CHANGES}
    for own, near in zip(chosen, rows.tolist(), strict=True):
        original = row_of[names[own].number - BEFORE]
        others = [row for row in near if row != own][:10]
        found[names[own].change or ""].append(others.index(original) if original in others else 10)
    return {
        change: {"copies": len(places), "nearest": share(places, 1), "of_ten": share(places, 10)}
        for change, places in found.items()
    }


def some(rows: Sequence[int]) -> list[int]:
    """At most `QUERIES` of them, at random: changes come in turn."""
    return sorted(random.Random(0).sample(rows, min(QUERIES, len(rows))))


def share(places: Sequence[int], below: int) -> float | None:
    return sum(place < below for place in places) / len(places) if places else None


def rows_of(table: Table, chosen: Sequence[int]) -> torch.Tensor:
    """Fingerprints of some rows, in ascending order."""
    found, begin = list[torch.Tensor](), 0
    wanted = torch.tensor(chosen)
    for vectors in table.vectors():
        inside = wanted[(wanted >= begin) & (wanted < begin + len(vectors))] - begin
        found.append(vectors[inside])
        begin += len(vectors)
    return torch.cat(found)


def backends(table: Table) -> dict[str, Any]:
    """Time of one search and of a thousand, by comparing all rows and by the tree, and whether they agree."""
    queries = rows_of(table, list(range(0, len(table), max(1, len(table) // 1000)))[:1000])
    told: dict[str, Any] = {}
    found = []
    for name, kind in (("exact", Exact), ("tree", Tree)):
        begin = time.perf_counter()
        index = kind(table)
        index.search(queries[:1], 10)
        one = time.perf_counter() - begin
        begin = time.perf_counter()
        found.append(index.search(queries, 10)[0])
        told[name] = {"seconds_of_one": one, "seconds_of_1000": time.perf_counter() - begin}
    return told | {"largest_difference": (found[0] - found[1]).abs().max().item()}


def pairs_of(path: Path, names: Sequence[Name]) -> dict[str, Any]:
    """What the pairs of a search are."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    same, planted = 0, set[int]()
    for line in lines:
        first, second = (Name.of(key) for key in line.split(",")[1:])
        same += first.photograph == second.photograph
        if second.change and second.number - first.number == BEFORE:
            planted.add(second.number)
    all_ = sum(name.change is not None for name in names)
    return {"pairs": len(lines), "of_one_photograph": same / max(1, len(lines)), "planted_found": len(planted) / all_}


def main() -> None:
    """Make, build, search, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photographs of 64 x 64 pixels and more")
    parser.add_argument("--out", type=Path, required=True, help="folder of the collection (5 GB), table, and figures")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--make-only", action="store_true", help="make the collection and stop")
    arguments = parser.parse_args()
    shards, folder, result = (arguments.out / name for name in ("shards", "table", "million.json"))
    photographs = list_images([arguments.photos])
    files = make_collection(shards, photographs, arguments.images)
    if arguments.make_only:
        return
    command = ["fingerprints", str(shards), "--output", str(folder), "--project"]
    parts = sum(1 + min(10_000, arguments.images - 10_000 * at) // 1000 for at in range(files))
    builds = json.loads(result.read_text(encoding="utf-8"))["builds"] if result.exists() else []
    if not builds:
        builds = [run(command, folder, parts, KILLED_AT), run(command, folder, parts)]
    table = Table(folder)
    names = [Name.of(key) for key in table.column("key", range(len(table)))]
    figures: dict[str, Any] = {
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "images": len(table),
        "side": SIDE,
        "photographs": len(photographs),
        "copies": sum(map(is_copy, range(arguments.images))) if COPY_EVERY else 0,
        "collection_mb": sum(path.stat().st_size for path in shards.iterdir()) / 1e6,
        "table_mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        "builds": builds,
    }
    figures |= {"backends": backends(table), "alike": alike(table, names), "copies_found": copies(table, names)}
    figures["pairs"] = {}
    for threshold in THRESHOLDS:
        output = arguments.out / f"pairs-{threshold}.csv"
        search = ["search", str(folder), "--duplicates", "--threshold", str(threshold), "--force"]
        told = run([*search, "--output", str(output)], folder, 0)
        figures["pairs"][str(threshold)] = told | pairs_of(output, names)
        write_json(result, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
