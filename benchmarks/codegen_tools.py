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


def resources(compiled: Any, way: str = "") -> dict[str, Any]:
    """Registers, spills, shared bytes and instructions of the loop that counts (of the kernel, if it has none), and,
    for kernels with bins, of a bin cleared and written or added."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        counts = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
        spills = counts["vgpr_spill_count"] + counts["sgpr_spill_count"]
        registers = counts["vgpr_count"] + counts.get("agpr_count", 0)
        lines = re.findall(r"^(\S+):|^\s+([sv]_\w+|ds_\w+|global_\w+|buffer_\w+)(.*)$", text, re.M)
        return {"registers": registers, "spills": spills, "shared": shared, **_instructions(Listing(lines), way)}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        sass = _output(tools / "nvdisasm", "-c", "-ndf", file.name)  # without an analysis of data flow
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    lines = re.findall(r"^(\S+):|^\s+(?:/\*\w+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*)$", sass, re.M)
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared": max(shared, found["SHARED"]),
        **_instructions(Listing(lines), way),
    }


def _instructions(listing: Listing, way: str) -> dict[str, Any]:
    row: dict[str, Any] = {"loop": listing.counting(way)}
    if way in ("shared", "packed"):
        row["bin_written"] = round(listing.per_bin("STG|global_store|buffer_store"), 1)
        row["bin_added"] = round(listing.per_bin("RED|global_atomic|buffer_atomic"), 1)
    return row


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


COUNTING = {
    "shared": r"ATOMS|ds_add",
    "packed": r"ATOMS|ds_add",
    "counts": r"RED|global_atomic|buffer_atomic",
    "product": r"[HIQ]G?MMA|v_mfma|UTC\w*MMA",
    "soft add": r"RED|ATOM|global_atomic",
    "soft pull": r"LDG|global_load",
}
"""What the loop that counts is known by."""


class Listing:
    """The instructions of a kernel, and its loops: backward branches to a label and all between."""

    def __init__(self, lines: list[tuple[str, str, str]]):
        self.code = [instruction for label, instruction, _ in lines if not label]
        labels: dict[str, int] = {}
        self.loops: list[list[str]] = []
        position = 0
        for label, instruction, operands in lines:
            if label:
                labels[label] = position
                continue
            position += 1
            if "BRA" in instruction or "branch" in instruction:
                for name, begin in labels.items():
                    if re.search(rf"(?<![\w.$]){re.escape(name)}(?![\w.$])", operands):
                        self.loops.append(self.code[begin:position])

    def counting(self, way: str) -> int:
        """Instructions of the smallest loop that counts (of all, if the kernel is not one that counts)."""
        if way not in COUNTING:
            return len(self.code)
        found = [len(loop) for loop in self.loops if _number(loop, COUNTING[way])]
        # AMD code branches around masked loads: their loops are not the one over offsets
        return max(found, default=0) if way == "soft pull" else min(found, default=0)

    def per_bin(self, emptied: str) -> float:
        """Instructions of a bin, cleared and emptied: by writing (``"STG"``, ``"store"``) or by adding."""
        clearing = [loop for loop in self.loops if _number(loop, "STS") and not _number(loop, "ATOMS|LDS")]
        emptying = [
            loop
            for loop in self.loops
            if _number(loop, "LDS|ds_read") and _number(loop, emptied) and not _number(loop, "ATOMS|ds_add")
        ]
        cleared = min((len(loop) / _number(loop, "STS") for loop in clearing), default=0.0)
        return cleared + min((len(loop) / _number(loop, "LDS|ds_read") for loop in emptying), default=0.0)


def _number(code: list[str], pattern: str) -> int:
    return sum(bool(re.match(pattern, instruction)) for instruction in code)
