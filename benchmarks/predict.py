"""What the generated code predicts a GPU to do, so that a run on one can prove it right or wrong.

    python -m benchmarks.predict            # the table of benchmarks/notes.md, for an H100

A launch takes as long as the slowest of three things, or a start if that is longer:

- instructions to issue: those of the recorded budgets (`codegen_budgets.json`), with how the grid fills the machine;
- words through shared memory: one increment an update and half a load, and what meets in a bank, counted on the images
  themselves for the lanes that the kernel runs together;
- bytes to and from memory.
"""

from __future__ import annotations

import json
from functools import cache
from typing import NamedTuple

import numpy as np

from bdg_fast.kernels.mas_glcm import triton_plan
from bdg_fast.kernels.mas_glcm.spec import Request, make_plan
from bdg_fast.kernels.mas_glcm.triton import HELD_BYTES

from .codegen import BUDGETS
from .peers import OFFSETS, quantized


class Gpu(NamedTuple):
    """The limits of a GPU."""

    target: str
    processors: int
    clock: float  # Hz
    bytes_per_second: float
    lanes: int = 128  # instructions of threads that a processor issues a clock
    banks: int = 32  # words that it reads or increments a clock in shared memory
    start: float = 2.5e-6  # seconds of a launch that does nothing


H100 = Gpu("sm_90", 132, 1.7e9, 3.0e12)
PLAN = make_plan(Request(OFFSETS, (0,) * len(OFFSETS), 1), "size")


def conflicts(images: np.ndarray, levels: int, sample: int = 256) -> float:
    """Clocks of one increment by the 32 lanes of a warp, averaged over images uint8 ``[B, H, W]`` and offsets.

    Lanes hold every fourth pixel of a row, or neighbours where pixels are listed (of all parts, which are few levels
    each: an estimate). Those that meet at an address are one increment by the hardware; those that meet in a bank wait.
    """
    apart = 1 if triton_plan.bins_config(levels, "shared", False).parts else 4
    generator = np.random.default_rng(0)
    level = quantized(images, levels).astype(np.int64)
    _, height, width = level.shape
    found = []
    for group in PLAN.groups:
        for dy, dx in group.offsets:
            b = generator.integers(0, len(level), sample)
            y = generator.integers(0, max(height - dy, 1), sample)
            x = generator.integers(0, max(width - 128 - 2 * abs(dx), 1), sample) + abs(dx)
            lanes = (x[:, None] + apart * np.arange(32)) % width
            at = (
                level[b[:, None], y[:, None], lanes] * (levels + 1)
                + level[b[:, None], np.minimum(y + dy, height - 1)[:, None], (lanes + dx) % width]
            )
            for row in at:
                found.append(np.bincount(np.unique(row) % 32, minlength=32).max())
    return float(np.mean(found))


@cache
def _budgets() -> dict[str, dict[str, float]]:
    return dict(json.loads(BUDGETS.read_text(encoding="utf-8")))


def _budget(key: str, name: str = "instructions_per_update") -> float:
    return float(_budgets()[key][name])


def seconds(batch: int, height: int, width: int, levels: int, gpu: Gpu = H100, waits: float = 1.0) -> dict[str, float]:
    """Seconds of the launches of `mas_glcm` by whole bins, in pieces; gray uint8; ``waits``: :func:`conflicts`."""
    held = len(PLAN.groups) * (levels + 1) ** 2 * 4
    each = max(1, HELD_BYTES // held)
    total: dict[str, float] = {}
    for begin in range(0, batch, each):
        for name, taken in _piece(min(each, batch - begin), height, width, levels, gpu, waits).items():
            total[name] = total.get(name, 0.0) + taken
    return total


def _piece(batch: int, height: int, width: int, levels: int, gpu: Gpu, waits: float) -> dict[str, float]:
    groups, offsets = len(PLAN.groups), sum(len(group.offsets) for group in PLAN.groups)
    below, border = PLAN.reach
    pitch = -(-(width + border) // 4) * 4
    size, plane = height * pitch, (height + below) * pitch
    small = size < triton_plan.SMALL
    config = triton_plan.bins_config(levels, "shared", small)
    side, most = levels + 1, max(len(group.offsets) for group in PLAN.groups)
    limit = (2**31 - 1) // most // config.block * config.block
    launch = triton_plan.launch_for(config, side, batch, size, groups, offsets, limit, gpu.processors)
    names = (name for name in triton_plan.CLASSES if levels <= name)
    variant = f"{gpu.target} shared {next(names)} levels{' small' * small}"
    issue = gpu.processors * gpu.lanes * gpu.clock
    parts = max(config.parts, 1)
    programs = batch * launch.splits * launch.blocks * parts
    updates = batch * launch.splits * launch.pixels * offsets
    cells = batch * launch.splits * groups * side * side
    emptied = _budget(variant, "bin_written" if launch.splits == 1 else "bin_added")
    instructions = updates * _budget(variant) + cells * emptied + programs * triton_plan.START * 32 * config.warps
    held = batch * groups * side * side * 4
    idle = -(-programs // gpu.processors) * gpu.processors / programs  # the last round is not full
    issued = instructions / issue * idle
    load = 1.0 if config.parts else 0.5  # a byte a neighbour, or two words for four
    increments = updates * (waits + load) / gpu.banks / gpu.processors / gpu.clock * idle
    moved = held * (1 if launch.splits == 1 else 2) / gpu.bytes_per_second
    level = batch * plane * _budget(f"{gpu.target} levels 32 levels, gray u8, gray") / issue
    uses, size_of = sum(len(group.uses) for group in PLAN.groups), 64 if levels <= 64 else 256
    combined = batch * uses * levels**2 * _budget(f"{gpu.target} combine {size_of} levels, normalized") / issue
    order = 0.0
    if config.parts:
        order = gpu.start + batch * size * _budget(f"{gpu.target} order {256 if levels > 128 else 128} levels") / issue
    return {
        "levels": gpu.start + max(level, batch * (height * width + plane) / gpu.bytes_per_second),
        "order": order,
        "bins": gpu.start + max(issued, increments, moved),
        "combine": gpu.start + max(combined, held / gpu.bytes_per_second),
    }


def predicted_ms(images: np.ndarray, levels: int, gpu: Gpu = H100) -> float | None:
    """Milliseconds of a call on gray uint8 ``images [B, H, W]``, launches one after the other; None without bins."""
    batch, height, width = images.shape
    if (levels + 1) ** 2 > triton_plan.SPARSE * height * width:
        return None  # bound by atomics in the second-level cache, whose rate is not known here
    return 1e3 * sum(seconds(batch, height, width, levels, gpu, conflicts(images, levels)).values())


def main() -> None:
    """Print the table."""
    from .conftest import photographs

    batch = photographs(64)
    noise = np.random.default_rng(0).integers(0, 256, batch.shape, dtype=np.uint8)
    contents = {"photographs": batch, "noise": noise, "flat": np.full_like(batch, 40)}
    cases = ((64, 256, 256), (1, 256, 256), (4096, 32, 32), (16, 1024, 1024), (1, 8192, 8192))
    print(f"{'images':>16} {'levels':>6} {'content':12} {'waits':>5} {'us':>8} {'T updates/s':>11}  launches, us")
    for shape in cases:
        for levels in (8, 16, 32, 64, 128, 256):
            if (levels + 1) ** 2 > triton_plan.SPARSE * shape[1] * shape[2]:
                continue  # no bins
            for name, images in contents.items():
                if shape != cases[0] and name != "photographs":
                    continue
                waits = conflicts(images, levels)
                launches = seconds(*shape, levels, waits=waits)
                total = sum(launches.values())
                rate = np.prod(shape) * len(set(OFFSETS)) / total / 1e12
                parts = ", ".join(f"{key} {1e6 * value:.0f}" for key, value in launches.items() if value)
                size = " x ".join(map(str, shape))
                print(f"{size:>16} {levels:6} {name:12} {waits:5.2f} {1e6 * total:8.0f} {rate:11.2f}  {parts}")


if __name__ == "__main__":
    main()
