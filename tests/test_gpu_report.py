"""The GPU report runs from end to end without a GPU: what it calls is stubbed, what it computes is not."""

import json
import sys
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the report itself runs there")


@pytest.fixture
def report(monkeypatch):
    import bdg_fast
    from bdg_fast import UNetConfig, backends, glcm_offsets
    from benchmarks import (
        gpu_compile,
        gpu_glcm,
        gpu_growth,
        gpu_pixels,
        gpu_report,
        gpu_restore,
        networks,
        training_speed,
    )
    from benchmarks.steps import Case

    def call_once(function, sets=4, repeat_ms=0, graph=False):
        function(1)
        return {"ms": 2.0, "p20": 1.5, "p80": 2.5, **({"device_ms": 1.0} if graph else {})}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Stub GPU (1 core)")
    monkeypatch.setattr(gpu_report, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_report, "SIDE", 12)
    cases = (gpu_glcm.Case("natural", 1, 12, 8, True), gpu_glcm.Case("mixed", 3, 8, 4))
    monkeypatch.setattr(gpu_glcm, "CASES", cases)
    monkeypatch.setattr(gpu_glcm, "LOCAL", ((12, 8, 4),))
    # interpreted kernels take seconds: a call, and few pairs
    few: dict[str, Any] = {"angles": 2, "scales": (1, 2)}
    monkeypatch.setattr(bdg_fast, "mas_glcm", partial(bdg_fast.mas_glcm, **few))
    monkeypatch.setattr(bdg_fast, "local_mas_glcm", partial(bdg_fast.local_mas_glcm, **few))
    monkeypatch.setattr(gpu_glcm.peers, "torch_mean", partial(gpu_glcm.peers.torch_mean, offsets=glcm_offsets(**few)))
    monkeypatch.setattr(  # really of what is not interpreted alone
        gpu_glcm,
        "_host_ms",
        lambda function, calls=20, host_ms=gpu_glcm._host_ms: 1.0 if calls == 20 else host_ms(function, 1),
    )
    monkeypatch.setattr(gpu_glcm, "processors_and_clock", lambda: (132, 1e9))
    monkeypatch.setattr(gpu_report, "SOFT_CASES", ((1, 8),))
    monkeypatch.setattr(gpu_pixels, "CASES", (Case(2, 12), Case(1, 8, torch.bfloat16, last=True)))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(gpu_report, "time_ms", call_once)
    monkeypatch.setattr(gpu_report, "_out_of_time", lambda kept: None)  # it would end these tests
    monkeypatch.setattr(gpu_report, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu_report, "run_tests", lambda seconds, files: {"exit_code": 0, "passed": 3, "tail": ""})
    monkeypatch.setattr(gpu_compile, "Ahead", Ahead)
    monkeypatch.setattr(networks, "SIZES", {"T": UNetConfig(width=8, multipliers=(1,))})
    monkeypatch.setattr(gpu_restore, "SIDE", 12)
    monkeypatch.setattr(gpu_restore, "LEAST_DB", {"float32": 60, "bfloat16": 20})
    monkeypatch.setattr(gpu_restore, "CASES", (gpu_restore.Case("T", 1), gpu_restore.Case("T", 2)))
    monkeypatch.setattr(gpu_growth, "SMALL_BATCHES", (1,))
    monkeypatch.setattr(gpu_growth, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu_growth, "MEGAPIXELS", (0.001,))
    gpu_growth.small_restorer.cache_clear()
    monkeypatch.setattr(gpu_restore, "CudaCapture", lambda device: capture)
    # optimizers ask whether a GPU records a graph
    monkeypatch.setattr(
        torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None, raising=False
    )
    tiny = training_speed.Case("T", 2, 8, "restoration")
    monkeypatch.setattr(training_speed, "GPU_CASES", (tiny,))
    short = training_speed.training_cases
    monkeypatch.setattr(  # a round of one step
        training_speed, "training_cases", lambda device, cases, rounds, steps, *rest: short(device, cases, 1, 1, *rest)
    )
    monkeypatch.setattr(training_speed, "SIZES", {"T": UNetConfig(width=8, multipliers=(1,))})
    rates = {"end_to_end": {"images_per_second": 90.0}, "network_only": {"images_per_second": 100.0}, "ratio": 0.9}
    monkeypatch.setattr(gpu_growth.throughput, "throughput", lambda options: rates)
    backends._compiled.cache_clear()
    yield gpu_report
    backends._compiled.cache_clear()


class Ahead:
    """Nothing is compiled."""

    def __init__(self, jobs, at_once):
        self.jobs = jobs

    def end(self, deadline):
        return {" ".join(job): 1.0 for job in self.jobs}


def capture(loop, inputs):
    from bdg_fast.graphs import Captured

    own = tuple(tensor.clone() for tensor in inputs)
    output = loop(*own)
    return Captured(own, output, lambda: output.copy_(loop(*own)))


def without_growth(monkeypatch):
    from benchmarks import gpu_growth

    for name in ("SMALL_BATCHES", "BATCHES", "MEGAPIXELS"):
        monkeypatch.setattr(gpu_growth, name, ())


def run(report, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["gpu_report", *map(str, arguments)])
    return report.main()


def test_writes_what_it_measured(report, monkeypatch, tmp_path, capsys):
    from benchmarks import training_speed

    assert run(report, monkeypatch, "--out", tmp_path) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert path.name.startswith("all-Stub-GPU-1-core-")
    assert content["device"] == "Stub GPU (1 core)" and content["versions"]["torch"] and len(content["commit"]) >= 7
    natural, mixed = content["glcm"]
    assert natural["updates_per_second"] > 0 and natural["times_faster_than_best_torch"] == 1
    assert natural["share_of_limit"] == 2 * natural["updates_per_second"] / (16 * 132 * 1e9)  # the device's share
    assert content["windows"][0]["case"].endswith(": 4") and content["windows"][0]["cut out"]["ms"] == 2.0
    assert natural["ways"]["counts"]["ms"] == natural["ways"]["product"]["ms"] == 2.0
    assert content["soft"][0]["triton"]["ms"] == 2.0
    step, drawn, forward, *_ = content["pixels"]
    assert step["bytes"] == drawn["bytes"] == 5 * 2 * 3 * 12 * 12 * 4 and forward["bytes"] == 4 * 2 * 3 * 12 * 12 * 4
    assert step["share_of_copy"] == step["bytes"] / 1e-3 / 1e12 and step["torch.compile"]["ms"] == 2.0
    assert len(content["pixels"]) == 6
    assert "shared" in natural["ways"] and "ways" not in mixed
    rows = {row["case"]: row for row in content["restore"]}
    assert len(rows) == len(content["restore"]) == 11 and rows["end to end, 960 photographs"]["ratio"] == 0.9
    assert list(rows)[4] == "end to end, 960 photographs"  # after the smallest network's cases
    for kind, steps in (("forward", 1), ("restoration", 3)):
        row = rows[f"{kind}, T, 1 x 12 x 12"]
        assert row["floor_ms"] == pytest.approx(0.092 * steps)
        assert row["floor_by_own_copy_ms"] == pytest.approx(0.276 * steps)  # a copy of 1 TB/s
        assert row["decibel"]["compiled bfloat16, graph"] > 20 and row["decibel"]["compiled float32"] > 60
        assert row["images_per_second"]["published"] == 500
        for base in ("published", "published, PyTorch's defaults"):
            assert row["times_faster_than"][base]["compiled bfloat16, static shapes, graph"] == 1
        assert row["share_of_floor"]["compiled bfloat16"] == pytest.approx(0.046 * steps)
        assert row["predicted_ms_on_h100"]["compiled bfloat16, graph"] == pytest.approx(0.26 * steps)
        verdict = row["verdict"]
        assert verdict["times_faster"] == verdict["times_faster_than_defaults"] == 1 and verdict["wanted"] == 8
        assert verdict["times_the_floor"] == pytest.approx(2 / row["floor_ms"])
        assert (verdict["fast"], verdict["near_the_floor"], verdict["faithful"]) == (False, False, True)
    launched = rows["kernels of the compiled network, T, 1 x 12 x 12"]
    longest = [each for each in content["kernels"] if "T, 1 x" in each["group"]]
    assert launched["launches"] > len(longest) == 15 and sum(each["ms"] for each in longest) < launched["device_ms"]
    assert longest[0]["ms"] >= longest[-1]["ms"] > 0 and longest[0]["kernel"]
    small = rows["comes along, 1 x 256 x 256"]
    assert small["images_per_second"] == 500 and small["told"]["launches"] > 0 and small["share_of_told"] == 1
    assert rows["restoration, T, batch of 2"]["images_per_second"] == 1000 and small["backend"] == "native"
    picture = rows["a picture of 0.001 MP, T, one step"]
    assert (picture["width"], picture["height"]) == (37, 27) and picture["seconds_per_megapixel"] > 0
    assert content["compiled_ahead"]["restore T 2 compiled bfloat16"] == 1
    (training,) = content["training"]
    assert training["times_faster"] == training["plain"]["ms"] / training["bdg_fast"]["ms"]
    assert set(training["bdg_fast"]["parts_ms"]) == set(training_speed.PARTS)
    assert {"noise", "jpeg", "chain", "all of CDD-11", "all"} <= training["degradation"].keys()
    assert all(each["share_of_step"] > 0 for each in training["degradation"].values())
    assert training["plain"]["images_per_s"] == pytest.approx(2e3 / training["plain"]["ms"])
    printed = capsys.readouterr().out
    assert "T, restoration, 2 x 8 x 8: " in printed
    assert "Stub GPU" in printed and "restoration, T, 2 x 12 x 12: floor" in printed and "90% of it" in printed
    assert "forward, T, 1 x 12 x 12: 1.0 times the plain eager float32 baseline, without TF32 (wanted 8: NO)" in printed
    assert content["pixels"][0]["peer"] in printed and "not compiled" in printed  # by the stub


def test_a_failed_test_fails_the_report_and_is_kept(report, monkeypatch, tmp_path):
    from benchmarks import gpu_glcm, gpu_pixels, gpu_restore, training_speed

    without_growth(monkeypatch)
    cases = ((gpu_glcm, "CASES"), (gpu_glcm, "LOCAL"), (gpu_pixels, "CASES"), (report, "SOFT_CASES"))
    for module, name in (*cases, (gpu_restore, "CASES"), (training_speed, "GPU_CASES")):
        monkeypatch.setattr(module, name, ())
    monkeypatch.setattr(report, "run_tests", lambda seconds, files: {"exit_code": 1, "failed": 1, "tail": "E   assert"})
    assert run(report, monkeypatch, "--out", tmp_path) == 1
    assert json.loads(next(tmp_path.iterdir()).read_text())["tests"]["failed"] == 1


def test_a_case_that_fails_is_told_and_the_rest_is_timed(report, monkeypatch, tmp_path, capsys):
    from benchmarks import gpu_glcm, gpu_pixels

    def measure(row, case, *arguments):
        if case.levels == 8:
            raise RuntimeError("counts differ")
        row.update(updates_per_second=1e9, times_faster_than_best_torch=3.0, predicted_ms_on_h100=None)
        row["triton"] = {"ms": 2.0}

    monkeypatch.setattr(gpu_glcm, "_measure", measure)
    for module, name in ((gpu_glcm, "LOCAL"), (gpu_pixels, "CASES"), (report, "SOFT_CASES")):
        monkeypatch.setattr(module, name, ())
    assert run(report, monkeypatch, "--out", tmp_path, "--only", "glcm") == 1
    failed, timed = json.loads(next(tmp_path.iterdir()).read_text())["glcm"]
    assert failed["error"] == "RuntimeError: counts differ" and timed["triton"]["ms"] == 2.0
    assert "counts differ" in capsys.readouterr().out


def test_a_restoration_that_fails_is_told_and_the_rest_is_timed(report, monkeypatch, tmp_path, capsys):
    from benchmarks import gpu_restore

    function = gpu_restore.Ways.function

    def wrong(ways, name, kind):
        if name == "eager bfloat16" and kind == "forward":
            return lambda pixels: pixels * 0 + 9
        if name == gpu_restore.STATIC:
            raise RuntimeError("no such code")
        return function(ways, name, kind)

    monkeypatch.setattr(gpu_restore.Ways, "function", wrong)
    monkeypatch.setattr(gpu_restore, "CASES", gpu_restore.CASES[:1])
    without_growth(monkeypatch)
    assert run(report, monkeypatch, "--out", tmp_path, "--only", "restore") == 1
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert path.name.startswith("restore-Stub") and content["glcm"] == [] and len(content["restore"]) == 4
    forward, restoration, *_ = content["restore"]
    assert forward["too_far"] == ["eager bfloat16"] and forward["compiled bfloat16, graph"]["ms"] == 2.0
    assert restoration["too_far"] == [] and restoration["verdict"]["faithful"] and not forward["verdict"]["faithful"]
    assert "static shapes, graph: RuntimeError: no such code" in restoration["error"]
    assert restoration["compiled float32"]["ms"] == 2.0
    told = capsys.readouterr().out
    assert "dB from the published code" in told and "faithful: NO" in told
    assert "restoration, T, 1 x 12 x 12: RuntimeError: compiled bfloat16, static" in told


def test_a_part_that_breaks_is_told_and_the_rest_is_timed(report, monkeypatch, tmp_path, capsys):
    from benchmarks import gpu_glcm, gpu_pixels, gpu_restore, training_speed

    def broken(*arguments):
        raise RuntimeError("nothing but wrong")

    monkeypatch.setattr(report, "soft_cases", broken)
    monkeypatch.setattr(training_speed, "measure", broken)
    monkeypatch.setattr(gpu_glcm, "CASES", ())
    monkeypatch.setattr(gpu_glcm, "LOCAL", ())
    monkeypatch.setattr(gpu_pixels, "CASES", gpu_pixels.CASES[:1])
    monkeypatch.setattr(gpu_restore, "CASES", gpu_restore.CASES[:1])
    without_growth(monkeypatch)
    assert run(report, monkeypatch, "--out", tmp_path) == 1
    content = json.loads(next(tmp_path.iterdir()).read_text())
    assert content["errors"] == {"soft": "RuntimeError: nothing but wrong"} and content["soft"] == []
    assert content["pixels"] and len(content["restore"]) == 4
    (row,) = content["training"]
    assert (row["case"], row["error"]) == ("T, restoration, 2 x 8 x 8", "RuntimeError: nothing but wrong")
    assert "in broken" in row["traceback"] and "in broken" in content["tracebacks"]["soft"]
    assert capsys.readouterr().out.count("nothing but wrong") == 2


def test_out_of_time_within_a_case_keeps_what_is_known(report, monkeypatch, tmp_path, capsys):
    codes = []
    monkeypatch.undo()
    monkeypatch.setattr(report.os, "_exit", codes.append)
    kept = report.Report(tmp_path / "a.json")
    kept.update(device="Stub", commit="0" * 40, versions={"torch": "2", "triton": "3"}, tests={})
    kept.update(glcm=[], soft=[], windows=[], pixels=[], training=[], left_out=["windows"])
    kept.keep("restore")([{"case": "first", "error": "none"}])
    report._out_of_time(kept)
    content = json.loads((tmp_path / "a.json").read_text())
    assert codes == [1] and content["restore"][0]["case"] == "first" and "out of time" in content["errors"]["time"]
    assert "the tests were not done" in capsys.readouterr().out


def test_tests_out_of_time_are_counted_as_far_as_they_came(report, monkeypatch):
    import subprocess

    monkeypatch.undo()
    killed = []

    class Process:
        pid = 7

        def __init__(self, command, cwd, stdout, **options):
            assert "-v" in command and "gpu" in command
            stdout.write("tests/test_a.py::one PASSED\ntests/test_a.py::two PASSED\ntests/test_a.py::three FAILED\n")
            stdout.flush()

        def wait(self, seconds=None):
            if seconds is not None:
                raise subprocess.TimeoutExpired("pytest", seconds)

        def send_signal(self, number):
            killed.append(number)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(report.os, "killpg", lambda pid, sign: killed.append(pid))
    found = report.run_tests(3, ["tests/test_a.py"])
    assert (found["exit_code"], found["passed"], found["failed"]) == (-1, 2, 1) and killed == [
        2,
        7,
    ]  # interrupted, then ended
    assert "three FAILED" in found["tail"]


def test_names_what_there_was_no_time_for(report, monkeypatch, tmp_path):
    run(report, monkeypatch, "--out", tmp_path, "--seconds", "0")
    assert len(json.loads(next(tmp_path.iterdir()).read_text())["left_out"]) == 2 + 3 + 5 + 10 + 1


def test_a_copy_without_git_is_measured_too(report, monkeypatch, tmp_path):
    assert report._told_by("git", "rev-parse", "no such") == "unknown"
    monkeypatch.setattr(report, "ROOT", tmp_path)  # no repository
    assert report._told_by(sys.executable, "-c", "print('a'); print('b')") == "a"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report._commit() == report._driver() == "unknown"


def test_says_so_without_a_gpu(report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(report, monkeypatch, "--out", tmp_path) == 2
    assert "no CUDA or ROCm device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
