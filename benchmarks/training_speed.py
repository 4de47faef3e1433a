"""``python -m benchmarks.training_speed``: images a second of training steps, ours against a plain loop's.

Both do the same work: read crops, degrade them, fingerprints, forward and backward of a stage's whole loss, limited
gradients, AdamW and averaged weights. The plain loop is of the published codes' kind: their arithmetic of the network
(`benchmarks.published`) in NCHW and float32, without compiling, matrices by PyTorch operations, AdamW as PyTorch has
it, weights averaged one after another. It has our data and our degradations, which favours it. Both look at the loss
and the gradient of every step before they update anything, as the trainer does, for which the host waits.

Shares of a step are measured in a second pass that waits for the device after each part, so that they need not add up
to the time of a step where parts overlap. Every degradation is also timed alone, on a whole batch, with the wait: what
share of a step it would be if all images had it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdg_fast import SIZES
from bdg_fast.data.degrade import CDD11, CLEAN, NAMES
from bdg_fast.data.images import bundled_photographs
from bdg_fast.data.loader import Batch
from bdg_fast.files import write_atomically
from bdg_fast.models import Fingerprint
from bdg_fast.training import TrainConfig
from bdg_fast.training.config import CHAIN, Encoder
from bdg_fast.training.data import degraded_pair, open_source
from bdg_fast.training.optim import Average, make_optimizer
from bdg_fast.training.prefetch import prefetched
from bdg_fast.training.settings import as_dict, build
from bdg_fast.training.stages import DEGRADATION, Parts, StageModule, step_seeds

from .gpu_report import attempt
from .peers import available
from .published import PublishedUNet

PARTS = ("data", "degradation", "fingerprint", "forward", "backward", "optimizer")
LOOPS = ("plain", "bdg_fast")
MIXTURES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in NAMES if name != CLEAN},
    CHAIN: (CHAIN,),
    "all of CDD-11": CDD11,
    "all": NAMES,
}
"""Degradations whose cost is measured alone, by name."""
MOST_OF_A_STEP = 0.1
"""That degrading a batch may take on a GPU."""


@dataclass(frozen=True)
class Case:
    """A network and what it is trained on."""

    size: str
    batch: int
    crop: int
    stage: str = "bridging"
    kinds: tuple[str, ...] = ("noise", "blur", "rain", "haze")

    @property
    def name(self) -> str:
        kinds = ", CDD-11" if self.kinds == CDD11 else ""
        return f"{self.size}, {self.stage}, {self.batch} x {self.crop} x {self.crop}{kinds}"


CPU_CASES = (Case("S", 8, 64), Case("S", 8, 64, "restoration"), Case("T", 4, 128))
GPU_CASES = (Case("L", 16, 256), Case("L", 16, 256, "restoration", CDD11), Case("T", 16, 256))


def settings(case: Case, device: str, fast: bool, root: str) -> TrainConfig:
    """Of a run as the trainer takes them; bfloat16 and compiled where that is for GPUs."""
    quick = fast and device != "cpu"
    network = {key: value for key, value in as_dict(SIZES[case.size]).items() if key in ("width", "multipliers")}
    values = {
        "device": device,
        "dtype": "bfloat16" if quick else "float32",
        "compile": quick,
        "network": network,
        "encoder": {"residual": True},
        "optimizer": {} if fast else {"fused": False},
        "data": {"source": "folder", "root": root, "held_out": 0, "degradations": list(case.kinds)},
        "stages": {case.stage: {"coefficients": case.stage, "steps": 1, "batch": case.batch, "crop": case.crop}},
    }
    return build(TrainConfig, values)


class PlainAverage:
    """Averaged weights, a parameter at a time."""

    def __init__(self, unet: nn.Module, decay: float) -> None:
        self.kept = [parameter.detach().clone() for parameter in unet.parameters()]
        self.decay = decay

    def update(self, unet: nn.Module, updates: int) -> None:
        for kept, parameter in zip(self.kept, unet.parameters(), strict=True):
            kept.copy_(kept * self.decay + (1 - self.decay) * parameter.detach())


class Loop:
    """Steps of one case, whole or part by part."""

    def __init__(self, case: Case, device: str, fast: bool, root: str) -> None:
        self.config = config = settings(case, device, fast, root)
        self.device, self.fast = torch.device(device), fast
        self.stage = config.stages[case.stage]
        source = open_source(config.data)
        batches = source.batches(batch=case.batch, crop=case.crop, rank=0, world=1, start=0, seed=0)
        self.batches: Iterator[Batch] = prefetched(batches, self.device) if fast else batches
        self.parts = Parts(config, len(config.data.classes)).to(self.device)
        if fast and device != "cpu":
            self.parts.to(memory_format=torch.channels_last)
        self.module = StageModule(self.parts, config, self.stage, self.device)
        if not fast:
            published = PublishedUNet(self.parts.unet)
            self.module.evaluate = lambda x, t, condition: published(x[:, :3].contiguous(), x[:, 3:].contiguous(), t)
            own = config.encoder
            self.module.fingerprint = Fingerprint(
                own.angles, own.scales, own.levels, residual=own.residual, impl="reference"
            )
        self.used = self.parts.trained(self.stage)
        self.average = (Average if fast else PlainAverage)(self.parts.unet, config.ema)
        self.optimizer = make_optimizer(self.used, config.optimizer, self.stage.lr)
        self.steps = 0
        self.begun: tuple[Tensor, ...] | None = None

    def made(self, step: int, mark: Callable[[str], None] = lambda part: None) -> tuple[Tensor, ...]:
        """What a step reads."""
        batch = next(self.batches)
        mark("data")
        seeds = step_seeds(batch.seeds, step, DEGRADATION)
        pair = degraded_pair(batch, seeds, self.device, self.config.data.degradations)
        mark("degradation")
        return *pair, batch.seeds.to(self.device, non_blocking=self.fast)

    def step(self, mark: Callable[[str], None] | None = None) -> None:
        """One step; ``mark`` is called after each part but the fingerprint, which is one of the forward.

        As the trainer, ours makes what the next step reads before it looks at the loss, unless parts are told apart.
        """
        self.optimizer.zero_grad(set_to_none=True)
        begun, self.begun, apart = self.begun, None, mark is not None
        mark = mark or (lambda part: None)
        given = self.made(self.steps, mark) if begun is None else begun
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            loss = self.module(*given, self.steps)["loss"]
        mark("forward")
        loss.backward()
        mark("backward")
        norm = torch.nn.utils.clip_grad_norm_(self.used.values(), 1.0, foreach=None if self.fast else False)
        if self.fast and not apart:
            self.begun = self.made(self.steps + 1)
        if not all(map(math.isfinite, torch.stack((loss.detach().float(), norm.float())).tolist())):
            raise RuntimeError(f"loss {float(loss)}, gradient {float(norm)}")
        self.optimizer.step()
        self.average.update(self.parts.unet, self.steps)
        mark("optimizer")
        self.steps += 1

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, steps: int) -> float:
        """Seconds of ``steps`` steps."""
        self.wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return time.perf_counter() - began

    def shares(self, steps: int) -> dict[str, float]:
        """Median milliseconds of each part."""
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        last = 0.0

        def mark(part: str) -> None:
            nonlocal last
            self.wait()
            now = time.perf_counter()
            found[part].append(1e3 * (now - last))
            last = now

        inner = self.module.fingerprint.forward

        def measured(images: Tensor) -> Tensor:
            self.wait()
            began = time.perf_counter()
            matrix: Tensor = inner(images)
            self.wait()
            found["fingerprint"].append(1e3 * (time.perf_counter() - began))
            return matrix

        self.module.fingerprint.forward = measured  # type: ignore[method-assign]
        for _ in range(steps):
            self.wait()
            last = time.perf_counter()
            self.step(mark)
        self.module.fingerprint.forward = inner  # type: ignore[method-assign]
        medians = {part: statistics.median(times) for part, times in found.items() if times}
        medians["forward"] -= medians.get("fingerprint", 0.0)
        return medians

    def degradations(self, repeats: int = 3) -> dict[str, float]:
        """Median milliseconds of degrading a batch by each of :data:`MIXTURES`."""
        batch, found = next(self.batches), {}
        for name, kinds in MIXTURES.items():
            times = []
            for turn in range(1 + repeats):  # the first compiles
                seeds = step_seeds(batch.seeds, turn, DEGRADATION)
                self.wait()
                began = time.perf_counter()
                degraded_pair(batch, seeds, self.device, kinds)
                self.wait()
                times.append(1e3 * (time.perf_counter() - began))
            found[name] = statistics.median(times[1:])
        return found


def measure(case: Case, device: str, rounds: int, steps: int, root: str) -> dict[str, Any]:
    """Both loops in turns, so that what else the machine does meets both."""
    loops = {name: Loop(case, device, name == "bdg_fast", root) for name in LOOPS}
    for loop in loops.values():
        loop.timed(2)  # compiles, allocates
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _, name in itertools.product(range(rounds), LOOPS):
        times[name].append(loops[name].timed(steps) / steps)
    row: dict[str, Any] = {"case": case.name}
    for name, loop in loops.items():
        middle = statistics.median(times[name])
        row[name] = {
            "ms": 1e3 * middle,
            "images_per_s": case.batch / middle,
            "spread_ms": [1e3 * min(times[name]), 1e3 * max(times[name])],
            "parts_ms": loop.shares(3),
        }
    own = loops["bdg_fast"].degradations()
    row["degradation"] = {name: {"ms": ms, "share_of_step": ms / row["bdg_fast"]["ms"]} for name, ms in own.items()}
    row["times_faster"] = row["plain"]["ms"] / row["bdg_fast"]["ms"]
    return row


def lines_of(row: dict[str, Any]) -> list[str]:
    """For people."""
    if "error" in row:
        return [f"{row['case']}: {row['error']}"]
    found = [f"{row['case']}: {row['times_faster']:.2f} times as fast as the plain loop"]
    for name in LOOPS:
        one = row[name]
        whole = sum(one["parts_ms"].values())
        shares = ", ".join(f"{part} {value / whole:.1%}" for part, value in one["parts_ms"].items())
        found.append(f"  {name:9} {one['ms']:8.1f} ms, {one['images_per_s']:7.2f} images/s; {shares}")
    alone = {name: one["share_of_step"] for name, one in row["degradation"].items()}
    over = [f"{name} {share:.0%}" for name, share in alone.items() if share > MOST_OF_A_STEP]
    told = ", ".join(f"{name} {share:.1%}" for name, share in alone.items())
    found.append(f"  degrading a batch, of a step: {told}")
    if over:
        found.append(f"  above {MOST_OF_A_STEP:.0%}: {', '.join(over)}")
    return found


def photographs_root() -> str:
    """Where images are read from, as from a folder of one's own."""
    return str(bundled_photographs()[0].parent)


def training_cases(
    device: str,
    cases: Sequence[Case],
    rounds: int,
    steps: int,
    keep: Callable[[list[dict[str, Any]]], None],
    deadline: float = math.inf,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measurements, and what was left out as ``deadline`` (of `time.monotonic`) was past.

    ``keep`` gets what is known after each.
    """
    rows: list[dict[str, Any]] = []
    left_out = []
    root = photographs_root()
    for case in cases:
        if time.monotonic() > deadline:
            left_out.append(f"training, {case.name}")
            continue
        row: dict[str, Any] = {"case": case.name}
        attempt(row, lambda row=row, case=case: row.update(measure(case, device, rounds, steps, root)))
        rows.append(row)
        keep(rows)
    return rows, left_out


def main() -> int:
    """Print the lines; with ``--json`` also write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a round (default 2, on a GPU 20)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cpu = arguments.device == "cpu"
    content: dict[str, Any] = {
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "versions": available("torch", "numba", "triton"),
        "encoder": as_dict(Encoder(residual=True)),
    }

    def keep(rows: list[dict[str, Any]]) -> None:
        print("\n".join(lines_of(rows[-1])), flush=True)
        if arguments.json:
            text = json.dumps({**content, "rows": rows}, indent=1) + "\n"
            write_atomically(arguments.json, lambda file: file.write_text(text, encoding="utf-8"))

    cases = CPU_CASES if cpu else GPU_CASES
    rows, _ = training_cases(arguments.device, cases, arguments.rounds, arguments.steps or (2 if cpu else 20), keep)
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
