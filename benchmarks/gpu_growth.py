"""The part of the GPU report on how restoration grows: folders, batches, pictures, and the network that comes along."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from bdg_fast import ResidualSampler, Restorer
from bdg_fast.graphs import KEPT

from . import networks, throughput
from .gpu_restore import SIDE, Task, Timer, launches, pixels, summed

PREDICTED_THROUGHPUT = {"end_to_end": 400.0, "network_only": 1000.0}
"""Images a second of T in batches of 16 with 16 processors of an H100's machine, which encode PNG files mostly."""
COUNT, THROUGHPUT_BATCH = 960, 16
THROUGHPUT_SIZES = throughput.MIXED[:KEPT]
"""As many as a restorer keeps graphs for, in whole batches: else the network alone would capture while it is timed."""
THROUGHPUT_SECONDS = 30
"""What the end-to-end case takes at least, most of it to find what is compiled and to capture."""
BATCHES = (1, 2, 4, 8, 16, 32)
MEGAPIXELS = (1.0, 4.0, 16.0, 64.0)
SMALL_BATCHES = (1, 16)


def end_to_end(device: str) -> Task:
    """The command over a folder against its network alone."""

    def measure(row: dict[str, Any]) -> None:
        told = ["--device", device, "--count", str(COUNT), "--batch", str(THROUGHPUT_BATCH)]
        options = throughput.parse([*told, "--sizes", *THROUGHPUT_SIZES])
        row |= {"group": "end to end", **throughput.throughput(options)}
        row["predicted_images_per_second_on_h100"] = PREDICTED_THROUGHPUT

    return Task(f"end to end, {COUNT} photographs", measure, THROUGHPUT_SECONDS)


@cache
@torch.inference_mode(False)
def small_restorer(device: str) -> Restorer:
    """The network that comes along, as a user has it who asks for nothing."""
    return Restorer.from_pretrained(device=device)


def how(restorer: Restorer) -> dict[str, str]:
    """What evaluates: where nobody asked for a compiler, one that fails is only warned of."""
    failed = getattr(restorer._network, "_failed", False)
    return {"backend": "eager, as compiling failed" if failed else restorer.backend}


def small(batch: int, device: str, time_ms: Timer) -> Task:
    """The network that comes along; what it is told of, which is found outside of its graph, also alone."""

    @torch.inference_mode()
    def measure(row: dict[str, Any]) -> None:
        restorer, sets = small_restorer(device), [pixels(batch, turn, device) for turn in range(4)]
        for _ in range(3):
            restorer._restore(sets[0])
        row |= {"group": "the network that comes along", "steps": restorer.sampler.steps, **how(restorer)}
        row["restored"] = time_ms(lambda turn: restorer._restore(sets[turn]), repeat_ms=100)
        row["told"] = time_ms(lambda turn: restorer.told(sets[turn]), repeat_ms=60)
        row["images_per_second"] = batch / (row["restored"]["ms"] * 1e-3)
        row["share_of_told"] = row["told"]["ms"] / row["restored"]["ms"]
        row["told"] |= summed(launches(lambda: restorer.told(sets[0]), device))

    return Task(f"comes along, {batch} x {SIDE} x {SIDE}", measure)


def growth(device: str, time_ms: Timer) -> list[Task]:
    """T in growing batches, then in growing pictures."""

    @cache
    @torch.inference_mode(False)
    def restorer(steps: int) -> Restorer:
        return Restorer(networks.network("T"), ResidualSampler.official(steps=steps), device=device)

    @torch.inference_mode()
    def batches(row: dict[str, Any], batch: int) -> None:
        sets = [pixels(batch, turn, device) for turn in range(4)]
        restorer(3)._restore(sets[0])
        forget_peak(device)  # what is captured at the second call counts; repeating it takes nothing anew
        for _ in range(2):
            restorer(3)._restore(sets[0])
        row |= {"group": "growth with the batch", "batch": batch, **how(restorer(3)), **peak(device)}
        row["restored"] = time_ms(lambda turn: restorer(3)._restore(sets[turn]), repeat_ms=100)
        row["images_per_second"] = batch / (row["restored"]["ms"] * 1e-3)

    def pictures(row: dict[str, Any], megapixels: float) -> None:
        width, height = throughput.sides(megapixels)
        image = throughput.photograph(0, width, height)
        seconds = []
        for _ in range(2):  # what is compiled or chosen by the first is there at the second
            forget_peak(device)
            began = time.perf_counter()
            restored = restorer(1)(image)
            seconds.append(time.perf_counter() - began)
        assert restored.size == (width, height)
        row |= {"group": "growth with the picture", "width": width, "height": height, "steps": 1}
        row |= {"megapixels": width * height / 1e6, "first_seconds": seconds[0], "seconds": seconds[1]}
        row |= {"seconds_per_megapixel": seconds[1] / row["megapixels"], **peak(device)}

    return [
        *(Task(f"restoration, T, batch of {n}", lambda row, n=n: batches(row, n)) for n in BATCHES),
        *(Task(f"a picture of {n:g} MP, T, one step", lambda row, n=n: pictures(row, n)) for n in MEGAPIXELS),
    ]


def forget_peak(device: str) -> None:
    """Peaks from here on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, int]:
    """Bytes that tensors have held at most on the device; nothing is known of a CPU."""
    return {"device_peak_bytes": torch.cuda.max_memory_allocated()} if torch.device(device).type == "cuda" else {}


def lines_of(row: dict[str, Any]) -> list[str]:
    """A row for people, of those here."""
    case = row["case"]
    memory = f", at most {row['device_peak_bytes'] / 1e6:.0f} MB" if "device_peak_bytes" in row else ""
    if "ratio" in row:
        ours, alone = row["end_to_end"]["images_per_second"], row["network_only"]["images_per_second"]
        predicted = PREDICTED_THROUGHPUT
        return [
            f"{case}: {ours:.0f} images/s (H100 predicted {predicted['end_to_end']:.0f}), network alone "
            f"{alone:.0f} ({predicted['network_only']:.0f}), {row['ratio']:.0%} of it"
        ]
    if "told" in row:
        told = row["told"]
        return [
            f"{case}: {row['restored']['ms']:.3f} ms, {row['images_per_second']:.0f} images/s, {row['backend']}; "
            f"of it what the network is told {told['ms']:.3f} ms ({row['share_of_told']:.0%}), "
            f"{told['launches']:.0f} launches"
        ]
    if "batch" in row:
        return [
            f"{case}: {row['restored']['ms']:.3f} ms, {row['images_per_second']:.0f} images/s, {row['backend']}{memory}"
        ]
    if "megapixels" in row:
        return [f"{case}: {row['seconds']:.3f} s, {row['seconds_per_megapixel']:.4f} s/MP{memory}"]
    return [f"{case}: {row['launches']:.0f} launches, {row['device_ms']:.3f} ms on the device"]
