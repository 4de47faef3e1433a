"""Networks and whole restorations of photographs on the CPU: ours against the published arithmetic, checked equal.

Both sides run in one process, with the allocator as `bdg-fast restore` has it, in turns: before every round of ours the
published arithmetic runs once, as a machine that others use too drifts by a third within minutes. Nothing else may run
meanwhile: two threads that wait for each other double the times.

``python -m benchmarks.condense`` makes a file of results of what ``--benchmark-json`` wrote.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bdg_fast import ResidualSampler, Restorer, UNet
from bdg_fast.memory import keep_freed_memory
from bdg_fast.models.native import NativeUNet

from .networks import SIDE, images, network
from .published import PublishedUNet

ROUNDS = {1: 7, 16: 1}  # sixteen images take up to a minute and a half
keep_freed_memory()

PUBLISHED = "published arithmetic"
NAMES = ["bdg_fast", "bdg_fast, eager"]
if torch.ops.mkldnn._is_mkldnn_bf16_supported():
    NAMES.append("bdg_fast, eager bfloat16")


def forward(name: str, size: str) -> Callable[[Tensor], Tensor]:
    """One evaluation at one time, images in [-1, 1]."""
    make: Any = {PUBLISHED: PublishedUNet, "bdg_fast": NativeUNet}.get(name, UNet.fold)
    model = make(network(size))
    low = torch.bfloat16 if "bfloat16" in name else None

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", low, enabled=low is not None):
            found = model(x, x, torch.tensor([500.0]).expand(len(x))).residual
        return found  # type: ignore[no-any-return]

    return run


def restoration(name: str, size: str) -> Callable[[Tensor], Tensor]:
    """DiffUIR's three steps, pixels in [0, 1]."""
    sampler = ResidualSampler.official(steps=3)
    if name != PUBLISHED:
        low = "bfloat16" in name
        backend, dtype = "native" if name == "bdg_fast" else "eager", "bfloat16" if low else "float32"
        return Restorer(network(size), sampler, device="cpu", dtype=dtype, backend=backend).restore
    published = PublishedUNet(network(size))

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
            x_lq = pixels * 2 - 1
            return (sampler(published, x_lq, x_start=sampler.start(x_lq, noise=noise)) + 1) / 2

    return run


KINDS = {"forward": forward, "restoration": restoration}


@cache
def published(kind: str, size: str, count: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The published arithmetic, what it is given, and what it makes of that; it has run once then."""
    x = images(count) * 2 - 1 if kind == "forward" else images(count)
    run = KINDS[kind](PUBLISHED, size)
    return run, x, run(x)


def in_turns(benchmark: Any, kind: str, name: str, size: str, count: int) -> Tensor:
    """Time ours, and the published arithmetic before each round; returns what of ours differs from it."""
    peer, x, expected = published(kind, size, count)
    run, seconds = KINDS[kind](name, size), []
    far = run(x) - expected  # no first call is timed

    def before() -> None:
        begin = time.perf_counter()
        peer(x)
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(run, (x,), setup=before, rounds=ROUNDS[count])
    ratios = sorted(theirs / ours for theirs, ours in zip(seconds, benchmark.stats.stats.data, strict=True))
    benchmark.extra_info["case"] = name
    benchmark.extra_info[f"{PUBLISHED}, median"] = 1e3 * statistics.median(seconds)
    for what, ratio in (("", statistics.median(ratios)), (", least", ratios[0]), (", most", ratios[-1])):
        benchmark.extra_info[f"times faster{what}"] = ratio
    return far


CASES = [(name, count) for count in ROUNDS for name in NAMES if count == 1 or "eager" not in name]


@pytest.mark.parametrize("size", ["T", "S", "L"])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_forward(benchmark, name, size, count):  # type: ignore[no-untyped-def]
    benchmark.group = f"network {size}: one evaluation, {count} x 3 x {SIDE} x {SIDE}"
    error = in_turns(benchmark, "forward", name, size, count).abs().max().item()
    assert error < (0.2 if "bfloat16" in name else 1e-3)
    benchmark.extra_info["largest difference"] = error


@pytest.mark.parametrize("size", ["T", "S", "L"])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_restoration(benchmark, name, size, count):  # type: ignore[no-untyped-def]
    benchmark.group = f"restoration by network {size}, 3 steps: {count} x 3 x {SIDE} x {SIDE}"
    error = in_turns(benchmark, "restoration", name, size, count).square().mean()
    assert error < 10 ** (-4.5 if "bfloat16" in name else -6)
    benchmark.extra_info["PSNR against the published arithmetic, dB"] = -10 * error.log10().item()
