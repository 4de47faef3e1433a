"""What `test_ptx.py` runs in a process of its own, where Triton compiles. ``python tests/ptx_cases.py NAME ...``.

A line of JSON for each case, or for those named: its name, seconds, and how it failed, if it did.
"""

import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from unittest import mock

import pytest
import torch

from bdg_fast import glcm, mas_glcm, soft_mas_glcm

OFFSETS = [(0, 1), (1, 1), (2, -1), (-3, 2), (0, 0), (6, 0), (0, -6), (40, 3), (3, 40), (3, -40), (10**12, 1)]
CASES: dict[str, Callable[[], None]] = {}


def case(*choices):
    """Names a case for each combination of ``choices``."""

    def add(function):
        for chosen in itertools.product(*choices):
            name = " ".join([function.__name__, *map(str, chosen)]).replace("_", " ")
            CASES[name] = lambda chosen=chosen: function(*chosen)
        return function

    return add


def on_gpu(**options):
    import ptx_launch  # needs triton, which the list of cases does not

    return ptx_launch.on_gpu(**options)


def random_images(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def check(images, offsets=OFFSETS, variant="shared", order="together", processors=132, capability=90, **options):
    """Counts equal the reference's, and were made as on a GPU; returns the launches."""
    from bdg_fast.kernels.mas_glcm import triton

    expected = glcm(images, offsets, normalize=False, impl="reference", **options)
    with (
        mock.patch.object(triton, "VARIANT", variant),
        on_gpu(order=order, processors=processors, capability=capability) as launches,
    ):
        found = glcm(images, offsets, normalize=False, impl="triton", **options)
    assert torch.equal(found, expected)
    for launch in launches.of("bins_kernel"):
        assert launch["BINS"] == ("counts" if variant == "counts" else "ptx")
        assert launch["PACKED"] == (variant == "packed")
    return launches


@case(["shared", "packed"], [8, 32, 105, 128, 256], ["whole", "masked"])
def counts(variant, levels, region):
    for shape, source in (((2, 3, 9, 47), "gray"), ((1, 1, 12, 11), "laplacian"), ((3, 1, 1, 1), "laplacian")):
        images = random_images(shape)
        mask = random_images((shape[0], *shape[2:]), 1) > 0.2 if region == "masked" else None
        quantizer = "companded" if source == "laplacian" else "uniform"
        options = {"levels": levels, "source": source, "quantizer": quantizer, "mask": mask}
        launches = check(images, variant=variant, **options)
        parted = levels > (105 if variant == "shared" else 128)
        assert len(launches.of("order_kernel")) == len(launches.of("bins_kernel")) * parted
        assert len(launches.of("level_kernel")) == (shape[3] > 2)


@case(["whole", "masked"])
def means(region):
    images = random_images((2, 3, 17, 23))
    mask = random_images((2, 17, 23), 1) > 0.2 if region == "masked" else None
    with on_gpu():
        found = mas_glcm(images, 5, (1, 3), mask=mask, impl="triton")
    expected = mas_glcm(images, 5, (1, 3), mask=mask, impl="reference")
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


@case([torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32], [1, 3], ["gray", "laplacian"])
def pixels(dtype, channels, source):
    most = {torch.uint8: 256, torch.uint16: 65536}.get(dtype)
    images = random_images((2, channels, 13, 10))
    images = images.to(dtype) if most is None else (images * most).to(torch.int32).to(dtype)
    check(images, source=source, quantizer="companded" if source == "laplacian" else "uniform")
    if dtype == torch.float32:
        images[0, 0, 2, 3], images[1, 0, 4, 5], images[1, 0, 6, 7] = float("nan"), float("inf"), -float("inf")
        check(images, check_finite=False, source=source)


@case()
def strides():
    images = (random_images((4, 3, 22, 36)) * 256).to(torch.uint8)
    for view in (
        images[1:3, :, 3:, 1:],
        images[..., ::2],
        images.mT,
        images.to(memory_format=torch.channels_last),
        images[:1, :1].expand(2, 3, 22, 36),
    ):
        check(view, mask=random_images((len(view), *view.shape[2:])).mT.contiguous().mT > 0.1)


@case([(1, 1), (1, 7), (7, 1), (7, 5), (63, 65), (2, 1030)])
def sizes(size):
    check(random_images((2, 1, *size)))


@case(["shared", "packed", "counts", "product"], [16, 256])
def integers_of_64_bits(variant, levels):
    from bdg_fast.kernels.mas_glcm import triton

    work = triton.Work
    with mock.patch.object(triton, "Work", lambda *arguments: work(*arguments)._replace(wide=True)):
        launches = check(random_images((2, 3, 21, 33)), variant=variant, levels=levels)
    (launch,) = launches.of("product_kernel" if variant == "product" else "bins_kernel")
    assert launch["WIDE"] and launch["counts"].dtype == torch.int64


@case(["shared", "packed"], [0.0, 0.5, 1.0], [32, 256])
def flat_images_and_many_pixels_a_thread(variant, content, levels):
    images = torch.full((1, 1, *((130, 131) if levels == 32 else (70, 71))), content)
    launches = check(images, [(0, 1), (2, 3)], variant=variant, levels=levels)
    (launch,) = launches.of("bins_kernel")
    assert (launch["P"], launch["num_warps"]) == ((4096, 4) if levels == 32 else (2048, 4))
    assert (launch["splits"] > 1) == (levels == 32)


@case(["shared", "packed"])
def a_program_for_all_of_a_large_matrix(variant):
    (launch,) = check(random_images((1, 1, 130, 131)), [(3, -1)], variant, processors=1, levels=256).of("bins_kernel")
    assert (launch["P"], launch["num_warps"], launch["splits"]) == (2048, 4, 1)


@case()
def a_batch_in_pieces():
    from bdg_fast.kernels.mas_glcm import triton

    with mock.patch.object(triton, "HELD_BYTES", 1 << 18):
        launches = check(random_images((5, 1, 20, 19)), mas_offsets())
    assert len(launches.of("bins_kernel")) > 1


def mas_offsets():
    from bdg_fast import glcm_offsets

    return list(glcm_offsets())


@case(["forward", "backward", "shuffled"], [32, 128, 256])
def warps(order, levels):
    images = random_images((1, 1, 47, 51))
    check(images, [(0, 1), (3, -2)], levels=levels, order=order, mask=images[:, 0] > 0.1)


@case(["counts", "product"], [8, 32, 256])
def other_ways(variant, levels):
    images = random_images((2, 3, 23, 29))
    for mask in (None, images[:, 0] > 0.1):
        launches = check(images, variant=variant, levels=levels, mask=mask)
    assert len(launches.of("product_kernel")) == (variant == "product")


del CASES["other ways product 256"], CASES["integers of 64 bits product 256"]  # products stop at 32 levels


@case([80, 100], [32, 128])
def other_gpus(capability, levels):
    images = random_images((2, 3, 23, 29))
    check(images, capability=capability, levels=levels, mask=images[:, 0] > 0.1)


@case(["together", "backward"], ["whole", "masked"])
def soft(order, region):
    for shape in ((2, 1, 19, 21), (3, 1, 1, 1)):
        mask = random_images((shape[0], *shape[2:]), 1) > 0.2 if region == "masked" else None
        results = []
        for impl in ("reference", "triton"):
            images = random_images(shape).requires_grad_()
            with on_gpu(order=order) as launches:
                out = soft_mas_glcm(images, 5, (1, 30), 8, mask=mask, impl=impl)
                (gradient,) = torch.autograd.grad(out, images, random_images(out.shape, 2))
            results.append((out.detach(), gradient))
        assert [len(launches.of(name)) for name in ("add_kernel", "pull_kernel")] == [1, 1]
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@case([32, 128])
def a_missing_barrier_is_caught(levels):
    import ptx

    for missing in (0, 1):

        def without(text, missing=missing):
            if ".entry bins_kernel" not in text:
                return text
            barriers = list(re.finditer(r"bar\.sync\s+0;", text))
            assert len(barriers) == 2
            return text[: barriers[missing].start()] + text[barriers[missing].end() :]

        with on_gpu(rewrite=without), pytest.raises(ptx.PtxError, match="race"):
            glcm(random_images((1, 1, 130, 131)), [(0, 1)], levels=levels, normalize=False, impl="triton")


@case()
def a_level_image_too_small_is_caught():
    import ptx
    from bdg_fast.kernels.mas_glcm import triton

    plan = triton.plan_bins

    def short(*arguments):
        bins = plan(*arguments)
        return bins._replace(plane=bins.plane - 1024)

    with (
        mock.patch.object(triton, "plan_bins", short),
        pytest.raises(ptx.PtxError, match=r"ld\.global.*out of bounds"),
        on_gpu(),
    ):
        glcm(random_images((1, 1, 32, 31)), [(5, 1)], levels=32, normalize=False, impl="triton")


def main(names: list[str]) -> None:
    for name in names or CASES:
        start, failure = time.perf_counter(), ""
        try:
            CASES[name]()
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps({"case": name, "seconds": round(time.perf_counter() - start, 2), "failure": failure}))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
