"""Compile a kernel for a GPU that is not there, and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


Type = str | tuple[str, ...]
"""Of an argument, as Triton writes it: ``"i32%"`` is a multiple of 16, ``"1"`` an integer that is 1, ``"constexpr"`` a
constant; a tuple has one each."""


def compile_kernel(
    kernel: Any, signature: dict[str, Type], constants: dict[str, Any], target: GPUTarget, warps: int
) -> Any:
    """The kernel as it is compiled when launched: arrays begin on 16-byte boundaries."""
    places: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}

    def plain(kind: str, path: tuple[int, ...]) -> str:
        if kind == "1":
            places[path] = 1
            return "constexpr"
        if kind[0] == "*" or kind[-1] == "%":
            aligned[path] = [["tt.divisibility", 16]]
        return kind.rstrip("%")

    types: dict[str, Any] = {}
    for i, name in enumerate(kernel.arg_names):
        kind = signature[name]
        if name in constants:
            places[(i,)] = constants[name]
        types[name] = (
            plain(kind, (i,)) if isinstance(kind, str) else tuple(plain(k, (i, j)) for j, k in enumerate(kind))
        )
    source = ASTSource(kernel, signature=types, constexprs=places, attrs=aligned)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def resources(compiled: Any, way: str = "") -> dict[str, int]:
    """Registers, spills, shared bytes and instructions of the loop that counts (of the kernel, if it has none)."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        counts = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
        spills = counts["vgpr_spill_count"] + counts["sgpr_spill_count"]
        registers = counts["vgpr_count"] + counts.get("agpr_count", 0)
        lines = re.findall(r"^(\S+):|^\s+([sv]_\w+|ds_\w+|global_\w+|buffer_\w+)(.*)$", text, re.M)
        return {"registers": registers, "spills": spills, "shared": shared, "loop": _loop(lines, way)}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        sass = _output(tools / "nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    lines = re.findall(r"^(\S+):|^\s+(?:/\*\w+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*)$", sass, re.M)
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared": max(shared, found["SHARED"]),
        "loop": _loop(lines, way),
    }


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


COUNTING = {
    "shared": r"ATOMS",
    "counts": r"RED|global_atomic",
    "product": r"[HIQ]G?MMA|v_mfma|UTC\w*MMA",
    "soft add": r"RED|ATOM|global_atomic",
    "soft pull": r"LDG|global_load",
}
"""What the loop that counts is known by."""


def _loop(lines: list[tuple[str, str, str]], way: str) -> int:
    """Instructions of the smallest loop that counts: a backward branch to its label and all between."""
    code = [(instruction, operands) for label, instruction, operands in lines if not label]
    if way not in COUNTING:
        return len(code)
    labels: dict[str, int] = {}
    position, loops = 0, []
    for label, instruction, operands in lines:
        if label:
            labels[label] = position
            continue
        position += 1
        if "BRA" in instruction or "branch" in instruction:
            for name, begin in labels.items():
                if re.search(rf"(?<![\w.$]){re.escape(name)}(?![\w.$])", operands):
                    loops.append((begin, position))
    counting = [
        end - begin for begin, end in loops if any(re.match(COUNTING[way], name) for name, _ in code[begin:end])
    ]
    # AMD code branches around masked loads: their loops are not the one over offsets
    return max(counting, default=0) if way == "soft pull" else min(counting, default=0)
