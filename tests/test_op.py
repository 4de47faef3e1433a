"""The registered op: schema, compile, autocast, inference mode, gradients, threads and forked workers."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

from bdg_fast import MASGLCM, glcm, mas_glcm
from bdg_fast.kernels.mas_glcm.cpu_threads import in_parallel
from bdg_fast.kernels.mas_glcm.spec import encode

REQUEST = encode([(0, 1), (1, -1), (-2, 0), (0, 1)], [0, 0, 1, 1])


def arguments(images, mask=None, normalize=True, impl="auto"):
    return (images, mask, REQUEST, 2, 8, 0.0, 1.0, "gray", [], normalize, True, impl)


@pytest.mark.parametrize("impl", ["reference", "cpu", "auto"])
@pytest.mark.parametrize("normalize", [True, False])
def test_opcheck(impl, normalize):
    op = torch.ops.bdg_fast.glcm.default
    images = torch.rand(2, 3, 9, 8)
    torch.library.opcheck(op, arguments(images, normalize=normalize, impl=impl))
    torch.library.opcheck(op, arguments(images, images[:, 0] > 0.3, normalize, impl))


def test_compiles_as_one_graph_for_any_size():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(images, mask):
        return mas_glcm(images * 0.5, levels=16, mask=mask, symmetric=True) + 1

    for shape in ((2, 3, 20, 24), (1, 3, 33, 17), (3, 3, 8, 41)):
        images = torch.rand(shape)
        mask = images[:, 0] > 0.2
        expected = mas_glcm(images * 0.5, levels=16, mask=mask, symmetric=True) + 1
        assert torch.equal(compiled(images, mask), expected)


def test_compiles_with_the_options_of_the_residual_and_without_reduction():
    compiled = torch.compile(
        lambda images: mas_glcm(images, 4, (1, 3), source="laplacian", quantizer="companded", reduction="none"),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    images = torch.rand(2, 1, 21, 22)
    expected = mas_glcm(images, 4, (1, 3), source="laplacian", quantizer="companded", reduction="none")
    assert torch.equal(compiled(images), expected)


def test_module_compiles_and_equals_the_function(photographs):
    module = MASGLCM(angles=4, scales=(1, 2), levels=16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = mas_glcm(photographs, 4, (1, 2), 16)
    assert torch.equal(module(photographs), expected)
    assert torch.equal(compiled(photographs), expected)
    assert "levels=16" in repr(module)
    assert module.state_dict() == {}


def test_error_in_compiled_code_is_the_same():
    compiled = torch.compile(mas_glcm, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"images must be finite .*got NaN or infinity in images\[1\]"):
        compiled(torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), torch.inf)]))


def test_autocast_and_inference_mode_change_nothing(photographs):
    images = photographs.float() / 255
    expected = mas_glcm(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mas_glcm(images), expected)
    with torch.inference_mode():
        assert torch.equal(mas_glcm(images.clone()), expected)


def test_gradient_is_refused_not_zero():
    images = torch.rand(1, 1, 8, 8, requires_grad=True)
    matrix = mas_glcm(images)
    with pytest.raises(RuntimeError, match=r"no gradient; pass images\.detach\(\)"):
        matrix.sum().backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_is_not_silently_wrong(photographs):
    try:
        mapped = torch.func.vmap(lambda image: mas_glcm(image[None])[0])(photographs)
    except RuntimeError:
        return  # refused
    assert torch.equal(mapped, mas_glcm(photographs))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_counts(photographs, threads):
    expected = glcm(photographs, [(0, 1), (3, -2)], normalize=False, impl="reference")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in (photographs[:1], photographs.repeat(5, 1, 1, 1)):
            assert torch.equal(glcm(batch, [(0, 1), (3, -2)], normalize=False, impl="cpu")[:1], expected[:1])
    finally:
        torch.set_num_threads(before)


def test_many_threads_may_call_at_once(photographs):
    expected = mas_glcm(photographs)
    results = [None] * 6

    def call(index):
        results[index] = mas_glcm(photographs)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_workers_stay_on_the_processors_allowed_to_the_caller(photographs):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two processors")
    seen = []

    def affinities():
        in_parallel(2, lambda _: seen.append(os.sched_getaffinity(0)))
        return seen.pop(), seen.pop()

    try:
        for chosen in (allowed, {min(allowed)}, {max(allowed)}, allowed):
            os.sched_setaffinity(0, chosen)
            for _ in range(3):
                assert all(mask and mask <= chosen for mask in affinities())
            assert os.sched_getaffinity(0) == chosen  # the caller's own is left alone
        assert all(len(mask) >= len(allowed) - 1 for mask in affinities())
    finally:
        os.sched_setaffinity(0, allowed)


def _in_child(queue, images):
    queue.put(mas_glcm(torch.from_numpy(images)).numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_works_in_a_forked_worker(photographs):
    expected = mas_glcm(photographs)  # the parent has made its threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, photographs.numpy()))
    child.start()
    result = queue.get()
    child.join()
    assert child.exitcode == 0
    assert torch.equal(torch.from_numpy(result), expected)


def test_batch_larger_than_the_threads_equals_single_images(photographs):
    batch = photographs.repeat(4, 1, 1, 1)[:11]
    single = torch.cat([mas_glcm(image[None]) for image in batch])
    assert torch.equal(mas_glcm(batch), single)


def test_large_images_neither_overflow_nor_leave_their_bounds():
    code = """
import torch
from bdg_fast import glcm
image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 1, 47000, 46000)  # no memory: all strides are 0
counts = glcm(image, [(0, 1)], levels=2, normalize=False, impl="cpu")
assert counts[0, 0, 0, 0] == 47000 * 45999 > 2**31, counts
side = 27000
image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 1, side, side)
torch.set_num_threads(1)
counts = glcm(image, [(side // 2, side - 1)], levels=64, normalize=False, impl="cpu")
assert counts.sum() == counts[0, 0, 0, 0] == side // 2, counts
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_row_beyond_32_bits_is_refused_not_wrong():
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 1, 1, 45_000_000)
    with pytest.raises(RuntimeError, match="32 bits do not hold it; impl='reference' can"):
        glcm(image, [(0, x) for x in range(1, 49)], levels=2, normalize=False, impl="cpu")


def test_auto_takes_the_reference_where_32_bits_do_not_do(monkeypatch):
    from bdg_fast.kernels.mas_glcm import cpu

    images = torch.rand(2, 1, 12, 13)
    expected = mas_glcm(images, impl="reference")
    cpu._make_plan.cache_clear()
    monkeypatch.setattr(cpu, "INT32_MAX", 100)
    with pytest.raises(RuntimeError, match="32 bits do not hold it"):
        mas_glcm(images, impl="cpu")
    assert torch.equal(mas_glcm(images), expected)
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"images\[1\]"):
        mas_glcm(images)


@pytest.mark.parametrize("levels", [2, 32, 33, 64, 65, 128, 129, 256])
@pytest.mark.parametrize("count", [1, 3, 11, 40])  # direct counting and byte rows
def test_few_and_many_offsets(photographs, count, levels):
    images = photographs[:2, :, :71, :90]
    generator = torch.Generator().manual_seed(count)
    offsets = torch.randint(-9, 10, (count, 2), generator=generator).tolist()
    mask = torch.rand(2, 71, 90, generator=generator) > 0.1
    for valid in (None, mask):
        options = {"levels": levels, "mask": valid}
        expected = glcm(images, offsets, normalize=False, impl="reference", **options)
        assert torch.equal(glcm(images, offsets, normalize=False, impl="cpu", **options), expected)
        torch.testing.assert_close(
            glcm(images, offsets, impl="cpu", **options),
            glcm(images, offsets, impl="reference", **options),
            rtol=2e-7,
            atol=0,
        )


def test_not_finite_is_found_even_if_no_pixel_counts():
    image = torch.full((1, 1, 2, 2), torch.nan)
    for impl in ("cpu", "reference"):
        with pytest.raises(ValueError, match=r"images\[0\]"):
            mas_glcm(image, source="laplacian", quantizer="companded", impl=impl)


def test_offsets_beyond_any_image_count_nothing():
    images = torch.rand(1, 1, 4, 4)
    for offset in ((2**31, 0), (0, -(2**63)), (10**30, 1)):
        assert glcm(images, [offset], impl="cpu").sum() == 0
