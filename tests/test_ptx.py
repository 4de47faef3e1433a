"""The compiled kernels, run on the CPU: what users of a GPU will run, down to its instructions, counts exactly.

`ptx.py` runs PTX, `ptx_launch.py` makes the launchers run it, `ptx_cases.py` says what is run.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptx import PtxError, launch
from ptx_cases import CASES


@pytest.fixture(scope="module")
def results():
    # its own process: kernels are interpreted in this one where there is no GPU
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("ptx_cases.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {row["case"]: row["failure"] for row in rows}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("case", CASES)
def test_compiled_kernel(results, case):
    if results[case]:
        pytest.fail(results[case], pytrace=False)


# --- the executor itself, by kernels written by hand

HEAD = """
.extern .shared .align 16 .b8 dynamic[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0)
.reqntid 64
{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>;
    ld.param.b64 %rd0, [kernel_param_0];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;
    mov.u32 %r1, dynamic;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    xor.b32 %r4, %r3, 252;
    mov.b32 %r9, 7;
    setp.lt.u32 %p0, %r0, 16;
    setp.lt.u32 %p1, %r0, 32;
"""
ORDERS = ["together", "forward", "backward", "shuffled"]


def run(body, order="together", words=64, dynamic=256, grid=(1, 1, 1)):
    out = np.zeros(words, np.uint32)
    launch(f"{HEAD} {body} ret; }}", grid, [out], dynamic, order)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_threads_exchange_through_shared_memory(order):
    out = run("st.shared.b32 [%r3], %r0; bar.sync 0; ld.shared.b32 %r5, [%r4]; st.global.b32 [%rd2], %r5;", order)
    assert out.tolist() == list(range(63, -1, -1))


@pytest.mark.parametrize("order", ORDERS)
def test_branches_diverge_and_meet(order):
    body = """
        mov.b32 %r5, 0; and.b32 %r6, %r0, 3;
        $LOOP: setp.ge.u32 %p2, %r5, %r6; @%p2 bra $END; add.s32 %r5, %r5, 1; bra.uni $LOOP;
        $END: @!%p0 bra $ELSE; add.s32 %r5, %r5, 100; bra.uni $JOIN;
        $ELSE: add.s32 %r5, %r5, 200;
        $JOIN: redux.sync.add.s32 %r7, %r5, -1; st.global.b32 [%rd2], %r7;
    """
    sums = [sum(thread % 4 + (100 if thread < 16 else 200) for thread in warp) for warp in (range(32), range(32, 64))]
    assert run(body, order).tolist() == [sums[0]] * 32 + [sums[1]] * 32


@pytest.mark.parametrize("order", ORDERS)
def test_increments_that_meet_are_all_counted(order):
    body = """
        @%p1 st.shared.b32 [%r3], 0; bar.sync 0; red.shared.add.u32 [%r1+4], 3; bar.sync 0;
        @%p1 ld.shared.b32 %r5, [%r3]; @%p1 red.global.gpu.relaxed.add.u32 [%rd2], %r5;
    """
    assert run(body, order, grid=(40, 1, 1)).tolist() == [0, 40 * 3 * 64] + [0] * 62


def test_an_atomic_returns_what_was_there():
    out = run("atom.global.gpu.relaxed.add.u32 %r5, [%rd0+256], 1; st.global.b32 [%rd2], %r5;", words=65)
    assert sorted(out[:64]) == list(range(64)) and out[64] == 64


CLEAR = "st.shared.b32 [%r3], 0; bar.sync 0;"
MISTAKES = {
    "missing barrier": ("st.shared.b32 [%r3], 1; ld.shared.b32 %r5, [%r4];", "race|never written"),
    "write after read": (f"{CLEAR} ld.shared.b32 %r5, [%r1]; @%p0 st.shared.b32 [%r1], 2;", "race: "),
    "write by two warps": ("st.shared.b32 [%r1], 1;", "race: "),
    "read after add": (f"{CLEAR} red.shared.add.u32 [%r3], 1; ld.shared.b32 %r5, [%r4];", "race: "),
    "add after write": (f"{CLEAR} st.shared.b32 [%r3], 0; red.shared.add.u32 [%r4], 1;", "race: "),
    "write to a part of what is read": (
        f"{CLEAR} ld.shared.b32 %r5, [%r3]; mov.u16 %rs1, 1; st.shared.b8 [%r4+3], %rs1;",
        "race: ",
    ),
    "uninitialized": ("@%p1 st.shared.b32 [%r3], 1; bar.sync 0; ld.shared.b32 %r5, [%r4];", "never written"),
    "uninitialized add": ("red.shared.add.u32 [%r3], 1;", "never written"),
    "barrier of some threads": ("@!%p1 bra $END; bar.sync 0; $END:", "not reached by all"),
    "barrier under a predicate": ("@%p0 bar.sync 0;", "not reached by all"),
    "two barriers at once": ("@%p1 bra $A; bar.sync 0; bra.uni $END; $A: bar.sync 0; $END:", "not reached by all"),
    "exchange without some lanes": ("@%p0 shfl.sync.up.b32 %r5, %r0, 1, 0, -1;", "lanes of the warp are missing"),
    "global after the end": ("ld.global.b32 %r5, [%rd2+4];", r"out of bounds \(thread 63 of block \(0, 0, 0\)\)"),
    "global before the start": ("add.s64 %rd3, %rd2, -4; st.global.b32 [%rd3], 1;", r"st\.global.* out of bounds"),
    "global in 32 bits": ("cvt.u32.u64 %r5, %rd2; cvt.u64.u32 %rd3, %r5; ld.global.b32 %r5, [%rd3];", "out of bounds"),
    "add out of bounds": ("red.global.gpu.relaxed.add.u32 [%rd2+256], 1;", "out of bounds"),
    "shared after the end": ("st.shared.b32 [%r3+4], 1;", "out of bounds"),
    "misaligned": ("@%p0 ld.global.b32 %r5, [%rd2+2];", "misaligned"),
    "misaligned vector": ("@%p0 ld.global.v2.b32 {%r5, %r6}, [%rd2+4];", "misaligned"),
    "unknown instruction": ("frobnicate.u32 %r5, %r0;", "unknown instruction frobnicate.u32"),
    "unknown modifier": ("add.sat.s32 %r5, %r0, 1;", r"unknown instruction add\.sat\.s32"),
    "unknown register": ("add.s32 %r5, %x7, 1;", "unknown name %x7"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake, order):
    body, message = MISTAKES[mistake]
    with pytest.raises(PtxError, match=message):
        run(body, order)


def test_a_masked_access_is_no_mistake():
    run("@%p0 ld.global.b32 %r5, [%rd2+4]; @%p0 st.shared.b32 [%r3], 1; @%p0 ld.shared.b32 %r6, [%r3];")


def float_bits(value):
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"


NAN, HALF = "0f7FC00000", float_bits(0.5)
RESULTS = [
    ("div.s32 %r5, -7, 2;", -3),
    ("div.u32 %r5, -7, 2;", (2**32 - 7) // 2),
    ("rem.s32 %r5, -7, 2;", -1),
    ("shr.s32 %r5, -8, 1;", -4),
    ("shr.u32 %r5, -8, 1;", (2**32 - 8) // 2),
    ("shr.u32 %r5, 5, 32;", 0),
    ("shr.s32 %r5, -5, 40;", -1),
    ("shl.b32 %r5, 5, 33;", 0),
    ("mul.lo.s32 %r5, 65537, 65537;", 131073),
    ("mad.lo.s32 %r5, -3, 5, 1;", -14),
    ("mad.wide.s32 %rd3, -3, 5, 1; cvt.u32.u64 %r5, %rd3;", -14),
    ("mul.wide.u32 %rd3, -1, 2; shr.u64 %rd3, %rd3, 32; cvt.u32.u64 %r5, %rd3;", 1),
    ("bfe.u32 %r5, 0xABCD, 4, 8;", 0xBC),
    ("bfe.s32 %r5, 0xABCD, 4, 8;", 0xBC - 256),
    ("bfe.u32 %r5, 0xABCD, 4, 0;", 0),
    ("prmt.b32 %r5, 0x33221100, 0x77665544, 0x7531U;", 0x77553311),
    ("prmt.b32 %r5, 0x33221180, 0, 0x7708U;", 0x000080FF),
    ("popc.b32 %r5, -1;", 32),
    ("dp4a.u32.u32 %r5, 0x04030281, 0x00010203, 7;", 7 + 3 * 0x81 + 2 * 2 + 3),
    ("dp2a.lo.u32.u32 %r5, 0x0102FFFF, 0x77770403, -1;", 3 * 0xFFFF + 4 * 0x0102 - 1),
    ("min.s32 %r5, -1, 1;", -1),
    ("min.u32 %r5, -1, 1;", 1),
    ("cvt.s32.s16 %r5, %rs0;", -2),
    ("cvt.u32.u16 %r5, %rs0;", 65534),
    ("cvt.rzi.s32.f32 %r5, 0fBFC00000;", -1),
    (f"cvt.rzi.s32.f32 %r5, {NAN};", 0),
    ("cvt.rzi.s32.f32 %r5, 0f7F800000;", 2**31 - 1),
    ("cvt.rzi.s32.f32 %r5, 0fFF800000;", -(2**31)),
    ("cvt.rn.f32.s32 %r5, 16777217;", float_bits(16777216.0)),
    ("cvt.f32.bf16 %r5, %rs1;", float_bits(1.5)),
    (f"min.f32 %r5, {NAN}, {HALF};", HALF),
    (f"setp.lt.f32 %p2, {NAN}, {HALF}; selp.b32 %r5, 1, 2, %p2;", 2),
    (f"setp.ne.f32 %p2, {NAN}, {HALF}; selp.b32 %r5, 1, 2, %p2;", 2),
    (f"setp.neu.f32 %p2, {NAN}, {HALF}; selp.b32 %r5, 1, 2, %p2;", 1),
    (f"setp.geu.f32 %p2, {NAN}, {HALF}; selp.b32 %r5, 1, 2, %p2;", 1),
    # rounded once: of two roundings the first would lose 2^-24
    ("fma.rn.f32 %r5, 0f3F800800, 0f3F800800, 0fBF800000;", float_bits(2**-11 + 2**-24)),
    ("fma.rn.f32 %r5, 0f3F800001, 0f3F7FFFFF, 0f4B800000;", float_bits(2.0**24 + 2)),
    ("mov.b64 %rd3, {%r0, %r9}; mov.b64 {%r6, %r5}, %rd3;", 7),
    ("sub.rn.f32x2 %rd3, %rd4, %rd4; cvt.u32.u64 %r5, %rd3;", 0),
    ("shfl.sync.up.b32 %r5, %r9, 1, 0, -1;", 7),
    ("shfl.sync.idx.b32 %r5, %r0, 3, 31, -1; and.b32 %r5, %r5, 31;", 3),
    ("setp.eq.u32 %p2, %r9, 7; vote.sync.ballot.b32 %r5, %p2, -1;", -1),
]


@pytest.mark.parametrize(("code", "expected"), RESULTS, ids=[code for code, _ in RESULTS])
def test_an_instruction_does_what_the_manual_says(code, expected):
    expected = int(expected[2:], 16) if isinstance(expected, str) else expected % 2**32
    given = "mov.u16 %rs0, -2; mov.b16 %rs1, 0x3FC0; mov.b64 %rd4, 0x3F8000003F800000;"
    assert set(run(f"{given} {code} st.global.b32 [%rd2], %r5;").tolist()) == {expected}


def test_shuffles_stay_within_a_warp():
    thread = np.arange(64)
    for code, expected in (
        ("shfl.sync.up.b32 %r5, %r0, 4, 0, -1;", np.where(thread % 32 < 4, thread, thread - 4)),
        ("shfl.sync.down.b32 %r5, %r0, 4, 31, -1;", np.where(thread % 32 > 27, thread, thread + 4)),
        ("shfl.sync.bfly.b32 %r5, %r0, 16, 31, -1;", thread ^ 16),
        ("shfl.sync.up.b32 %r5|%p2, %r0, 4, 0, -1; selp.b32 %r5, 1, 0, %p2;", thread % 32 >= 4),
    ):
        assert run(f"{code} st.global.b32 [%rd2], %r5;").tolist() == expected.astype(int).tolist()


def test_matrices_of_halves_come_by_rows_and_go_by_columns():
    body = """
        st.shared.b32 [%r3], %r0; bar.sync 0; shl.b32 %r5, %r0, 4; add.s32 %r5, %r5, %r1; @!%p1 bra $END;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r5]; bar.warp.sync -1;
        stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r5], {%r6}; bar.warp.sync -1;
        ld.shared.b32 %r7, [%r3]; ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r8}, [%r5];
        st.global.b32 [%rd2], %r7; st.global.b32 [%rd2+128], %r8; $END:
    """
    out = run(body)
    rows = np.arange(32, dtype=np.uint32).view(np.uint16).reshape(8, 8)
    assert out[:32].tolist() == np.ascontiguousarray(rows.T).reshape(-1).view(np.uint32).tolist()
    assert out[32:].tolist() == list(range(32))
