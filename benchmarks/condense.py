"""``python -m benchmarks.condense RUN.json RESULT.json --device WORDS``: a benchmark's run as a file of results.

A run that pytest-benchmark saved holds every round and much of the machine; results hold medians in milliseconds, by
group and case, what a benchmark said beside them (``extra_info``), versions and the commit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .gpu_report import write_json


def condensed(run: dict[str, Any], device: str) -> dict[str, Any]:
    """What a file of results keeps of a saved run."""
    machine, groups = run["machine_info"], {}
    for found in run["benchmarks"]:
        stats, extra = found["stats"], dict(found["extra_info"])
        row = {"median": 1e3 * stats["median"], "min": 1e3 * stats["min"], "max": 1e3 * stats["max"]}
        name = extra.pop("case", found["name"])
        groups.setdefault(found["group"] or "", {})[name] = _rounded({**row, "rounds": stats["rounds"], **extra})
    return {
        "device": device,
        "versions": machine["versions"],
        "torch_threads": machine["torch_threads"],
        "date": run["datetime"][:10],
        "commit": run["commit_info"]["id"],
        "unit": "ms",
        "groups": groups,
    }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to five digits."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, condense, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.condense", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", required=True, help="the machine, in words")
    options = parser.parse_args(arguments)
    write_json(options.result, condensed(json.loads(options.run.read_text(encoding="utf-8")), options.device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
