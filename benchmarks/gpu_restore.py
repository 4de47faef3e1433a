"""The part of the GPU report on restoration: networks and three-step restorations, ours against the published code.

Floors are those of a fused network in bfloat16 on an H100, at 790 TFLOP/s and 3.0 TB/s; predictions are of the same
GPU, written down before anything was measured (benchmarks/notes.md).
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdg_fast import SIZES, ResidualSampler, Restorer, UNet
from bdg_fast.graphs import KEPT, CudaCapture, LoopGraphs

from . import throughput
from .conftest import photographs
from .gpu_report import attempt
from .published import PublishedUNet

Timer = Callable[..., dict[str, float]]
Function = Callable[[Tensor], Tensor]
STEPS, SIDE = 3, 256
FLOOR_MS = {"T": 0.092, "S": 0.107, "B": 0.217, "L": 0.302}
"""Of one evaluation of one 256 x 256 image."""
FLOOR_ASSUMES = "fused, bfloat16, H100: 790 TFLOP/s, 3.0 TB/s"
NAMES = ("published", "published, TF32", "eager bfloat16", "compiled bfloat16", "compiled bfloat16, graph")
PREDICTED_MS = {
    ("T", 1): (5.5, 5.5, 3.0, 0.9, 0.26),
    ("T", 16): (34.0, 21.0, 8.0, 3.3, 3.2),
    ("S", 1): (5.5, 5.5, 3.0, 0.9, 0.28),
    ("S", 16): (42.0, 24.0, 9.0, 3.8, 3.7),
    ("L", 1): (8.5, 5.5, 3.2, 1.0, 0.6),
    ("L", 16): (133.0, 45.0, 22.0, 9.0, 8.8),
}
"""Of one evaluation by :data:`NAMES`; single images but the last are bound by the host that launches."""
LEAST_DB = 45
"""Of pixels in [0, 1], to those of the published code: a residual in [-1, 1] is halved."""
PREDICTED_THROUGHPUT = {"end_to_end": 400.0, "network_only": 1000.0}
"""Images a second of T in batches of 16 with 16 processors, which encode PNG files for most of the time."""
COUNT, THROUGHPUT_BATCH = 960, 16
THROUGHPUT_SIZES = throughput.MIXED[:KEPT]
"""As many as a restorer keeps graphs for, in whole batches: else the network alone would capture while it is timed."""
THROUGHPUT_SECONDS = 90
"""What the end-to-end case takes at least, most of it to make its photographs."""


class Case(NamedTuple):
    """A network and how many images it gets at once."""

    size: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.size}, {self.batch} x {SIDE} x {SIDE}"


CASES = tuple(Case(size, batch) for size in ("T", "L", "S") for batch in (1, 16))


def network(size: str) -> UNet:
    """Of random weights that do not count as fresh."""
    torch.manual_seed(0)
    unet = UNet(SIZES[size])
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1, std=0.1)
    return unet.eval()


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 convolutions and products may round their factors to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def functions(size: str, device: str, kind: str) -> dict[str, Function]:
    """By :data:`NAMES`: pixels in [0, 1] on the device to a residual in [-1, 1] (``"forward"``) or to pixels."""
    sampler = ResidualSampler.official(steps=STEPS)
    restorers = {
        "eager bfloat16": Restorer(network(size), sampler, device=device, dtype="bfloat16", backend="eager"),
        "compiled bfloat16": Restorer(network(size), sampler, device=device, dtype="bfloat16", backend="compiled"),
    }
    published = PublishedUNet(network(size)).to(device)
    times = sampler.network_times(device)

    def evaluated(net: Any) -> Function:
        def run(pixels: Tensor) -> Tensor:
            x = pixels * 2 - 1
            found = net(x, x, times[1].expand(len(x))).residual
            assert isinstance(found, Tensor)
            return found

        return run

    def restored(net: Any, restorer: Restorer) -> Function:
        noise_of = cache(lambda size: restorer._noises(size)[0])  # taken once: a capture cannot wait for its copy

        def run(pixels: Tensor) -> Tensor:
            x_lq = pixels * 2 - 1
            start = sampler.start(x_lq, noise=noise_of(pixels.shape[2:]))
            return (sampler(net, x_lq, x_start=start) + 1) * 0.5

        return run

    found: dict[str, Function] = {}
    plain = evaluated if kind == "forward" else lambda net: restored(net, restorers["eager bfloat16"])
    for name, allowed in (("published", False), ("published, TF32", True)):
        found[name] = _allowing(plain(published), allowed)
    for name, restorer in restorers.items():
        found[name] = evaluated(restorer._network) if kind == "forward" else restored(restorer._network, restorer)
    graphs = LoopGraphs(found["compiled bfloat16"], CudaCapture(torch.device(device)))
    found["compiled bfloat16, graph"] = graphs
    return found


def _allowing(function: Function, allowed: bool) -> Function:
    def run(pixels: Tensor) -> Tensor:
        with tf32(allowed):
            return function(pixels)

    return run


def restore_cases(
    device: str, time_ms: Timer, deadline: float, keep: Callable[[list[dict[str, Any]]], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, each kept at once; a case that fails is told in its row. Also what there was no time for."""
    rows: list[dict[str, Any]] = []
    left_out = []
    for case in CASES:
        for kind in ("forward", "restoration"):
            name = f"{kind}, {case.name}"
            if time.monotonic() > deadline:
                left_out.append(name)
                continue
            row: dict[str, Any] = {"case": name}
            attempt(row, lambda row=row, kind=kind, case=case: _measure(row, kind, case, device, time_ms))
            rows.append(row)
            keep(rows)
            if "illegal memory access" in row.get("error", ""):  # nothing runs after it
                return rows, left_out
    name = f"end to end, {COUNT} photographs"
    if time.monotonic() > deadline - THROUGHPUT_SECONDS:
        return rows, [*left_out, name]
    row = {"case": name}
    attempt(row, lambda: row.update(_end_to_end(device)))
    rows.append(row)
    keep(rows)
    return rows, left_out


@torch.inference_mode()
def _measure(row: dict[str, Any], kind: str, case: Case, device: str, time_ms: Timer) -> None:
    """Check, then time one case into ``row``."""
    evaluations = 1 if kind == "forward" else STEPS
    sets = [_pixels(case.batch, turn).to(device) for turn in range(4)]
    row["floor_ms"] = FLOOR_MS[case.size] * case.batch * evaluations
    row["floor_assumes"] = FLOOR_ASSUMES
    row["decibel"], row["images_per_second"], row["times_faster"], row["share_of_floor"] = {}, {}, {}, {}
    predicted = dict(zip(NAMES, PREDICTED_MS.get(case, ()), strict=False))
    row["predicted_ms_on_h100"] = {name: ms * evaluations for name, ms in predicted.items()}
    expected: Tensor | None = None
    for name, function in functions(case.size, device, kind).items():
        for _ in range(3):  # compiled at the first call, captured at the second
            found = function(sets[0])
        if expected is None:
            expected = found
        else:
            far = (found - expected) * (0.5 if kind == "forward" else 1)
            row["decibel"][name] = -10 * float(far.square().mean().clamp_min(1e-12).log10())
        row[name] = time_ms(lambda turn, f=function: f(sets[turn]), repeat_ms=100)
        seconds = row[name]["ms"] * 1e-3
        row["images_per_second"][name] = case.batch / seconds
        row["times_faster"][name] = row["published"]["ms"] / row[name]["ms"]
        row["share_of_floor"][name] = row["floor_ms"] / row[name]["ms"]
    row["too_far"] = [name for name, found in row["decibel"].items() if not found > LEAST_DB]


def _pixels(batch: int, turn: int) -> Tensor:
    """Gray photographs ``[batch, 3, SIDE, SIDE]`` in [0, 1], others at each turn."""
    gray = torch.from_numpy(photographs(batch + turn, SIDE)[turn:])[:, None].float() / 255
    return gray.expand(-1, 3, -1, -1).contiguous()


def _end_to_end(device: str) -> dict[str, Any]:
    told = ["--device", device, "--count", str(COUNT), "--batch", str(THROUGHPUT_BATCH), "--sizes", *THROUGHPUT_SIZES]
    options: Namespace = throughput.parse(told)
    return {**throughput.throughput(options), "predicted_images_per_second_on_h100": PREDICTED_THROUGHPUT}


def lines_of(row: dict[str, Any]) -> str:
    """A row as lines of text."""
    if "error" in row:
        return f"{row['case']}: {row['error']}"
    if "ratio" in row:
        ours, alone = row["end_to_end"]["images_per_second"], row["network_only"]["images_per_second"]
        predicted = PREDICTED_THROUGHPUT
        return (
            f"{row['case']}: {ours:.0f} images/s (H100 predicted {predicted['end_to_end']:.0f}), network alone "
            f"{alone:.0f} ({predicted['network_only']:.0f}), {row['ratio']:.0%} of it"
        )
    lines = [f"{row['case']}: floor {row['floor_ms']:.3f} ms ({FLOOR_ASSUMES})"]
    for name in NAMES:
        predicted = row["predicted_ms_on_h100"].get(name, float("nan"))
        lines.append(
            f"    {name:26} {row[name]['ms']:9.3f} ms (H100 predicted {predicted:8.3f}) "
            f"{row['images_per_second'][name]:9.0f} images/s {row['times_faster'][name]:6.1f}x "
            f"{row['share_of_floor'][name]:5.0%} of the floor"
            + (f", {row['decibel'][name]:.1f} dB from the published code" if name in row["too_far"] else "")
        )
    return "\n".join(lines)
