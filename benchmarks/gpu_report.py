"""``python -m benchmarks.gpu_report``: GPU tests, then benchmarks with their peers, into one JSON file.

Times are medians of CUDA-event timings (`triton.testing.do_bench`), over input sets that rotate so that no
case lives in the cache alone. Nothing is fetched; peers that are not installed are named in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bdg_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DEVICE, SIDE = "cuda", 256
SOFT_CASES = ((8, 32), (1, 32))
TIMEOUT_TESTS = 240
# test_glcm_oracle skips itself without scikit-image
GPU_FILES = ("gpu", "gpu_sampler", "noise", "triton", "soft", "local", "glcm_errors", "glcm_oracle")
GPU_TESTS = tuple(f"tests/test_{name}.py" for name in GPU_FILES)
RESTORER_TESTS = ("tests/test_gpu_restorer.py",)
TRAINING_TESTS = ("tests/test_gpu_training.py", "tests/test_degrade.py")
PARTS = ("glcm", "restore", "training")
"""``"glcm"``: matrices, windows and what touches each pixel once; ``"restore"``: networks, most of it compiling;
``"training"``: steps."""


def run_tests(seconds: float, files: Sequence[str] = GPU_TESTS) -> dict[str, Any]:
    """Run the tests marked ``gpu`` in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        output, code = (expired.stdout or b"").decode(errors="replace"), -1
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", output)}
    return {"exit_code": code, **counts, "seconds": round(time.monotonic() - start, 1), "tail": output[-3000:]}


def time_ms(function: Callable[[int], object], sets: int = 4, repeat_ms: int = 150) -> dict[str, float]:
    """Median and spread in milliseconds of ``function(turn)``, which picks one of ``sets`` inputs by ``turn``."""
    from triton.testing import do_bench

    turn = [0]

    def call() -> None:
        turn[0] = (turn[0] + 1) % sets
        function(turn[0])

    low, median, high = do_bench(call, warmup=40, rep=repeat_ms, quantiles=[0.2, 0.5, 0.8])
    return {"ms": median, "p20": low, "p80": high}


def copy_bandwidth() -> float:
    """Bytes read and written per second by a large device-to-device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_ms(lambda _: target.copy_(source))["ms"] * 1e-3)


def soft_cases() -> list[dict[str, Any]]:
    """Time forward and backward of the differentiable matrix against what one writes without it."""
    from .gpu_glcm import inputs
    from .test_soft import product_of_weights, soft_mas_glcm, step

    rows = []
    for batch, levels in SOFT_CASES:
        sets = [images[:, None].float() / 255 for images in inputs("natural", batch, SIDE, DEVICE)]
        ours = lambda x, n: soft_mas_glcm(x, levels=n, impl="triton", check_finite=False)  # noqa: E731
        eager = lambda x, n: soft_mas_glcm(x, levels=n, impl="reference", check_finite=False)  # noqa: E731
        expected = step(eager, sets[0], levels)
        found = step(ours, sets[0], levels)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        row: dict[str, Any] = {"case": f"soft, {batch} x {SIDE} x {SIDE}, {levels} levels, forward and backward"}
        peers_of = {"triton": ours, "torch index_add": eager, "torch matrix products": product_of_weights}
        for name, function in peers_of.items():
            row[name] = time_ms(lambda turn, f=function, x=sets, n=levels: step(f, x[turn], n), repeat_ms=80)
        rows.append(row)
    return rows


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _driver() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        return done.stdout.strip()
    except FileNotFoundError:
        return "unknown"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def _glcm_part(report: dict[str, Any], path: Path, deadline: float) -> None:
    """What touches pixels without a network, into ``report``."""
    from .gpu_glcm import matrices, processors_and_clock, windows
    from .gpu_pixels import pixel_cases

    report["copy_bytes_per_second"] = copy_bandwidth()
    report["processors"], report["clock_hz"] = processors_and_clock()

    def keep(rows: list[dict[str, Any]]) -> None:
        write_json(path, {**report, "glcm": rows})

    # the other parts are given a third of what the tests left
    report["glcm"], report["left_out"] = matrices(deadline - (deadline - time.monotonic()) / 3, time_ms, DEVICE, keep)
    report["soft"] = soft_cases() if time.monotonic() < deadline else []
    report["windows"] = windows(time_ms, DEVICE) if time.monotonic() < deadline else []
    write_json(path, report)
    report["pixels"] = (
        pixel_cases(DEVICE, time_ms, report["copy_bytes_per_second"]) if time.monotonic() < deadline else []
    )


def main() -> int:
    """Run everything; exit code 0, 1 if a test failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"))
    parser.add_argument("--seconds", type=float, help="stop timing after this long (default 420 for each part)")
    parser.add_argument("--only", choices=PARTS, help="one part of it, with a file of its own")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-report: no CUDA or ROCm device; the CPU benchmarks are `make bench`", file=sys.stderr)
        return 2
    from . import training_speed
    from .gpu_restore import lines_of, restore_cases
    from .peers import available

    start = time.monotonic()
    device = torch.cuda.get_device_name()
    commit = _commit()
    parts = (arguments.only,) if arguments.only else PARTS
    limit = 420.0 * len(parts) if arguments.seconds is None else arguments.seconds
    path = arguments.out / f"{parts[0]}-{re.sub(r'[^A-Za-z0-9]+', '-', device)}-{commit[:10]}.json"
    versions = {"python": platform.python_version(), **available("torch", "triton", "numba", "numpy", "scikit-image")}
    report: dict[str, Any] = {
        "device": device,
        "driver": _driver(),
        "commit": commit,
        "versions": versions,
        "absent": [name for name, version in versions.items() if version is None],
    }
    tests = {"glcm": GPU_TESTS, "restore": RESTORER_TESTS, "training": TRAINING_TESTS}
    files = [file for part in parts for file in tests[part]]
    report["tests"] = run_tests(min(TIMEOUT_TESTS * len(parts), limit), files)
    write_json(path, report)  # whatever happens next, the tests' outcome is kept
    report |= {"glcm": [], "soft": [], "windows": [], "pixels": [], "restore": [], "training": [], "left_out": []}
    deadline = start + limit
    if "glcm" in parts:
        _glcm_part(report, path, deadline if arguments.only else deadline - (deadline - time.monotonic()) * 2 / 3)
    if "restore" in parts:

        def keep(rows: list[dict[str, Any]]) -> None:
            write_json(path, {**report, "restore": rows})

        last = deadline if arguments.only else deadline - (deadline - time.monotonic()) / 2
        report["restore"], left_out = restore_cases(DEVICE, time_ms, last, keep)
        report["left_out"] += left_out
    if "training" in parts:

        def keep_training(rows: list[dict[str, Any]]) -> None:
            write_json(path, {**report, "training": rows})

        report["training"], left_out = training_speed.training_cases(
            DEVICE, training_speed.GPU_CASES, 3, 20, keep_training, deadline
        )
        report["left_out"] += left_out
    report["seconds"] = round(time.monotonic() - start, 1)
    write_json(path, report)

    tests = report["tests"]
    if tests["exit_code"]:
        print(tests["tail"])
    print(f"{device}, torch {versions['torch']}, triton {versions['triton']}, commit {commit[:10]}")
    copy = f"; copy {report['copy_bytes_per_second'] / 1e12:.2f} TB/s" if "glcm" in parts else ""
    print(f"tests: {tests.get('passed', 0)} passed, {tests.get('failed', 0)} failed{copy}\n")
    print(f"{'case':38} {'ms':>9} {'H100 pred':>9} {'G updates/s':>12} {'of limit':>8} {'x best torch':>13}")
    for row in report["glcm"]:
        if "error" in row:
            print(f"{row['case']:38} {row['error']}")
            continue
        predicted = row["predicted_ms_on_h100"]
        print(
            f"{row['case']:38} {row['triton']['ms']:9.3f} {predicted or float('nan'):9.3f} "
            f"{row['updates_per_second'] / 1e9:12.1f} {row['share_of_limit'] or float('nan'):8.0%} "
            f"{row['times_faster_than_best_torch']:13.1f}"
        )
        for way, timing in row.get("ways", {}).items():
            told = f"{timing['ms']:9.3f}" if isinstance(timing, dict) else timing
            print(f"    {way:34} {told}")
    for row in (*report["soft"], *report["windows"]):
        times = ", ".join(f"{name} {timing['ms']:.3f}" for name, timing in row.items() if name != "case")
        print(f"{row['case']}: {times} ms")
    for row in report["pixels"]:
        times = ", ".join(f"{name} {timing['ms']:.4f}" for name, timing in row.items() if isinstance(timing, dict))
        print(f"{row['case']}: {times} ms; {100 * row['share_of_copy']:.0f} % of a copy's bandwidth")
    for row in report["restore"]:
        print(lines_of(row))
    for row in report["training"]:
        print("\n".join(training_speed.lines_of(row)))
    if report["left_out"]:
        print(f"no time for: {', '.join(report['left_out'])}")
    print(f"\n{path}, {report['seconds']} s")
    wrong = [row for row in (*report["glcm"], *report["restore"]) if "error" in row]
    return 1 if tests["exit_code"] or wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
