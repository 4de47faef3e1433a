"""Kernels compile for every target without a GPU, do not spill, and stay within their recorded budgets."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def report():
    # its own process: kernels are interpreted in this one where there is no GPU
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.codegen", "--shared", "--json", "-"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(report, target):
    rows = [row for row in report["rows"] if row["target"] == target]
    expected = {"levels", "order", "shared", "packed", "counts", "product", "combine", "soft add", "soft pull"}
    assert {row["kernel"] for row in rows} == expected | {"step", "forward", "words", "normals", "poisson"}
    assert [row for row in rows if row["spills"]] == []


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_keeps_its_budget(report, target):
    assert report["over_budget"][target] == []


def test_gfx9_sets_aside_what_its_bins_need(report):
    # nothing else may lie in shared memory, where these bins begin at address 0; programs of one warp would get none
    rows = [row for row in report["rows"] if row["target"] == "gfx942" and row["kernel"] in ("shared", "packed")]
    assert rows
    for row in rows:
        assert row["shared"] in (4 * 8192, 4 * 16384), row
    largest = {row["variant"] for row in rows if row["shared"] == 4 * 16384 and row["kernel"] == "shared"}
    assert {"105 levels", "128 levels", "255 levels", "256 levels"} <= largest


def test_the_tests_own_kernels_compile():
    """The interpreter takes more Python than the compiler does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    program = ROOT / "tests" / "noise_kernels.py"
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_budget_is_exceeded_loudly():
    from benchmarks.codegen import BUDGETS, over_budget

    budget = json.loads(BUDGETS.read_text())["sm_90 shared 32 levels"]
    row = {"kernel": "shared", "target": "sm_90", "variant": "32 levels", "spills": 0, **budget}
    assert over_budget([row]) == []
    for key, value in {"registers": 200, "shared": 60000, "instructions_per_update": 20.0, "spills": 8}.items():
        (message,) = over_budget([{**row, key: value}])
        assert key in message and "sm_90 shared 32 levels" in message and str(value) in message
    (message,) = over_budget([{**row, "variant": "unheard of"}])
    assert "no recorded budget" in message
