"""``python -m benchmarks.gpu_report``: GPU tests, then benchmarks with their peers, into one JSON file.

Times are medians of CUDA-event timings (`triton.testing.do_bench`), over input sets that rotate so that no
case lives in the cache alone. Nothing is fetched; peers that are not installed are named in the file. While the tests
run, networks are compiled ahead; the most telling numbers come first, should time run out (benchmarks/notes.md has the
plan in seconds).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bdg_fast.backends import CACHE
from bdg_fast.files import write_atomically

if TYPE_CHECKING:
    from .gpu_restore import Task

ROOT = Path(__file__).resolve().parents[1]
DEVICE, SIDE = "cuda", 256
SOFT_CASES = ((8, 32), (1, 32))
LIMIT = 540.0
"""Seconds that all of it may take."""
TESTS_SHARE, LAST_START = 0.4, 0.85
"""Of the limit: what tests and compiling may take, and when a case may begin at the latest."""
TEST_PROCESSES = 6
LAST_WORDS = 10.0
"""Seconds that tests which are out of time have to tell what failed."""
HOST_BOUND = 0.8
"""Of a call's time, the host's share above which the device has waited for it."""
# test_glcm_oracle skips itself without scikit-image
GPU_FILES = ("gpu", "gpu_sampler", "noise", "draws", "triton", "soft", "local", "glcm_errors", "glcm_oracle")
GPU_TESTS = tuple(f"tests/test_{name}.py" for name in GPU_FILES)
RESTORER_TESTS = ("tests/test_gpu_restorer.py",)
TRAINING_TESTS = ("tests/test_gpu_training.py", "tests/test_degrade.py")
TESTS = {"glcm": GPU_TESTS, "restore": RESTORER_TESTS, "training": TRAINING_TESTS}
PARTS = ("glcm", "restore", "training")
"""``"glcm"``: matrices, windows and what touches each pixel once; ``"restore"``: networks, most of it compiling;
``"training"``: steps."""


def run_tests(seconds: float, files: Sequence[str] = GPU_TESTS) -> dict[str, Any]:
    """Run the tests marked ``gpu`` in a process of their own, several at once where pytest-xdist is there.

    Of a run that is out of time the outcomes so far are counted.
    """
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(TEST_PROCESSES, os.cpu_count() or 1)), "--dist", "loadfile"]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # tells what failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()
            code = -1
        file.seek(0)
        output = file.read()
    if code == -1:
        outcomes = Counter(re.findall(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", output))
        counts = {outcome.lower(): number for outcome, number in outcomes.items()}
    else:
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", output)}
    told = output[-3000:] if code == 0 else output[-60_000:]
    return {"exit_code": code, **counts, "seconds": round(time.monotonic() - start, 1), "tail": told}


def time_ms(
    function: Callable[[int], object], sets: int = 4, repeat_ms: int = 150, graph: bool = False
) -> dict[str, float]:
    """Median and spread in milliseconds of ``function(turn)``, which picks one of ``sets`` inputs by ``turn``.

    ``launch_ms`` is what a call keeps the host. Where that is most of it, the device waited, and ``device_ms`` is the
    time within a CUDA graph, of functions that one can hold (``graph``).
    """
    from triton.testing import do_bench, do_bench_cudagraph

    turn = [0]

    def call() -> None:
        turn[0] = (turn[0] + 1) % sets
        function(turn[0])

    low, median, high = do_bench(call, warmup=40, rep=repeat_ms, quantiles=[0.2, 0.5, 0.8])
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls = sets * (4 if median < 5 else 1)
    for _ in range(calls):
        call()
    found = {"ms": median, "p20": low, "p80": high, "launch_ms": 1e3 * (time.perf_counter() - start) / calls}
    torch.cuda.synchronize()
    if graph and found["launch_ms"] > HOST_BOUND * median:
        found["device_ms"] = do_bench_cudagraph(lambda: [function(number) for number in range(sets)], rep=40) / sets
    return found


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


def _told_by(*command: str) -> str:
    """The first line that a command prints; "unknown" where it is not installed, fails, or says nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


def _commit() -> str:
    """Of a checkout; a copy of its files has none, and of another user's git tells nothing."""
    return _told_by("git", "rev-parse", "HEAD")


def _driver() -> str:
    return _told_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def attempt(row: dict[str, Any], measure: Callable[[], object]) -> None:
    """Measure; what fails is told in ``row``."""
    try:
        measure()
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
        row["traceback"] = traceback.format_exc()[-4000:]


class Report:
    """What is known so far, in a file after each part and each row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"errors": {}}

    def update(self, **known: Any) -> None:
        """Add, and write."""
        self.content |= known
        write_json(self.path, self.content)

    def keep(self, name: str) -> Callable[[list[dict[str, Any]]], None]:
        """For a part that tells its rows as it goes."""
        return lambda rows: self.update(**{name: rows})

    def end(self, name: str, rows: list[dict[str, Any]], left_out: list[str]) -> None:
        """Of such a part: all its rows, and what there was no time for."""
        self.update(**{name: rows}, left_out=[*self.content["left_out"], *left_out])

    def restored(self, tasks: Sequence[Task], deadline: float) -> None:
        """Do tasks of restorations."""
        from .gpu_restore import run_tasks

        left_out = run_tasks(tasks, deadline, self.content, self.update)
        self.update(left_out=[*self.content["left_out"], *left_out])

    def measure(self, name: str, rows: Callable[[], list[dict[str, Any]]], deadline: float) -> None:
        """Of a part whose rows come at its end; what fails is told, and the rest goes on."""
        if time.monotonic() > deadline:
            self.content["left_out"].append(name)
            return
        self.attempt(name, lambda: self.update(**{name: rows()}))

    def attempt(self, name: str, part: Callable[[], object]) -> None:
        """Do a part; what fails is told, and the rest goes on."""
        failed: dict[str, Any] = {}
        attempt(failed, part)
        if failed:
            self.content["errors"][name] = failed["error"]
            self.content.setdefault("tracebacks", {})[name] = failed["traceback"]
            self.update()

    def wrong(self) -> bool:
        """Whether a test failed, a part broke, or a result is not what it should be."""
        rows = [*self.content["glcm"], *self.content["restore"], *self.content["training"]]
        odd = any("error" in row or row.get("too_far") for row in rows)
        return bool(self.content["tests"].get("exit_code", -1) or self.content["errors"] or odd)


def _glcm_part(report: Report, deadline: float) -> None:
    """What touches pixels without a network, into ``report``."""
    from .gpu_glcm import matrices, processors_and_clock, windows
    from .gpu_pixels import pixel_cases

    processors, clock = processors_and_clock()
    report.update(processors=processors, clock_hz=clock)
    # the other parts are given a third of what the tests left
    until = deadline - (deadline - time.monotonic()) / 3
    report.end("glcm", *matrices(until, time_ms, DEVICE, report.keep("glcm")))
    report.measure("soft", soft_cases, deadline)
    report.measure("windows", lambda: windows(time_ms, DEVICE), deadline)
    copy = report.content.get("copy_bytes_per_second", math.nan)
    report.measure("pixels", lambda: pixel_cases(DEVICE, time_ms, copy), deadline)


def _out_of_time(report: Report) -> None:
    """A case that began in time may compile for minutes: what is known is written, and told."""
    report.content["errors"]["time"] = "out of time within a case, after what is here"
    for last in (report.update, lambda: _tell(report), sys.stdout.flush):
        attempt({}, last)  # the main thread may be changing what is told
    os._exit(1)


def main() -> int:
    """Run everything; exit code 0, 1 if a test or a part failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"))
    parser.add_argument("--seconds", type=float, default=LIMIT, help=f"end after this long (default {LIMIT:.0f})")
    parser.add_argument("--only", choices=PARTS, help="one part of it, with a file of its own")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-report: no CUDA or ROCm device; the CPU benchmarks are `make bench`", file=sys.stderr)
        return 2
    from .peers import available

    start = time.monotonic()
    device = torch.cuda.get_device_name()
    commit = _commit()
    parts = (arguments.only,) if arguments.only else PARTS
    path = arguments.out / f"{arguments.only or 'all'}-{re.sub(r'[^A-Za-z0-9]+', '-', device)}-{commit[:10]}.json"
    versions = {"python": platform.python_version(), **available("torch", "triton", "numba", "numpy", "scikit-image")}
    report = Report(path)
    absent = [name for name, version in versions.items() if version is None]
    report.update(device=device, driver=_driver(), commit=commit, versions=versions, absent=absent, tests={})
    report.update(glcm=[], soft=[], windows=[], pixels=[], restore=[], kernels=[], training=[], left_out=[])
    os.environ.setdefault(CACHE, str(Path(tempfile.gettempdir(), f"bdg_fast_report_{os.getuid()}")))
    watch = threading.Timer(max(arguments.seconds, 1), _out_of_time, (report,))
    watch.daemon = True
    watch.start()
    try:
        _measure(report, parts, start, arguments.seconds)
    finally:
        watch.cancel()
    report.update(seconds=round(time.monotonic() - start, 1))
    _tell(report)
    return 1 if report.wrong() else 0


def _measure(report: Report, parts: Sequence[str], start: float, seconds: float) -> None:
    """Tests, then every part, into ``report``: what has most to tell first."""
    from . import gpu_compile, gpu_plan, gpu_restore

    ahead = gpu_compile.Ahead(gpu_plan.compiled_ahead(parts), max((os.cpu_count() or 1) * 3 // 4, 1))
    files = [file for part in parts for file in TESTS[part]]
    report.attempt("tests", lambda: report.update(tests=run_tests(TESTS_SHARE * seconds, files)))
    report.attempt("compiled ahead", lambda: report.update(compiled_ahead=ahead.end(start + TESTS_SHARE * seconds)))
    gpu_restore.settle_precision()
    report.attempt("copy", lambda: report.update(copy_bytes_per_second=copy_bandwidth()))
    deadline = start + LAST_START * seconds
    stages = [stage for stage in gpu_plan.stages(report, DEVICE, time_ms, _glcm_part) if stage.part in parts]
    for number, stage in enumerate(stages):
        share = stage.weight / sum(later.weight for later in stages[number:])
        until = time.monotonic() + (deadline - time.monotonic()) * share  # what is not used is left to later ones
        report.attempt(stage.part, lambda stage=stage, until=until: stage.measure(until))


def _tell(report: Report) -> None:
    """For people."""
    from . import training_speed, verdict
    from .gpu_plan import lines_of

    content, versions, tests = report.content, report.content["versions"], report.content["tests"]
    if tests.get("exit_code", -1):
        print(tests.get("tail", "the tests were not done"))
    print(
        f"{content['device']}, torch {versions['torch']}, triton {versions['triton']}, commit {content['commit'][:10]}"
    )
    copy = f"; copy {content['copy_bytes_per_second'] / 1e12:.2f} TB/s" if "copy_bytes_per_second" in content else ""
    print(f"tests: {tests.get('passed', 0)} passed, {tests.get('failed', 0)} failed{copy}\n")
    print(f"{'case':38} {'ms':>9} {'H100 pred':>9} {'G updates/s':>12} {'of limit':>8} {'x best torch':>13}")
    for row in content["glcm"]:
        if "error" in row:
            print(f"{row['case']:38} {row['error']}")
            continue
        predicted, alone = row["predicted_ms_on_h100"], row["triton"].get("device_ms")
        print(
            f"{row['case']:38} {row['triton']['ms']:9.3f} {predicted or float('nan'):9.3f} "
            f"{row['updates_per_second'] / 1e9:12.1f} {row['share_of_limit'] or float('nan'):8.0%} "
            f"{row['times_faster_than_best_torch']:13.1f}" + (f"  of it the device's {alone:.4f}" if alone else "")
        )
        for way, timing in row.get("ways", {}).items():
            told = f"{timing['ms']:9.3f}" if isinstance(timing, dict) else timing
            print(f"    {way:34} {told}")
    for row in (*content["soft"], *content["windows"]):
        times = ", ".join(f"{name} {timing['ms']:.3f}" for name, timing in row.items() if name != "case")
        print(f"{row['case']}: {times} ms")
    for row in content["pixels"]:
        times = ", ".join(f"{name} {timing['ms']:.4f}" for name, timing in row.items() if isinstance(timing, dict))
        peer = f"; torch.compile {row['peer']}" if "peer" in row else ""
        print(f"{row['case']}: {times} ms; {100 * row['share_of_copy']:.0f} % of a copy's bandwidth{peer}")
    for row in content["restore"]:
        print("\n".join(lines_of(row)))
    for row in content["training"]:
        print("\n".join(training_speed.lines_of(row)))
    for name, error in content["errors"].items():
        print(f"{name}: {error}")
    for row in content["restore"]:
        print("".join(f"{line}\n" for line in verdict.lines(row)), end="")
    if content["left_out"]:
        print(f"no time for: {', '.join(content['left_out'])}")
    print(f"\n{report.path}, {content.get('seconds', 'not done')} s")


if __name__ == "__main__":
    raise SystemExit(main())
