"""The part of the GPU report on restoration: networks and three-step restorations, ours against the published code.

Predictions are of an H100, written down before anything was measured (benchmarks/notes.md).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdg_fast import ResidualSampler, Restorer, backends
from bdg_fast.graphs import CudaCapture, LoopGraphs
from bdg_fast.models import Backbone, UNetOutput

from . import networks, verdict
from .gpu_report import attempt
from .published import PublishedUNet
from .verdict import BASELINE, DEFAULTS, OURS

Timer = Callable[..., dict[str, float]]
Function = Callable[[Tensor], Tensor]
Rows = list[dict[str, Any]]
STEPS, SIDE = 3, networks.SIDE
NAMES = (BASELINE, DEFAULTS, "published, TF32", "eager bfloat16", "compiled bfloat16", OURS)
EXACT, STATIC = "compiled float32", "compiled bfloat16, static shapes, graph"
EXTRAS = (EXACT, STATIC)
"""Measured when the rest is: :data:`EXACT` tells what is lost beside low precision, :data:`STATIC` what symbolic sizes
cost."""
PREDICTED_MS = {
    ("T", 1): (5.5, 5.5, 5.5, 3.0, 0.9, 0.26, 1.0, 0.24),
    ("T", 16): (34.0, 22.0, 21.0, 8.0, 3.3, 3.2, 14.0, 2.9),
    ("S", 1): (5.5, 5.5, 5.5, 3.0, 0.9, 0.28, 1.0, 0.26),
    ("S", 16): (42.0, 25.0, 24.0, 9.0, 3.8, 3.7, 19.0, 3.4),
    ("L", 1): (8.5, 5.5, 5.5, 3.2, 1.0, 0.6, 6.0, 0.55),
    ("L", 16): (133.0, 48.0, 45.0, 22.0, 9.0, 8.8, 90.0, 8.0),
}
"""Of one evaluation by :data:`NAMES` and :data:`EXTRAS`; single images without graphs are bound by the host."""
LEAST_DB = {"float32": 60, "bfloat16": 45}
"""Of pixels in [0, 1], to those of the published code in float32: a residual in [-1, 1] is halved."""
LONGEST = 15
"""Kernels that are named."""
PROFILED_CALLS = 3


class Case(NamedTuple):
    """A network and how many images it gets at once."""

    size: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.size}, {self.batch} x {SIDE} x {SIDE}"


CASES = tuple(Case(size, batch) for size in ("T", "L", "S") for batch in (1, 16))
KINDS = {"forward": 1, "restoration": STEPS}
"""With evaluations of the network."""


def settle_precision() -> None:
    """Have float32 products be named as leaving :func:`tf32` leaves them: their name is part of what is compiled."""
    with tf32(False, False):
        pass


@contextlib.contextmanager
def tf32(convolutions: bool, products: bool) -> Iterator[None]:
    """Whether float32 convolutions and products may round their factors to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


ROUNDED = {BASELINE: (False, False), DEFAULTS: (True, False), "published, TF32": (True, True), EXACT: (False, False)}
"""Convolutions, products. Everything else as PyTorch has it."""


class Static:
    """A network compiled for one size at a time."""

    def __init__(self, unet: Backbone, dtype: torch.dtype) -> None:
        """Of a piece of code that Dynamo counts alone."""
        self.unet, self.dtype = backends.rounded(unet, dtype), dtype
        code = backends._evaluate.__code__.replace(co_name="evaluate_static")
        evaluate = FunctionType(code, backends._evaluate.__globals__)
        self.evaluate = torch.compile(evaluate, fullgraph=True, dynamic=False)

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        """Of sizes that need no padding."""
        x = self.unet.joined(x_t, x_lq)
        residual, noise = self.evaluate(self.unet, x, self.unet.times(time, len(x)).clone(), None, self.dtype)
        return UNetOutput(residual, noise, x_t.new_zeros(0))


class Ways:
    """To evaluate one network, and to restore with it; made when asked for, by name."""

    def __init__(self, size: str, device: str) -> None:
        self.size, self.device, self.sampler = size, device, ResidualSampler.official(steps=STEPS)
        self.restorer = cache(self._restorer)
        self.network = cache(self._network)

    @torch.inference_mode(False)  # as a user has it: Dynamo tells tensors of that mode from others
    def _restorer(self, dtype: str, backend: str) -> Restorer:
        unet = networks.network(self.size)
        return Restorer(unet, self.sampler, device=self.device, dtype=dtype, backend=backend)

    @torch.inference_mode(False)
    def _network(self, name: str) -> Any:
        if name == BASELINE:
            return PublishedUNet(networks.network(self.size)).to(self.device)
        if "static" in name:
            return Static(self.restorer("bfloat16", "eager").unet, torch.bfloat16)
        backend, dtype = name.split()
        return self.restorer(dtype, backend)._network

    def function(self, name: str, kind: str) -> Function:
        """Pixels in [0, 1] on the device to a residual in [-1, 1] (``"forward"``) or to pixels (``"restoration"``)."""
        if name.endswith(", graph"):
            return LoopGraphs(self.function(name.removesuffix(", graph"), kind), CudaCapture(torch.device(self.device)))
        network = self.network(BASELINE if name.startswith(BASELINE) else name)
        times, noises = self.sampler.network_times(self.device), self.restorer("bfloat16", "eager")._noises
        noise_of = cache(lambda size: noises(size)[0])  # taken once: a capture cannot wait for its copy

        def run(pixels: Tensor) -> Tensor:
            x_lq = pixels * 2 - 1
            with tf32(*ROUNDED[name]) if name in ROUNDED else contextlib.nullcontext():
                if kind == "restoration":
                    start = self.sampler.start(x_lq, noise=noise_of(pixels.shape[2:]))
                    return (self.sampler(network, x_lq, x_start=start) + 1) * 0.5
                found: Tensor = network(x_lq, x_lq, times[1].expand(len(x_lq))).residual
            return found.clamp(-1, 1)  # as the sampler takes it

        return run


class Task(NamedTuple):
    """What fills a row, the seconds that it takes at least, and in what ways, where others fill the row too."""

    name: str
    measure: Callable[[dict[str, Any]], None]
    seconds: float = 0
    ways: str = ""


def run_tasks(tasks: Sequence[Task], deadline: float, content: dict[str, Any], keep: Callable[[], object]) -> list[str]:
    """Into the rows ``content["restore"]``, each kept at once; one that fails is told in its row.

    Returns:
        What there was no time for.
    """
    left_out = []
    for number, task in enumerate(tasks):
        if time.monotonic() > deadline - task.seconds:
            left_out.append(task.name + task.ways)
            continue
        before = [row for row in content["restore"] if row["case"] == task.name]  # other ways of the same case
        row: dict[str, Any] = copy.deepcopy(before[0]) if before else {"case": task.name}
        attempt(row, lambda row=row, task=task: task.measure(row))
        content["kernels"] = [*content["kernels"], *row.pop("kernels", [])]
        content["restore"] = [row if old in before else old for old in content["restore"]] + [row] * (not before)
        keep()
        if "illegal memory access" in row.get("error", ""):  # nothing runs after it
            return [*left_out, *(later.name + later.ways for later in tasks[number + 1 :])]
    return left_out


class Measurements:
    """Of the cases; what they share."""

    def __init__(self, device: str, time_ms: Timer, copy_bytes_per_second: float | None) -> None:
        self.device, self.time_ms, self.copy = device, time_ms, copy_bytes_per_second
        self.ways = cache(lambda size: Ways(size, device))

    def tasks(self, cases: Sequence[Case], names: Sequence[str] = NAMES) -> list[Task]:
        """To measure forward and restoration of ``cases`` in ``names``' ways; a case has one row for all of them."""

        def measured(case: Case, kind: str) -> Task:
            ways = "" if BASELINE in names else f": {', '.join(names)}"
            return Task(f"{kind}, {case.name}", lambda row: self.measure(row, kind, case, names), ways=ways)

        return [measured(case, kind) for case in cases for kind in KINDS]

    @torch.inference_mode()
    def measure(self, row: dict[str, Any], kind: str, case: Case, names: Sequence[str]) -> None:
        """Check, then time one case into ``row``."""
        evaluations = KINDS[kind]
        sets = [pixels(case.batch, turn, self.device) for turn in range(4)]
        row |= {"group": "restoration", "decibel": row.get("decibel", {})}
        row |= {"images_per_second": row.get("images_per_second", {})}
        row |= verdict.floors(case.size, case.batch * evaluations, self.copy)
        predicted = dict(zip((*NAMES, *EXTRAS), PREDICTED_MS.get(case, ()), strict=False))
        row["predicted_ms_on_h100"] = {name: ms * evaluations for name, ms in predicted.items()}
        expected = self.ways(case.size).function(BASELINE, kind)(sets[0])
        failed: dict[str, str] = {}
        for name in names:
            told: dict[str, Any] = {}
            attempt(told, lambda name=name: self._time(row, kind, case, name, sets, expected))
            if told:
                failed[name] = told["error"]
        verdict.judge(row, case.batch, LEAST_DB)
        if failed:
            raise RuntimeError("; ".join(f"{name}: {error}" for name, error in failed.items()))

    def _time(
        self, row: dict[str, Any], kind: str, case: Case, name: str, sets: list[Tensor], expected: Tensor
    ) -> None:
        """One way; an image of the baseline is expected."""
        function = self.ways(case.size).function(name, kind)
        for _ in range(3):  # compiled at the first call, captured at the second
            found = function(sets[0])
        if name != BASELINE:
            far = (found - expected) * (0.5 if kind == "forward" else 1)
            row["decibel"][name] = -10 * float(far.square().mean().clamp_min(1e-12).log10())
        row[name] = self.time_ms(lambda turn: function(sets[turn]), repeat_ms=100)
        row["images_per_second"][name] = case.batch / (verdict.call_ms(row[name]) * 1e-3)
        if isinstance(function, LoopGraphs) and not function._graphs:
            raise RuntimeError("was not captured, and ran without a graph")

    def kernels(self, case: Case) -> Task:
        """What one evaluation of the compiled network launches, into ``row["kernels"]``."""

        name, way = f"kernels of the compiled network, {case.name}", "compiled bfloat16"

        @torch.inference_mode()
        def measure(row: dict[str, Any]) -> None:
            function, given = self.ways(case.size).function(way, "forward"), pixels(case.batch, 0, self.device)
            function(given)
            found = launches(lambda: function(given), self.device)
            row |= {"group": "launches", **summed(found)}
            row["kernels"] = [{"group": name, **each} for each in found[:LONGEST]]

        return Task(name, measure)


def launches(function: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """Kernels of a call with their number and device time, the longest first; on a CPU: operations."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.device(device).type == "cuda"
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        for _ in range(PROFILED_CALLS):
            function()
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in profiler.key_averages():
        if event.device_type == getattr(torch.autograd.DeviceType, "CUDA" if on_gpu else "CPU"):
            us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            each = {"kernel": event.key[:120], "count": event.count / PROFILED_CALLS, "ms": us * 1e-3 / PROFILED_CALLS}
            found.append(each)
    return sorted(found, key=lambda each: -each["ms"])


def summed(found: Rows) -> dict[str, float]:
    """Of all kernels of a call."""
    return {"launches": sum(each["count"] for each in found), "device_ms": sum(each["ms"] for each in found)}


def pixels(batch: int, turn: int, device: str) -> Tensor:
    """Photographs ``[batch, 3, SIDE, SIDE]`` in [0, 1], others at each turn."""
    return networks.images(batch + turn, SIDE)[turn:].to(device)


def lines_of(row: dict[str, Any]) -> list[str]:
    """A row of a case for people."""
    own = f", {row['floor_by_own_copy_ms']:.3f} by this card's copy" if "floor_by_own_copy_ms" in row else ""
    lines = [f"{row['case']}: floor {row['floor_ms']:.3f} ms ({verdict.ASSUMES}){own}"]
    for name in row["images_per_second"]:
        predicted = row["predicted_ms_on_h100"].get(name, float("nan"))
        faster = [row["times_faster_than"].get(base, {}).get(name, float("nan")) for base in (BASELINE, DEFAULTS)]
        lines.append(
            f"    {name:38} {row[name]['ms']:9.3f} ms (H100 predicted {predicted:8.3f}) "
            f"{row['images_per_second'][name]:8.0f} images/s {faster[0]:6.1f}x ({faster[1]:.1f}x of defaults) "
            f"{row['share_of_floor'][name]:5.0%} of the floor"
            + (f", {row['decibel'][name]:.1f} dB from the published code" if name in row["too_far"] else "")
        )
    return lines
