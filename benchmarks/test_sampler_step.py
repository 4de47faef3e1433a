"""The reverse step and the forward process on the CPU: our reference against what one writes, checked equal first."""

from __future__ import annotations

import pytest
import torch

from . import steps
from .steps import Case

CASE = Case(4, 256)
STEPS = {
    "bdg_fast reference": lambda: steps.fused_step("step", "cpu"),
    "eager, as the sampler did before": lambda: steps.former_step,
    "eager, least work": lambda: steps.eager_step("step"),
    "torch.compile of least work": lambda: torch.compile(steps.eager_step("step"), dynamic=False),
}
FORWARD = {
    "bdg_fast reference": lambda: steps.fused_forward,
    "eager": lambda: steps.eager_forward,
    "torch.compile": lambda: torch.compile(steps.eager_forward, dynamic=False),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group=f"step: {CASE.name}, both heads, no fresh noise")
def test_step(benchmark, name):  # type: ignore[no-untyped-def]
    images, function = CASE.images(0, "cpu"), STEPS[name]()
    torch.testing.assert_close(function(*images), steps.eager_step("step")(*images), rtol=0, atol=1e-6)
    benchmark.pedantic(function, images, rounds=15, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.benchmark(group=f"forward process: {CASE.name}, noise drawn")
def test_forward(benchmark, name):  # type: ignore[no-untyped-def]
    x_0, x_lq, _ = CASE.images(0, "cpu")
    t, function = torch.tensor([0, 300, 700, 999]), FORWARD[name]()
    table = steps.SCHEDULE.forward_table()
    x_t, noise = function(x_0, x_lq, t, table)
    torch.testing.assert_close(x_t, steps.SCHEDULE.diffuse(x_0, x_lq, noise, t), rtol=0, atol=1e-6)
    benchmark.pedantic(function, (x_0, x_lq, t, table), rounds=7, iterations=1, warmup_rounds=1)
