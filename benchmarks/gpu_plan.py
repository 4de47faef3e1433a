"""What the GPU report does after its tests, in which order, and what is compiled for it ahead.

A part of few seconds that tells most comes first: the whole report has minutes (benchmarks/notes.md has the seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import gpu_growth, gpu_restore, training_speed
from .gpu_compile import Job
from .gpu_restore import EXTRAS, Case, Measurements, Timer

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
    asked, others, told = _cases()
    small, large = ([case for case in asked if case.size == size] for size in ASKED)
    first = [*restore.tasks(small), gpu_growth.end_to_end(device), *restore.tasks(large)]
    rest = [
        *restore.tasks(told, EXTRAS),
        *map(restore.kernels, told),
        *(gpu_growth.small(batch, device, time_ms) for batch in gpu_growth.SMALL_BATCHES),
        *gpu_growth.growth(device, time_ms),
        *restore.tasks(others),
        *restore.tasks([case for case in asked if case not in told], EXTRAS),
    ]

    def training(cases: Sequence[training_speed.Case], until: float) -> None:
        before, keep = report.content["training"], report.keep("training")
        rows, left_out = training_speed.training_cases(
            device, cases, ROUNDS, STEPS, lambda rows: keep([*before, *rows]), until
        )
        report.end("training", [*before, *rows], left_out)

    return [
        Stage("restore", 14, lambda until: report.restored(first, until)),
        Stage("training", 2, lambda until: training(training_speed.GPU_CASES[:1], until)),
        Stage("glcm", 6, lambda until: glcm(report, until)),
        Stage("restore", 2, lambda until: report.restored(rest, until)),
        Stage("training", 1, lambda until: training(training_speed.GPU_CASES[1:], until)),
    ]


def compiled_ahead(parts: Sequence[str]) -> list[Job]:
    """Jobs of `benchmarks.gpu_compile`, in the order in which the report asks for what they compile."""

    def of(case: Case, way: str) -> Job:
        return "restore", case.size, str(case.batch), way.removesuffix(", graph")

    asked, others, told = _cases()
    training: list[Job] = [("training", str(number)) for number in range(len(training_speed.GPU_CASES))]
    rest = [of(case, way) for case in told for way in EXTRAS]
    rest += [("small", str(batch)) for batch in gpu_growth.SMALL_BATCHES]
    rest += [of(case, "compiled bfloat16") for case in others]
    rest += [of(case, way) for case in asked if case not in told for way in EXTRAS]
    of_training, of_restore = "training" in parts, "restore" in parts
    return [
        *[of(case, "compiled bfloat16") for case in asked] * of_restore,
        *training[:1] * of_training,
        *rest * of_restore,
        *training[1:] * of_training,
    ]


def _cases() -> tuple[list[Case], list[Case], list[Case]]:
    """Those that come first, the others, and of the first those that tell of more: T alone and L together."""
    asked = [case for case in gpu_restore.CASES if case.size in ASKED]
    return asked, [case for case in gpu_restore.CASES if case not in asked], [*asked[:1], *asked[1:][-1:]]


def lines_of(row: dict[str, Any]) -> list[str]:
    """A row of restorations for people."""
    failed = [f"{row['case']}: {row['error']}"] if "error" in row else []
    if "times_faster_than" in row:
        return [*failed, *gpu_restore.lines_of(row)]
    return failed or gpu_growth.lines_of(row)
