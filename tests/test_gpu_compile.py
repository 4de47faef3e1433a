"""Networks compiled ahead for the GPU report: processes that are waited for, ended, and told of."""

import sys
import time

import pytest
import torch

from bdg_fast.backends import CACHE
from benchmarks import gpu_compile, gpu_growth, gpu_restore, networks, training_speed


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, str(tmp_path))
    return tmp_path


def stub(monkeypatch, code):
    """Processes run ``code`` with their job as arguments instead."""
    popen = gpu_compile.subprocess.Popen

    def begin(command, **options):
        return popen([sys.executable, "-c", code, *command[3:]], **options)

    monkeypatch.setattr(gpu_compile.subprocess, "Popen", begin)


def test_tells_what_was_compiled_and_what_failed(monkeypatch, folder):
    stub(monkeypatch, "import sys; sys.exit('no such network' if sys.argv[1] == 'bad' else 0)")
    (folder / "ab").mkdir()
    (folder / "ab" / "kernel.best_config").write_text("{}")
    (folder / "ab" / "kernel.py").write_text("")
    known = gpu_compile.Ahead([("restore", "T"), ("bad",), ("training", "0")], 2).end(time.monotonic() + 60)
    assert known.pop("bad") == "no such network" and set(known) == {"restore T", "training 0"}
    assert all(0 <= seconds < 60 for seconds in known.values())
    assert [path.name for path in folder.rglob("*.*")] == ["kernel.py"]  # how kernels run is tried again


def test_what_is_not_done_in_time_is_ended(monkeypatch, folder):
    stub(monkeypatch, "import time; time.sleep(600)")
    ahead = gpu_compile.Ahead([("first",), ("second",)], 1)
    assert ahead.end(time.monotonic()) == {"first": "out of time", "second": "not begun"}


@pytest.mark.parametrize("job", ["restore T 2 compiled bfloat16", "small 1", "training 0"])
def test_a_job_evaluates_what_the_report_will(monkeypatch, job):
    from bdg_fast import UNetConfig

    tiny = {"T": UNetConfig(width=8, multipliers=(1,))}
    monkeypatch.setattr(networks, "SIZES", tiny)
    monkeypatch.setattr(training_speed, "SIZES", tiny)
    monkeypatch.setattr(training_speed, "GPU_CASES", (training_speed.Case("T", 2, 8),))
    monkeypatch.setattr(gpu_restore, "SIDE", 12)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    kind, *rest = job.split(" ", 3)
    gpu_growth.small_restorer.cache_clear()
    assert gpu_compile.main((kind, *rest), "cpu") == 0
