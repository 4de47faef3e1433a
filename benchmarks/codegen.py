"""Compile every kernel for several GPUs without one, and report what the compiler made of it.

    python -m benchmarks.codegen            # the table
    python -m benchmarks.codegen --json -   # the same as JSON, for the tests

Counted per kernel: registers and spilled bytes or registers of a thread, shared memory of a block, and the
instructions of the counting loop per update (one update = one pixel of one offset), over all threads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Variant(NamedTuple):
    """A specialization of the counting kernel."""

    levels: int
    dtype: str = "fp32"
    channels: int = 3
    source: str = "gray"
    masked: bool = False
    wide: bool = False

    @property
    def name(self) -> str:
        """Short label."""
        flags = "".join([" masked" if self.masked else "", " 64-bit" if self.wide else ""])
        return f"{self.levels} levels, {'rgb' if self.channels == 3 else 'gray'} {self.dtype}, {self.source}{flags}"


VARIANTS = (
    Variant(8),
    Variant(32),
    Variant(256),
    Variant(16, "u8", 1),
    Variant(32, "u8", 1),
    Variant(64, "u8", 1),
    Variant(256, "u8", 1),
    Variant(32, "bf16"),
    Variant(32, "u16", 1),
    Variant(32, source="laplacian"),
    Variant(32, "u8", source="laplacian", masked=True),
    Variant(256, "fp16", 1, source="laplacian", masked=True, wide=True),
)


def compile_count(target: GPUTarget, variant: Variant, **overrides: Any) -> tuple[Any, Any]:
    """The compiled counting kernel and its tile sizes."""
    kernels = importlib.import_module("bdg_fast.kernels.mas_glcm.triton")
    config = kernels.config_for(variant.levels)._replace(**overrides)
    laplacian = variant.source == "laplacian"
    constants = {
        "CHANNELS": variant.channels,
        "LAPLACIAN": laplacian,
        "MASKED": variant.masked,
        "WIDE": variant.wide,
        "STEPS": (variant.levels - 1).bit_length() if laplacian else 0,
        "P": config.block,
        "COLUMNS": config.columns,
        "SIDE": config.side,
        "SCATTER": config.scatter,
        "PER_COLUMN": kernels.PER_COLUMN,
        "THROUGH_SHARED": kernels.THROUGH_SHARED,
        "stride_w": 1,
    }
    pointers = {"image": variant.dtype, "mask": "u8", "thresholds": "i32", "columns": "i32", "counts": "i64"}
    signature = {}
    for name in kernels.triton_kernels.count_kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name in ("low", "scale") else "i32"
    return _compile(kernels.triton_kernels.count_kernel, signature, constants, target, config.warps), config


def compile_combine(target: GPUTarget, masked: bool, normalize: bool) -> Any:
    """The compiled kernel that weighs the counts."""
    kernel = importlib.import_module("bdg_fast.kernels.mas_glcm.triton").triton_kernels.combine_kernel
    constants = {"MASKED": masked, "NORMALIZE": normalize, "CELLS": 1024}
    pointers = {
        "counts": "i64",
        "pairs": "i64",
        "uses": "i32",
        "starts": "i32",
        "totals": "i64",
        "out": "fp32" if normalize else "i64",
    }
    signature = {
        name: "constexpr" if name in constants else "*" + pointers[name] if name in pointers else "i32"
        for name in kernel.arg_names
    }
    return _compile(kernel, signature, constants, target, 4)


def _compile(kernel: Any, signature: dict[str, str], constants: dict[str, Any], target: GPUTarget, warps: int) -> Any:
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    # as launched: arrays begin on 16-byte boundaries
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature=signature, constexprs=places, attrs=aligned)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def resources(compiled: Any) -> dict[str, int]:
    """Registers, spills, shared bytes and the instructions of the innermost product loop."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        counts = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
        spills = counts["vgpr_spill_count"] + counts["sgpr_spill_count"]
        registers = counts["vgpr_count"] + counts.get("agpr_count", 0)
        loop = _longest_loop(re.findall(r"^(\S+):|^\s+([sv]_\w+|ds_\w+|global_\w+|buffer_\w+)(.*)$", text, re.M))
        return {"registers": registers, "spills": spills, "shared": shared, "loop": loop}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        sass = _output(tools / "nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    lines = re.findall(r"^(\S+):|^\s+(?:/\*\w+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*)$", sass, re.M)
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared": shared,
        "loop": _longest_loop(lines),
    }


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def _longest_loop(lines: list[tuple[str, str, str]]) -> int:
    """Instructions between a label and the farthest branch back to it: the counting loop."""
    position, labels, longest = 0, {}, 0
    for label, instruction, operands in lines:
        if label:
            labels[label] = position
            continue
        position += 1
        if "BRA" in instruction or "branch" in instruction:
            for name, begin in labels.items():
                if re.search(rf"(?<![\w.$]){re.escape(name)}(?![\w.$])", operands):
                    longest = max(longest, position - begin)
    return longest


def measure(target: str, variant: Variant, **overrides: Any) -> dict[str, Any]:
    """One row of the table."""
    compiled, config = compile_count(TARGETS[target], variant, **overrides)
    row = resources(compiled)
    kernels = importlib.import_module("bdg_fast.kernels.mas_glcm.triton")
    updates = config.block * config.columns * kernels.PER_COLUMN
    threads = config.warps * TARGETS[target].warp_size
    return {
        "kernel": "count",
        "target": target,
        "variant": variant.name,
        **row,
        "instructions_per_update": round(row["loop"] * threads / updates, 1),
    }


def table(targets: list[str]) -> list[dict[str, Any]]:
    """All kernels and variants for ``targets``."""
    rows = [measure(target, variant) for target in targets for variant in VARIANTS]
    for target in targets:
        for masked, normalize in ((False, True), (True, True), (False, False)):
            row = resources(compile_combine(TARGETS[target], masked, normalize))
            name = ("normalized" if normalize else "sums") + (" masked" if masked else "")
            rows.append({"kernel": "combine", "target": target, "variant": name, **row})
    return rows


def main() -> int:
    """Print the table, or write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE, or to standard output with -")
    arguments = parser.parse_args()
    rows = table(arguments.targets)
    if arguments.json:
        text = json.dumps({"triton": triton.__version__, "rows": rows}, indent=1)
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
        return 0
    print(f"triton {triton.__version__}; instructions of the loop per update, over all threads of a block")
    print(f"{'target':8} {'kernel':8} {'variant':38} {'registers':>9} {'spills':>6} {'shared':>7} {'per update':>10}")
    for row in rows:
        print(
            f"{row['target']:8} {row['kernel']:8} {row['variant']:38} {row['registers']:9} {row['spills']:6} "
            f"{row['shared']:7} {row.get('instructions_per_update', ''):>10}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
