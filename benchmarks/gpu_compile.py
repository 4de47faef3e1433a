"""Networks compiled ahead for the GPU report: each in a process of its own, while the tests run.

What they compile lies in the folder of Inductor's code, where the report's process finds it: that takes seconds, and
compiling one after the other would take most of the report's time. How a kernel runs best is not taken from them, as
it was measured while others used the GPU.

``python -m benchmarks.gpu_compile restore T 16 "compiled bfloat16"`` or ``... training 0`` does one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bdg_fast.backends import CACHE

ROOT = Path(__file__).resolve().parents[1]
Job = tuple[str, ...]


class Ahead:
    """Processes that compile, some at a time, those first that are asked for first."""

    def __init__(self, jobs: Sequence[Job], at_once: int) -> None:
        """They begin."""
        self.known: dict[str, Any] = {}
        self._left = deque(jobs)
        self._running: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(at_once, len(jobs)))]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        while True:
            with self._lock:
                if not self._left:
                    return
                job, began = self._left.popleft(), time.monotonic()
                command = [sys.executable, "-m", "benchmarks.gpu_compile", *job]
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                self._running.append(process)
            told = process.communicate()[1].strip()
            seconds = round(time.monotonic() - began, 1)
            failed = {-9: "out of time"}.get(process.returncode, told[-2000:] or str(process.returncode))
            self.known[" ".join(job)] = seconds if process.returncode == 0 else failed

    def end(self, deadline: float) -> dict[str, Any]:
        """Seconds that each took, or why it failed; what is not done by ``deadline`` (`time.monotonic`) is ended."""
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        with self._lock:
            self.known |= {" ".join(job): "not begun" for job in self._left}
            self._left.clear()
            for process in self._running:
                if process.poll() is None:
                    process.kill()
        for thread in self._threads:
            thread.join()
        forget_choices()
        return self.known


def forget_choices() -> None:
    """Let kernels be tried again: what was found best while other processes used the GPU need not be."""
    for folder, _, names in os.walk(os.environ[CACHE]):  # goes on where a folder vanishes
        for name in names:
            if name.endswith(".best_config"):
                Path(folder, name).unlink(missing_ok=True)


def main(job: Sequence[str], device: str = "cuda") -> int:
    """Compile one."""
    from . import gpu_growth, gpu_restore

    gpu_restore.settle_precision()  # as in the process that looks for what is compiled
    kind, *rest = job
    if kind == "training":
        from . import training_speed

        case = training_speed.GPU_CASES[int(rest[0])]
        training_speed.Loop(case, device, True, training_speed.photographs_root()).timed(1)
        return 0
    with torch.inference_mode():
        if kind == "small":
            gpu_growth.small_restorer(device)._restore(gpu_restore.pixels(int(rest[0]), 0, device))
        else:
            size, batch, way = rest
            gpu_restore.Ways(size, device).function(way, "forward")(gpu_restore.pixels(int(batch), 0, device))
    return 0


if __name__ == "__main__":
    os.nice(5)  # tests go first
    os._exit(main(sys.argv[1:]))  # threads that read ahead are waited for by nobody
