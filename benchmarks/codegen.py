"""Compile every kernel for several GPUs without one, and report what the compiler made of it.

    python -m benchmarks.codegen            # the table
    python -m benchmarks.codegen --json -   # the same as JSON, for the tests
    python -m benchmarks.codegen --record   # make what is above its budget the new budget

Counted per kernel: registers and spilled bytes or registers of a thread, shared memory of a block, and the
instructions of the counting loop per update (one update = one pixel of one offset), over all threads; for kernels
that prepare (``levels`` and ``order``), all their instructions per pixel; for those that touch each pixel once
(``step`` and ``forward``), all their instructions per element.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from . import codegen_pixels
from .codegen_tools import TARGETS, compile_kernel, resources


class Variant(NamedTuple):
    """A specialization of a counting kernel, or of one that prepares for it."""

    way: str  # "product", "shared", "counts"; "levels", "order"; "soft add", "soft pull"
    levels: int
    dtype: str = "u8"
    channels: int = 1
    source: str = "gray"
    masked: bool = False
    wide: bool = False

    @property
    def name(self) -> str:
        """Short label."""
        flags = "".join([" masked" if self.masked else "", " 64-bit" if self.wide else ""])
        if self.way in ("shared", "counts", "order", "soft add", "soft pull"):
            return f"{self.levels} levels{flags}"
        return f"{self.levels} levels, {'rgb' if self.channels == 3 else 'gray'} {self.dtype}, {self.source}{flags}"


LEVELS = (8, 16, 32, 64, 128, 256)
VARIANTS = (
    *(Variant("shared", levels) for levels in LEVELS),
    Variant("shared", 32, wide=True),
    *(Variant("counts", levels) for levels in (32, 256)),
    Variant("counts", 256, wide=True),
    *(Variant("product", levels) for levels in (8, 16, 32)),
    Variant("product", 32, "fp32", 3),
    Variant("product", 32, "fp32", 3, "laplacian"),
    Variant("product", 32, "u8", 3, "laplacian", masked=True, wide=True),
    Variant("levels", 32),
    Variant("levels", 32, "fp32", 3),
    Variant("levels", 32, "bf16", 3),
    Variant("levels", 32, "u16"),
    Variant("levels", 32, "fp32", 3, "laplacian"),
    Variant("levels", 256, "fp16", 1, "laplacian", masked=True, wide=True),
    Variant("order", 128),
    Variant("order", 256),
    Variant("soft add", 32, "fp32"),
    Variant("soft add", 32, "fp32", masked=True),
    Variant("soft pull", 32, "fp32"),
    Variant("soft pull", 32, "fp32", masked=True),
)
POINTERS = {
    "mask": "u8", "thresholds": "i32", "columns": "i32", "entries": "i32", "starts": "i32", "firsts": "i32",
    "counts": "i32", "scratch": "i32", "uses": "i32", "pairs": "i64",
}  # fmt: skip


def _backend() -> Any:
    return importlib.import_module("bdg_fast.kernels.mas_glcm.triton")


def compile_variant(target: GPUTarget, variant: Variant, **overrides: Any) -> tuple[Any, float, int]:
    """The compiled kernel, how many updates (pixels, in preparations) its inner loop makes, and its warps."""
    backend = _backend()
    laplacian = variant.source == "laplacian"
    constants: dict[str, Any] = {"WIDE": variant.wide}
    pointers = {**POINTERS, "image": variant.dtype}
    if variant.way in ("product", "levels"):
        constants |= {
            "CHANNELS": variant.channels,
            "LAPLACIAN": laplacian,
            "MASKED": variant.masked,
            "STEPS": (variant.levels - 1).bit_length() if laplacian else 0,
            "stride_w": 1,
        }
    parts = backend.bins_config(variant.levels, "shared")
    index = "i64" if variant.wide else "i32"
    pointers |= {"totals": index, "placed": index, "order": index}
    if variant.way.startswith("soft"):
        soft = importlib.import_module("bdg_fast.kernels.soft_glcm.triton")
        name, updates = ("add_kernel", 256) if variant.way == "soft add" else ("pull_kernel", 128)
        kernel, warps = getattr(soft.triton_kernels, name), 4
        constants = {"MASKED": variant.masked, "P": updates}
        constants |= {"UNIT": soft.UNIT} if variant.way == "soft add" else {}
        pointers |= {"position": variant.dtype, "grads": variant.dtype, "out": variant.dtype, "sums": "i64"}
    elif variant.way in ("levels", "order"):
        kernel, warps = getattr(backend.triton_bins, variant.way.rstrip("s") + "_kernel"), 4
        constants |= {"P": 1024, "PARTS": parts.parts, "ROWS": parts.rows}
        updates = 1024
        pointers["out"] = pointers["level"] = "u8" if variant.levels < 256 else "i16"
    elif variant.way == "product":
        product = backend.product_config(variant.levels)._replace(**overrides)
        kernel, warps = backend.triton_kernels.product_kernel, product.warps
        constants |= {
            "P": product.block,
            "COLUMNS": product.columns,
            "SIDE": product.side,
            "PER_COLUMN": backend.PER_COLUMN,
            "THROUGH_SHARED": backend.THROUGH_SHARED,
        }
        updates = product.block * product.columns * backend.PER_COLUMN
    else:
        bins = backend.bins_config(variant.levels, variant.way)._replace(**overrides)
        kernel, warps = backend.triton_bins.bins_kernel, bins.warps
        shared = variant.way == "shared"
        constants |= {
            "DECLARE": backend.triton_bins.declare(4 * backend.bins_of(variant.levels, bins)) if shared else "",
            "SHARED": shared,
            "BINNED": shared,
            "PARTS": bins.parts,
            "ROWS": bins.rows,
            "TILE": bins.tile,
            "P": bins.block,
        }
        pointers["level"] = "u8" if variant.levels < 256 else "i16"
        updates = bins.block
    long = ("plane", "size", "pixels") if variant.wide else ()
    signature = {
        name: "constexpr"
        if name in constants
        else "*" + pointers[name]
        if name in pointers
        else "fp32"
        if name in ("low", "scale")
        else "i64"
        if name in long
        else "i32"
        for name in kernel.arg_names
    }
    return compile_kernel(kernel, signature, constants, target, warps), updates, warps


def compile_combine(target: GPUTarget, masked: bool, normalize: bool) -> Any:
    """The compiled kernel that weighs the counts."""
    kernel = _backend().triton_kernels.combine_kernel
    constants = {"MASKED": masked, "NORMALIZE": normalize, "CELLS": 1024}
    pointers = {**POINTERS, "totals": "i64", "out": "fp32" if normalize else "i64"}
    signature = {
        name: "constexpr" if name in constants else "*" + pointers[name] if name in pointers else "i32"
        for name in kernel.arg_names
    }
    return compile_kernel(kernel, signature, constants, target, 4)


def measure(target: str, variant: Variant, **overrides: Any) -> dict[str, Any]:
    """One row of the table."""
    compiled, updates, warps = compile_variant(TARGETS[target], variant, **overrides)
    row = resources(compiled, variant.way)
    threads = warps * TARGETS[target].warp_size
    return {
        "kernel": variant.way,
        "target": target,
        "variant": variant.name,
        **row,
        "instructions_per_update": round(row["loop"] * threads / updates, 1),
    }


def ways(target: str) -> tuple[Variant, ...]:
    """The variants that exist for ``target``."""
    return tuple(v for v in VARIANTS if v.way != "shared" or target.startswith("sm_"))


def table(targets: list[str]) -> list[dict[str, Any]]:
    """All kernels and variants for ``targets``."""
    rows = [measure(target, variant) for target in targets for variant in ways(target)]
    for target in targets:
        for masked, normalize in ((False, True), (True, True), (False, False)):
            row = resources(compile_combine(TARGETS[target], masked, normalize))
            name = ("normalized" if normalize else "sums") + (" masked" if masked else "")
            rows.append({"kernel": "combine", "target": target, "variant": name, **row})
        rows += [codegen_pixels.measure(target, variant) for variant in codegen_pixels.VARIANTS]
    return rows


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
        keys = [key for key in ("registers", "shared", "instructions_per_update") if key in row]
        budgets[_key(row)] = {key: max(row[key], old.get(key, 0)) for key in keys}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(budgets.items()))
    BUDGETS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def main() -> int:
    """Print the table, or write JSON; exit code 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE, or to standard output with -")
    parser.add_argument("--record", action="store_true", help=f"raise the budgets in {BUDGETS.name}")
    arguments = parser.parse_args()
    rows = table(arguments.targets)
    if arguments.record:
        record(rows)
    messages = {target: over_budget([row for row in rows if row["target"] == target]) for target in arguments.targets}
    if arguments.json:
        text = json.dumps({"triton": triton.__version__, "rows": rows, "over_budget": messages}, indent=1)
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
        return 0
    print(f"triton {triton.__version__}; instructions of the loop per update, over all threads of a block")
    print(f"{'target':8} {'kernel':8} {'variant':44} {'registers':>9} {'spills':>6} {'shared':>7} {'per update':>10}")
    for row in rows:
        print(
            f"{row['target']:8} {row['kernel']:8} {row['variant']:44} {row['registers']:9} {row['spills']:6} "
            f"{row['shared']:7} {row.get('instructions_per_update', ''):>10}"
        )
    for message in [message for of_target in messages.values() for message in of_target]:
        print(f"over budget: {message}")
    return 1 if any(messages.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
