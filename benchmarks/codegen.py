"""Compile every kernel for several GPUs without one, and report what the compiler made of it.

    python -m benchmarks.codegen            # the table
    python -m benchmarks.codegen --json -   # the same as JSON, for the tests
    python -m benchmarks.codegen --record   # make what is above its budget the new budget

Counted per kernel: registers and spilled bytes or registers of a thread, shared memory of a block, and the
instructions of the counting loop per update (one update = one pixel of one offset), over all threads, of bins also
those to clear and write or add one; for kernels that prepare (``levels`` and ``order``), all their instructions per
pixel; of ``combine``, all of a program per cell and use; for those that touch each pixel once (``step`` and
``forward``), all their instructions per element.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from . import codegen_glcm, codegen_pixels
from .codegen_tools import TARGETS


def _measure(task: tuple[str, int]) -> list[dict[str, Any]]:
    target, n = task
    glcm = codegen_glcm.variants(target)
    if n < len(glcm):
        return glcm[n].measure(target)
    return [codegen_pixels.measure(target, codegen_pixels.VARIANTS[n - len(glcm)])]


SHARING = ("sm_80", "sm_100")
"""Targets that share the variants if asked: ``sm_90``, between them, has all."""


def table(targets: list[str], shared: bool = False) -> list[dict[str, Any]]:
    """All kernels and variants for ``targets``, on all processors; ``shared``: `SHARING` take turns with the variants
    of a kernel."""
    tasks = []
    for target in targets:
        seen: Counter[str] = Counter()
        for n, variant in enumerate([*codegen_glcm.variants(target), *codegen_pixels.VARIANTS]):
            if not shared or target not in SHARING or seen[variant.kernel] % 2 == SHARING.index(target):
                tasks.append((target, n))
            seen[variant.kernel] += 1
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        return [row for rows in pool.map(_measure, tasks) for row in rows]


BUDGETS = Path(__file__).with_name("codegen_budgets.json")
MARGIN = 1.1
"""Releases of a compiler differ by a few percent."""


def _key(row: dict[str, Any]) -> str:
    return f"{row['target']} {row['kernel']} {row['variant']}"


def over_budget(rows: list[dict[str, Any]]) -> list[str]:
    """What exceeds the recorded budgets by more than `MARGIN`, or spills at all; one line for each row."""
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8"))
    messages = []
    for row in rows:
        budget = budgets.get(_key(row))
        if budget is None:
            messages.append(f"{_key(row)}: no recorded budget")
            continue
        excess = [f"{key} {row[key]} > {most}" for key, most in budget.items() if row[key] > most * MARGIN]
        excess += [f"spills {row['spills']}"] if row["spills"] else []
        if excess:
            messages.append(f"{_key(row)}: {', '.join(excess)}")
    return messages


def record(rows: list[dict[str, Any]]) -> None:
    """Raise the budgets to ``rows`` where these are above, so that they hold for several compilers."""
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    for row in rows:
        old = budgets.get(_key(row), {})
        keys = [
            key for key in ("registers", "shared", "instructions_per_update", "bin_written", "bin_added") if key in row
        ]
        budgets[_key(row)] = {key: max(row[key], old.get(key, 0)) for key in keys}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(budgets.items()))
    BUDGETS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def main() -> int:
    """Print the table, or write JSON; exit code 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--shared", action="store_true", help=f"a variant for one of {' and '.join(SHARING)} alone")
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE, or to standard output with -")
    parser.add_argument("--record", action="store_true", help=f"raise the budgets in {BUDGETS.name}")
    arguments = parser.parse_args()
    rows = table(arguments.targets, arguments.shared)
    if arguments.record:
        record(rows)
    messages = {target: over_budget([row for row in rows if row["target"] == target]) for target in arguments.targets}
    if arguments.json:
        text = json.dumps({"triton": triton.__version__, "rows": rows, "over_budget": messages}, indent=1)
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
        return 0
    print(f"triton {triton.__version__}; instructions of the loop per update, over all threads of a block")
    columns = {"target": 8, "kernel": 9, "variant": 52, "registers": 9, "spills": 6, "shared": 6}
    columns |= {"instructions_per_update": 10, "bin_written": 8, "bin_added": 6}
    words = ("target", "kernel", "variant")
    titles = {"instructions_per_update": "per update", "bin_written": "bin: set", "bin_added": "added"}
    for row in [{name: titles.get(name, name) for name in columns}, *rows]:
        cells = [f"{row.get(name, '')!s:{'<' if name in words else '>'}{width}}" for name, width in columns.items()]
        print(" ".join(cells))
    for message in [message for of_target in messages.values() for message in of_target]:
        print(f"over budget: {message}")
    return 1 if any(messages.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
