"""``python -m benchmarks.throughput``: `bdg-fast restore` over a folder against its network alone, on CPU or GPU.

A folder of photographs of mixed sizes, JPEG and PNG, is made and restored by the command itself, reading and writing
included. Then the network alone restores pixels of the same shapes in the same batches and order, already decoded and
on the device. With ``--growth`` single images of growing size tell how time and memory grow, with ``--batches`` batches
of images of 256 x 256.

Weights are random where no checkpoint is given: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from bdg_fast import SIZES, Restorer
from bdg_fast.backends import BACKENDS
from bdg_fast.cli import main as bdg_fast_command
from bdg_fast.data.images import bundled_photographs
from bdg_fast.restorer import DTYPES

from .gpu_report import write_json
from .networks import SIDE, images, network
from .peers import available

MIXED = ("256x256", "320x240", "240x320", "384x256", "512x384")
MEGAPIXELS = (0.25, 1.0, 4.0, 16.0, 64.0)
BATCH_ROUNDS = 3
WARM_UP = 2  # batches of each size: a graph is captured when a shape comes again


def photograph(index: int, width: int, height: int) -> Image.Image:
    """A bundled photograph, resized to cover ``width x height`` and cropped at a place that ``index`` tells."""
    paths = bundled_photographs()
    with Image.open(paths[index % len(paths)]) as file:
        image = file.convert("RGB")
    scale = max(width / image.width, height / image.height) * (1 + index % 3 / 10)
    image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
    left, top = (image.width - width) * (index % 7) // 7, (image.height - height) * (index % 5) // 5
    return image.crop((left, top, left + width, top + height))


def make_photographs(folder: Path, count: int, sizes: Sequence[str]) -> None:
    """``count`` files in ``folder``: sizes in turn, every third a PNG; the same ones at every call."""
    folder.mkdir(parents=True, exist_ok=True)

    def make(index: int) -> None:
        width, height = map(int, sizes[index % len(sizes)].split("x"))
        image = photograph(index, width, height)
        if index % 3:
            image.save(folder / f"{index:06d}.jpg", quality=90)
        else:
            image.save(folder / f"{index:06d}.png", compress_level=3)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))


def make_checkpoint(folder: Path, size: str) -> Path:
    """A network of random weights that does not count as fresh."""
    network(size).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def recorded(shapes: list[tuple[int, ...]], examples: dict[tuple[int, ...], Tensor]) -> Iterator[None]:
    """Note what restorers are given meanwhile: every shape in turn, and the pixels of one batch of each."""
    begin = Restorer._begin_restore

    def noting(self: Restorer, pixels: Tensor, *keep: Any) -> Any:
        shapes.append(tuple(pixels.shape))
        examples.setdefault(shapes[-1], pixels)
        return begin(self, pixels, *keep)

    with patch.object(Restorer, "_begin_restore", noting):
        yield


def run_command(source: Path, target: Path, checkpoint: Path, options: argparse.Namespace) -> dict[str, float]:
    """Restore a folder as a user does; seconds and images a second, as the command tells, and seconds of all of it."""
    arguments = ["restore", str(source), str(target), "--checkpoint", str(checkpoint), "--force"]
    for name in ("device", "dtype", "backend", "batch", "steps", "tile"):
        if getattr(options, name) is not None:
            arguments += [f"--{name}", str(getattr(options, name))]
    told, begin = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(told):
        code = bdg_fast_command(arguments)
    seconds = time.perf_counter() - begin
    found = re.search(r"(\d+) of (\d+) images, ([\d.]+) images/s", told.getvalue())
    if code or found is None or found[1] != found[2]:
        raise RuntimeError(f"bdg-fast restore failed with exit code {code}: {told.getvalue()}")
    return {
        "images": int(found[1]),
        "images_per_second": float(found[3]),
        "command_seconds": seconds,
        "command_images_per_second": int(found[1]) / seconds,
    }


def run_network(
    restorer: Restorer, shapes: Sequence[tuple[int, ...]], examples: dict[tuple[int, ...], Tensor]
) -> dict[str, float]:
    """Restore pixels of ``shapes`` in turn, on the device before and after; warmed up."""
    there = {shape: pixels.to(restorer.device) for shape, pixels in examples.items()}
    with torch.inference_mode():
        for _ in range(WARM_UP):
            for pixels in there.values():
                restorer._restore(pixels)
        _wait(restorer.device)
        begin = time.perf_counter()
        for shape in shapes:
            restorer._restore(there[shape])
        _wait(restorer.device)
    seconds = time.perf_counter() - begin
    images = sum(shape[0] for shape in shapes)
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_restorer(checkpoint: Path, options: argparse.Namespace) -> Restorer:
    """As the command makes it."""
    names = ("device", "dtype", "backend", "tile", "steps")
    return Restorer.from_pretrained(checkpoint, **{name: getattr(options, name) for name in names})


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the command and of its network alone, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(options.checkpoint) if options.checkpoint else make_checkpoint(folder / "model", options.size)
        few = min(options.count, WARM_UP * options.batch * len(options.sizes))
        _told(f"making {few + options.count} photographs")
        make_photographs(folder / "few", few, options.sizes)
        make_photographs(folder / "photographs", options.count, options.sizes)
        _told(f"restoring {few}, to warm up")
        run_command(folder / "few", folder / "warm", checkpoint, options)  # compiles, and reads what is read once
        shapes: list[tuple[int, ...]] = []
        examples: dict[tuple[int, ...], Tensor] = {}
        _told(f"restoring {options.count}")
        with recorded(shapes, examples):
            whole = run_command(folder / "photographs", folder / "restored", checkpoint, options)
        _told(f"{whole['images_per_second']:.2f} images/s; the network alone")
        restorer = make_restorer(checkpoint, options)
        alone = run_network(restorer, shapes, examples)
    return {
        **described(restorer, options),
        "count": options.count,
        "sizes": list(options.sizes),
        "batches": len(shapes),
        "end_to_end": whole,
        "network_only": alone,
        "ratio": whole["images_per_second"] / alone["images_per_second"],
    }


def _told(what: str) -> None:
    """Where it is: some of it takes an hour on a CPU."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def described(restorer: Restorer, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured on what."""
    on_gpu = restorer.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(restorer.device) if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **available("torch", "triton", "numpy", "pillow")},
        "network": options.checkpoint or options.size,
        "backend": restorer.backend,
        "dtype": str(restorer.dtype).removeprefix("torch."),
        "steps": options.steps,
        "batch": options.batch,
        "tile": options.tile,
    }


def sides(megapixels: float) -> tuple[int, int]:
    """Width and height, 4 to 3."""
    height = max(16, round((megapixels * 1e6 * 3 / 4) ** 0.5))
    return max(16, round(megapixels * 1e6 / height)), height


def grow_batches(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Images a second and peak memory of warm batches of 256 x 256, of growing numbers, all in this process.

    Peaks never fall: a smaller batch after a larger one would have that one's. Failures are told, and end it: what runs
    out of memory once is not tried with more.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(options.checkpoint) if options.checkpoint else make_checkpoint(folder / "model", options.size)
        restorer = make_restorer(checkpoint, options)
    for batch in sorted(set(options.batches)):
        pixels, row = images(batch), {**described(restorer, options), "case": f"{batch} x {SIDE} x {SIDE}"}
        row |= {"batch": batch, "peak_bytes_before": peak_memory()}
        try:
            restorer.restore(pixels)
            seconds = statistics.median(_seconds(restorer, pixels) for _ in range(BATCH_ROUNDS))
        except (RuntimeError, MemoryError) as error:
            yield {**row, "error": f"{type(error).__name__}: {error}"}
            return
        row |= {"seconds": seconds, "images_per_second": batch / seconds, "peak_bytes": peak_memory()}
        if restorer.device.type == "cuda":
            row["device_peak_bytes"] = torch.cuda.max_memory_allocated(restorer.device)
        yield row


def _seconds(restorer: Restorer, pixels: Tensor) -> float:
    """Of a call, which waits for its results."""
    begin = time.perf_counter()
    restorer.restore(pixels)
    return time.perf_counter() - begin


def grow_one(megapixels: float, options: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of one image of so many megapixels, in this process; the first call warms up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(options.checkpoint) if options.checkpoint else make_checkpoint(folder / "model", options.size)
        restorer = make_restorer(checkpoint, options)
    width, height = sides(megapixels)
    image = photograph(0, width, height)
    restorer(photograph(1, min(width, 64), min(height, 64)))
    before, begin = peak_memory(), time.perf_counter()
    restored = restorer(image)
    seconds = time.perf_counter() - begin
    assert restored.size == (width, height)
    row = {"width": width, "height": height, "megapixels": width * height / 1e6, "seconds": seconds}
    row |= {"seconds_per_megapixel": seconds / row["megapixels"]}
    row |= {"peak_bytes": peak_memory(), "peak_bytes_before": before, "pixels_bytes": width * height * 3 * 4}
    if restorer.device.type == "cuda":
        row["device_peak_bytes"] = torch.cuda.max_memory_allocated(restorer.device)
    return {**described(restorer, options), **row}


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each size, each from a process of its own, as peaks of memory never fall; failures are told."""
    for megapixels in options.megapixels:
        command = [sys.executable, "-m", "benchmarks.throughput", "--growth-of", str(megapixels)]
        for name in ("device", "dtype", "backend", "tile", "steps", "size", "checkpoint"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
        if done.returncode:
            told = done.stderr.strip().splitlines()
            yield {"megapixels": megapixels, "error": told[-1] if told else f"exit code {done.returncode}"}
        else:
            yield dict(json.loads(done.stdout))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; bad values end it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), default="T", help="of a network of random weights (default T)")
    parser.add_argument("--checkpoint", help="trained weights instead")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--count", type=int, default=1000, help="photographs (default 1000)")
    parser.add_argument("--sizes", nargs="+", default=MIXED, metavar="WxH", help=f"default {' '.join(MIXED)}")
    parser.add_argument("--growth", action="store_true", help="single images of growing size instead")
    parser.add_argument("--megapixels", nargs="+", type=float, default=MEGAPIXELS, help="of --growth")
    parser.add_argument("--batches", nargs="+", type=int, help=f"numbers of images of {SIDE} x {SIDE} at once instead")
    parser.add_argument("--growth-of", type=float, help="one of them, in this process")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if options.batches and min(options.batches) < 1:
        parser.error(f"--batches must be at least 1, got {min(options.batches)}")
    for size in options.sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            parser.error(f"--sizes must be WxH, as 320x240, got {size}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print JSON, and write it where ``--out`` tells, as soon as there is something to keep."""
    options = parse(arguments)
    if options.growth or options.batches:
        rows: list[dict[str, Any]] = []
        for row in growth(options) if options.growth else grow_batches(options):
            rows.append(row)
            if options.out:
                write_json(options.out, {"growth": rows})
        result: dict[str, Any] = {"growth": rows}
    else:
        result = throughput(options) if options.growth_of is None else grow_one(options.growth_of, options)
        if options.out:
            write_json(options.out, result)
    print(json.dumps(result, indent=1))
    return 1 if any("error" in row for row in result.get("growth", ())) else 0


if __name__ == "__main__":
    raise SystemExit(main())
