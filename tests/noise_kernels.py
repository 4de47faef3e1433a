"""Kernels that show what those of the package draw. Run as a program, it compiles them for GPUs that are not there."""

import triton
import triton.language as tl

from bdg_fast.kernels.pixelwise.triton_kernels import box_muller, normals


@triton.jit
def words(counter, key, out):
    """A block of four 32-bit words, as int64."""
    # loaded one by one: compiled code has no lists
    a, b = tl.load(counter).to(tl.uint32), tl.load(counter + 1).to(tl.uint32)
    c, d = tl.load(counter + 2).to(tl.uint32), tl.load(counter + 3).to(tl.uint32)
    found = tl.philox(tl.load(key), a, b, c, d)
    for i in tl.static_range(4):
        tl.store(out + i, found[i].to(tl.int64))


@triton.jit
def pairs(first, second, out, P: tl.constexpr):
    """Two rows of normal numbers, of two rows of words."""
    at = tl.arange(0, P)
    x, y = box_muller(tl.load(first + at).to(tl.uint32), tl.load(second + at).to(tl.uint32))
    tl.store(out + at, x)
    tl.store(out + P + at, y)


@triton.jit
def drawn(seed, out, step, far, P: tl.constexpr):
    """Three rows of normal numbers, of the pixels from ``far``."""
    at = far + tl.arange(0, P)
    found = normals(tl.load(seed), at, step, 1, True)
    for i in tl.static_range(3):
        tl.store(out + i * P + tl.arange(0, P), found[i])


if __name__ == "__main__":
    from benchmarks.codegen_tools import TARGETS, compile_kernel

    for target in TARGETS.values():
        compile_kernel(words, {"counter": "*i64", "key": "*i64", "out": "*i64"}, {}, target, 4)
        compile_kernel(
            pairs, {"first": "*i64", "second": "*i64", "out": "*fp32", "P": "constexpr"}, {"P": 64}, target, 4
        )
        kinds = {"seed": "*i64", "out": "*fp32", "step": "i32", "far": "i64", "P": "constexpr"}
        compile_kernel(drawn, kinds, {"P": 32}, target, 4)
