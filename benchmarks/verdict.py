"""What the GPU report says of a restoration: its floor, and whether it does what was asked for.

Asked for are so many times the images a second of the published network as PyTorch evaluates it plainly, eagerly in
float32, and a time near that of a network fused as a whole. The plain baseline is that of float32 products and
convolutions; PyTorch's own choice rounds the factors of convolutions to TF32, and the ratio to it stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BASELINE, DEFAULTS = "published", "published, PyTorch's defaults"
OURS = "compiled bfloat16, graph"
"""What a `Restorer` does on a GPU unless told otherwise."""
WANTED_TIMES = {1: 8.0, 16: 4.0}
"""Images a second against the baseline's, by batch."""
WANTED_OF_FLOOR = 2.0
"""Times the floor, at most."""
FLOPS = {"T": 34.6e9, "S": 48.4e9, "B": 167.3e9, "L": 238.4e9}
TRAFFIC = {"T": 0.276e9, "S": 0.321e9, "B": 0.651e9, "L": 0.906e9}
"""Operations, and bytes moved, of one evaluation of one 256 x 256 image, fused and in bfloat16; those of L at most."""
FLOPS_PER_SECOND, COPY_BYTES_PER_SECOND = 790e12, 3.0e12
ASSUMES = "fused, bfloat16, H100: 790 TFLOP/s, 3.0 TB/s"


def floor_ms(size: str, copy_bytes_per_second: float = COPY_BYTES_PER_SECOND) -> float:
    """Milliseconds of one evaluation of one image at least, of a device that copies so fast."""
    return 1e3 * max(FLOPS[size] / FLOPS_PER_SECOND, TRAFFIC[size] / copy_bytes_per_second)


def floors(size: str, evaluations: int, copy_bytes_per_second: float | None) -> dict[str, Any]:
    """As cells of a row, of so many evaluations of images; the second by the bandwidth that was measured, if it was."""
    found: dict[str, Any] = {"floor_ms": floor_ms(size) * evaluations, "floor_assumes": ASSUMES}
    if copy_bytes_per_second:
        found["floor_by_own_copy_ms"] = floor_ms(size, copy_bytes_per_second) * evaluations
    return found


def call_ms(timing: Mapping[str, float]) -> float:
    """Milliseconds of a call among others: the device's, or the host's where that takes longer to launch it."""
    return max(timing["ms"], timing.get("launch_ms", 0.0))


def judge(row: dict[str, Any], batch: int, least_db: Mapping[str, float]) -> None:
    """Ratios of everything timed in ``row``, what is too far from the baseline's pixels, and the verdict."""
    ms = {name: call_ms(row[name]) for name in row["images_per_second"]}  # of what did not fail
    row["times_faster_than"] = {
        base: {name: ms[base] / each for name, each in ms.items()} for base in (BASELINE, DEFAULTS) if base in ms
    }
    row["share_of_floor"] = {name: row["floor_ms"] / each for name, each in ms.items()}
    row["too_far"] = [
        name
        for name, found in row["decibel"].items()
        if not found > max((least for dtype, least in least_db.items() if dtype in name), default=-math.inf)
    ]  # of ours: what the published code does with TF32 is its own
    if OURS not in ms or BASELINE not in ms:
        return
    told: dict[str, Any] = {"of": OURS, "times_faster": ms[BASELINE] / ms[OURS], "wanted": WANTED_TIMES.get(batch)}
    if DEFAULTS in ms:
        told["times_faster_than_defaults"] = ms[DEFAULTS] / ms[OURS]
    told["times_the_floor"] = ms[OURS] / row["floor_ms"]
    if "floor_by_own_copy_ms" in row:
        told["times_the_floor_by_own_copy"] = ms[OURS] / row["floor_by_own_copy_ms"]
    told["fast"] = told["wanted"] is None or told["times_faster"] >= told["wanted"]
    own = told.get("times_the_floor_by_own_copy", told["times_the_floor"])  # of a card that copies faster: stricter
    told["near_the_floor"] = max(own, told["times_the_floor"]) <= WANTED_OF_FLOOR
    told["faithful"] = not row["too_far"]
    row["verdict"] = told


def lines(row: dict[str, Any]) -> list[str]:
    """The verdict for people."""
    if "verdict" not in row:
        return []
    found = row["verdict"]
    yes = {True: "yes", False: "NO"}
    wanted = f"wanted {found['wanted']:.0f}: {yes[found['fast']]}" if found["wanted"] else "nothing wanted"
    defaults = found.get("times_faster_than_defaults", float("nan"))
    own = found.get("times_the_floor_by_own_copy")
    return [
        f"{row['case']}: {found['times_faster']:.1f} times the plain eager float32 baseline, without TF32 ({wanted}), "
        f"{defaults:.1f} times PyTorch's defaults; {found['times_the_floor']:.1f} times the floor"
        + (f", {own:.1f} by own copy" if own else "")
        + f" (at most {WANTED_OF_FLOOR:.0f}: {yes[found['near_the_floor']]}); faithful: {yes[found['faithful']]}"
    ]
