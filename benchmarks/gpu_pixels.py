"""The part of the GPU report on kernels that touch each pixel once: time, and share of a copy's bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from . import steps
from .steps import Case

CASES = (
    Case(1, 256),
    Case(16, 256),
    Case(16, 1024),
    Case(16, 1024, last=True),
    Case(16, 1024, torch.bfloat16),
    Case(16, 1024, torch.bfloat16, last=True),
)
COMPILED = "torch.compile"
Timer = Callable[..., dict[str, float]]


def pixel_cases(device: str, time_ms: Timer, copy_bytes_per_second: float) -> list[dict[str, Any]]:
    """Time sampler_step and forward_process against eager PyTorch and `torch.compile`, checked equal first."""
    rows = []
    for case in CASES:
        sets = [case.images(seed, device) for seed in range(4)]
        close = {"rtol": 2 * torch.finfo(case.dtype).eps, "atol": 8 * torch.finfo(case.dtype).eps}
        for kind in steps.ETA:
            eager = steps.eager_step(kind)
            found = steps.fused_step(kind, device, "triton")(*sets[0])
            torch.testing.assert_close(found, steps.fused_step(kind, device, "reference")(*sets[0]), **close)
            if not steps.ETA[kind]:
                exact = eager(*(image.float() for image in sets[0])).to(case.dtype)
                torch.testing.assert_close(found, exact, **close)
            functions = {
                "triton": steps.fused_step(kind, device, "triton"),
                "torch eager": eager,
                COMPILED: compiled(eager),
            }
            rows.append(_row(kind, case, 5, functions, sets, time_ms, copy_bytes_per_second))
        table = steps.SCHEDULE.forward_table(device)
        t = torch.arange(case.batch, device=device) * 37
        pairs = [[x_0, x_lq, t, table] for x_0, x_lq, _ in sets]
        found, noise = steps.fused_forward(*pairs[0])
        exact = steps.SCHEDULE.diffuse(sets[0][0].float(), sets[0][1].float(), noise.float(), t).to(case.dtype)
        torch.testing.assert_close(found, exact, **close)
        functions = {
            "triton": steps.fused_forward,
            "torch eager": steps.eager_forward,
            COMPILED: compiled(steps.eager_forward),
        }
        rows.append(_row("forward, noise drawn", case, 4, functions, pairs, time_ms, copy_bytes_per_second))
    return rows


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """By `torch.compile`, of code of its own: after a few graphs of one piece of code the rest run eagerly."""
    own = FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)
    return torch.compile(own, dynamic=False)


def graphs_compiled() -> int:
    """In this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _row(
    kind: str,
    case: Case,
    images: int,
    functions: dict[str, Callable[..., object]],
    sets: list[list[Any]],
    time_ms: Timer,
    copy_bytes_per_second: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": f"{kind}, {case.name}", "bytes": case.bytes_of(images)}
    for name, function in functions.items():
        before = graphs_compiled()
        row[name] = time_ms(lambda turn, f=function: f(*sets[turn]), repeat_ms=60, graph=name == "triton")
        if name == COMPILED and graphs_compiled() == before:
            row["peer"] = "was not compiled, and ran eagerly"
    alone = row["triton"].get("device_ms", row["triton"]["ms"])
    row["share_of_copy"] = row["bytes"] / (alone * 1e-3) / copy_bytes_per_second
    return row
