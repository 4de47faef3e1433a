"""The part of the GPU report on co-occurrence matrices: time, rate, share of the limit, and what was predicted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from . import peers

Timer = Callable[..., dict[str, float]]
WAYS = ("shared", "packed", "counts", "product")
LIMIT = 16
"""Updates a clock and processor, if each is a load and an increment of shared memory and no lanes meet in a bank."""


class Case(NamedTuple):
    """Gray uint8 images, and what to do with them."""

    content: str
    batch: int
    side: int
    levels: int
    ways: bool = False  # time every way to count

    @property
    def name(self) -> str:
        return f"{self.content}, {self.batch} x {self.side} x {self.side}, {self.levels} levels"


CASES = (
    *(Case("natural", 64, 256, levels, True) for levels in (32, 64, 8, 16, 128, 256)),
    *(Case(content, 64, 256, levels, True) for content in ("flat", "noise") for levels in (32, 128)),
    *(Case("natural", 1, 256, levels) for levels in (32, 256)),
    Case("natural", 4096, 32, 32, True),
    Case("natural", 4096, 16, 8),
    Case("natural", 1, 8192, 32, True),
    Case("natural", 16, 1024, 32),
    Case("mixed", 64, 256, 32),
    *(Case(content, 64, 256, levels) for content in ("flat", "noise") for levels in (8, 64, 256)),
)
"""The most telling first, should time run out."""
LOCAL = ((256, 64, 4), (256, 64, 8), (2048, 64, 16))
"""Side of an image, of its windows, and their stride."""


def inputs(content: str, batch: int, side: int, device: str) -> list[torch.Tensor]:
    """Four sets of gray uint8 images ``[batch, side, side]``; "mixed": photographs, noise and flat ones by turns."""
    from .conftest import photographs

    if content == "natural":
        images = torch.from_numpy(photographs(batch + 3, side))
        return [images[shift : shift + batch].to(device) for shift in range(4)]
    if content == "noise":
        draw = np.random.default_rng(0).integers(0, 256, (4, batch, side, side), dtype=np.uint8)
        return list(torch.from_numpy(draw).to(device))
    if content == "mixed":
        sets = [inputs(kind, batch, side, device) for kind in ("natural", "noise", "flat")]
        kind = torch.arange(batch, device=device)[:, None, None] % 3
        return [torch.where(kind == 0, a, torch.where(kind == 1, b, c)) for a, b, c in zip(*sets, strict=True)]
    return [torch.full((batch, side, side), 40 * shift, dtype=torch.uint8, device=device) for shift in range(4)]


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=3e-7, atol=0)


def _way(way: str, sets: list[torch.Tensor], levels: int, expected: torch.Tensor, time_ms: Timer) -> Any:
    """Time one way to count, whichever is chosen by default; or tell why it does not run."""
    from bdg_fast import mas_glcm
    from bdg_fast.kernels.mas_glcm import triton as backend

    if way == "product" and levels > 32:
        return "does not exist"
    backend.VARIANT = way
    try:
        _close(mas_glcm(sets[0], levels=levels, impl="triton"), expected)
        return time_ms(lambda turn: mas_glcm(sets[turn], levels=levels, impl="triton"))
    except Exception as error:  # told in the report; the other ways are still timed
        return f"{type(error).__name__}: {error}"
    finally:
        backend.VARIANT = None


def processors_and_clock() -> tuple[int, float]:
    """Of the device, the clock in Hz being the highest that it reports; 0 where it reports none."""
    properties = torch.cuda.get_device_properties(0)
    return properties.multi_processor_count, 1e3 * getattr(properties, "clock_rate", 0)


def matrices(
    deadline: float, time_ms: Timer, device: str, keep: Callable[[list[dict[str, Any]]], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time mas_glcm and the batched torch formulations; returns the rows and what there was no time for.

    ``keep`` is called with the rows after each, so that what fails later loses none; a row that fails tells how.
    """
    processors, clock = processors_and_clock()
    rows: list[dict[str, Any]] = []
    left_out = []
    for case in CASES:
        if time.monotonic() > deadline:
            left_out.append(case.name)
            continue
        row: dict[str, Any] = {"case": case.name}
        try:
            _measure(row, case, time_ms, device)
            alone = row["triton"]["ms"] / row["triton"].get("device_ms", row["triton"]["ms"])
            row["share_of_limit"] = alone * row["updates_per_second"] / (LIMIT * processors * clock) if clock else None
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
        keep(rows)
        if "illegal memory access" in row.get("error", ""):  # nothing runs after it
            break
    return rows, left_out


def _measure(row: dict[str, Any], case: Case, time_ms: Timer, device: str) -> None:
    """Check, then time one case into ``row``."""
    from bdg_fast import mas_glcm

    from .predict import predicted_ms

    levels, sets = case.levels, inputs(case.content, case.batch, case.side, device)
    expected = mas_glcm(sets[0][:, None].cpu(), levels=levels, impl="cpu")
    gray = [images[:, None] for images in sets]
    ours = lambda turn: mas_glcm(gray[turn], levels=levels, impl="triton")  # noqa: E731
    _close(ours(0), expected)
    row["updates"] = sets[0].numel() * len(set(peers.OFFSETS))
    row["predicted_ms_on_h100"] = predicted_ms(sets[0].cpu().numpy(), levels)
    row["triton"] = time_ms(ours, graph=True)
    row["updates_per_second"] = row["updates"] / (row["triton"]["ms"] * 1e-3)
    row["host_ms"] = _host_ms(ours)
    if sets[0].numel() <= 1 << 23:
        rgb = [images.float().div(255).expand(-1, 3, -1, -1).contiguous() for images in gray]
        row["triton rgb float32"] = time_ms(
            lambda turn: mas_glcm(rgb[turn], levels=levels, impl="triton", check_finite=False)
        )
    for name, count in {"torch bincount": peers.torch_bincount, "torch scatter": peers.torch_scatter}.items():
        found = peers.torch_mean(count, sets[0], levels)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-8)
        row[name] = time_ms(lambda turn, f=count: peers.torch_mean(f, sets[turn], levels), repeat_ms=60)
        row[name]["host_ms"] = _host_ms(lambda turn, f=count: peers.torch_mean(f, sets[turn], levels), 3)
    # device time against device time where calls wait for nothing, and whole calls against whole calls
    best = min((row["torch bincount"], row["torch scatter"]), key=lambda timing: timing["ms"])
    row["times_faster_than_best_torch"] = best["ms"] / row["triton"]["ms"]
    row["times_faster_in_calls"] = best["host_ms"] / row["host_ms"]
    if case.ways:
        row["ways"] = {way: _way(way, gray, levels, expected, time_ms) for way in WAYS}


def _host_ms(function: Callable[[int], object], calls: int = 20) -> float:
    """Milliseconds of a call, one after the other with one wait at the end."""
    function(0)
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    for turn in range(calls):
        function(turn % 4)
    wait()
    return 1e3 * (time.perf_counter() - start) / calls


def windows(time_ms: Timer, device: str) -> list[dict[str, Any]]:
    """Time local_mas_glcm against cutting the windows out, and scikit-image where it is installed (one in 50)."""
    from bdg_fast import local_mas_glcm, mas_glcm

    rows = []
    for side, window, stride in LOCAL:
        images = [x[:, None] for x in inputs("natural", 1, side, device)]

        def crops(turn: int, x: list[torch.Tensor] = images, w: int = window, s: int = stride) -> torch.Tensor:
            return x[turn].unfold(2, w, s).unfold(3, w, s).reshape(-1, 1, w, w)

        def cut(turn: int, crops: Callable[[int], torch.Tensor] = crops) -> torch.Tensor:
            return mas_glcm(crops(turn), impl="triton")

        def ours(turn: int, x: list[torch.Tensor] = images, w: int = window, s: int = stride) -> torch.Tensor:
            return local_mas_glcm(x[turn], w, s, impl="triton")

        found = ours(0)
        _close(found.flatten(0, 2), cut(0))
        count = found[0, :, :, 0, 0].numel()
        row: dict[str, Any] = {"case": f"windows of {window}, stride {stride}, {side} x {side}: {count}"}
        row["triton"], row["cut out"] = time_ms(ours), time_ms(cut)
        try:
            some = crops(0)[::50, 0].cpu().numpy()
            peers.scikit_image_mean(some[:1], 32)  # imports it
            start = time.perf_counter()
            peers.scikit_image_mean(some, 32)
            row["scikit-image"] = {"ms": 1e3 * (time.perf_counter() - start) / len(some) * count}
        except ImportError:
            pass
        rows.append(row)
    return rows
