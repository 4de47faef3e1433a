"""What the GPU report does after its tests, in which order, and what is compiled for it ahead.

A part of few seconds that tells most comes first: the whole report has minutes (benchmarks/notes.md has the seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import gpu_growth, gpu_restore, training_speed
from .gpu_compile import Job
from .gpu_restore import EXACT, NAMES, STATIC, Case, Measurements, Timer

if TYPE_CHECKING:
    from .gpu_report import Report

ASKED = ("T", "L")
"""Networks that come first."""
ROUNDS, STEPS = 3, 10
"""Of training, by the plain loop too."""


class Stage(NamedTuple):
    """Some of a part, and its weight in what time is left when its turn comes."""

    part: str
    weight: float
    measure: Callable[[float], object]


def stages(report: Report, device: str, time_ms: Timer, glcm: Callable[[Report, float], None]) -> list[Stage]:
    """Of all parts, in turn; each is given when its cases may begin at the latest."""
    restore = Measurements(device, time_ms, report.content.get("copy_bytes_per_second"))
    asked = [case for case in gpu_restore.CASES if case.size in ASKED]
    small, large = ([case for case in asked if case.size == size] for size in ASKED)
    first = [*restore.tasks(small), gpu_growth.end_to_end(device), *restore.tasks(large)]
    told = [*small[:1], *large[-1:]]  # T alone, L together
    rest = [
        *(task for case in told for task in (restore.kernels(case), *restore.tasks([case], [STATIC, EXACT]))),
        *(gpu_growth.small(batch, device, time_ms) for batch in gpu_growth.SMALL_BATCHES),
        *gpu_growth.growth(device, time_ms),
        *restore.tasks([case for case in asked if case not in told], [EXACT, STATIC]),
        *restore.tasks([case for case in gpu_restore.CASES if case not in asked], [*NAMES, EXACT]),
    ]

    def training(cases: Sequence[training_speed.Case], until: float) -> None:
        before, keep = report.content["training"], report.keep("training")
        rows, left_out = training_speed.training_cases(
            device, cases, ROUNDS, STEPS, lambda rows: keep([*before, *rows]), until
        )
        report.end("training", [*before, *rows], left_out)

    return [
        Stage("restore", 6, lambda until: report.restored(first, until)),
        Stage("training", 2, lambda until: training(training_speed.GPU_CASES[:1], until)),
        Stage("glcm", 2, lambda until: glcm(report, until)),
        Stage("restore", 2, lambda until: report.restored(rest, until)),
        Stage("training", 1, lambda until: training(training_speed.GPU_CASES[1:], until)),
    ]


def compiled_ahead(parts: Sequence[str]) -> list[Job]:
    """Jobs of `benchmarks.gpu_compile`, in the order in which the report asks for what they compile."""

    def of(case: Case, way: str) -> Job:
        return "restore", case.size, str(case.batch), way.removesuffix(", graph")

    asked = [case for case in gpu_restore.CASES if case.size in ASKED]
    others = [case for case in gpu_restore.CASES if case.size not in ASKED]
    training: list[Job] = [("training", str(number)) for number in range(len(training_speed.GPU_CASES))]
    first, rest = [of(case, "compiled bfloat16") for case in asked], [*(of(case, STATIC) for case in asked)]
    rest += [("small", str(batch)) for batch in gpu_growth.SMALL_BATCHES]
    rest += [of(case, EXACT) for case in asked]
    rest += [of(case, way) for case in others for way in ("compiled bfloat16", EXACT)]
    of_training, of_restore = "training" in parts, "restore" in parts
    return [
        *first * of_restore,
        *training[:1] * of_training,
        *rest * of_restore,
        *training[1:] * of_training,
    ]


def lines_of(row: dict[str, Any]) -> list[str]:
    """A row of restorations for people."""
    failed = [f"{row['case']}: {row['error']}"] if "error" in row else []
    if "times_faster_than" in row:
        return [*failed, *gpu_restore.lines_of(row)]
    return failed or gpu_growth.lines_of(row)
