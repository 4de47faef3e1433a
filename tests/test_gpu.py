"""What only a GPU can show; `make gpu-report` runs these. On the CPU `impl="auto"` needs no package beyond torch."""

import pytest
import torch

from bdg_fast import glcm, mas_glcm

pytestmark = pytest.mark.gpu

OFFSETS = [(0, 1), (1, 1), (2, -1), (-3, 2), (0, 0), (6, 0), (40, 3)]


def random_images(shape, dtype, seed=0):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    if dtype.is_floating_point:
        return images.to(dtype)
    return (images * (255 if dtype == torch.uint8 else 65535)).to(torch.int32).to(dtype)


CASES = [(levels, dtype) for dtype in (torch.uint8, torch.float32) for levels in (2, 16, 31, 32, 33, 100, 256)]
CASES += [(32, dtype) for dtype in (torch.uint16, torch.float16, torch.bfloat16)]


@pytest.mark.parametrize(("levels", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 5), (3, 1, 63, 65), (2, 3, 127, 193)], ids=str)
def test_counts_equal_the_cpu(levels, dtype, shape):
    images = random_images(shape, dtype)
    mask = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1)) > 0.2
    for source, quantizer in (("gray", "uniform"), ("laplacian", "companded")):
        for valid in (None, mask):
            options = {"levels": levels, "source": source, "quantizer": quantizer, "normalize": False}
            expected = glcm(images, OFFSETS, **options, mask=valid, impl="reference")
            found = glcm(images.cuda(), OFFSETS, **options, mask=None if valid is None else valid.cuda(), impl="triton")
            assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_any_strides(layout):
    images = random_images((2, 3, 64, 96), torch.float32)
    views = {
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "sliced": lambda x: x[:, :, 3::2, 1:90:3],
        "transposed": lambda x: x.mT,
        "expanded": lambda x: x[:1, :1].expand(4, 3, -1, -1),
    }
    view = views[layout](images.cuda())
    assert torch.equal(mas_glcm(view).cpu(), mas_glcm(views[layout](images)))


def test_normalized_result_is_bit_equal_and_repeatable(photographs):
    images = photographs.cuda()
    first = mas_glcm(images)
    assert all(torch.equal(mas_glcm(images), first) for _ in range(3))
    assert torch.equal(first.cpu(), mas_glcm(photographs))


def test_reference_runs_on_the_gpu(photographs):
    images = photographs.cuda()
    assert torch.equal(
        mas_glcm(images, impl="reference", normalize=False), mas_glcm(images, impl="triton", normalize=False)
    )


def test_cuda_graph_replays_on_new_input(photographs):
    static = photographs.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mas_glcm(static, check_finite=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = mas_glcm(static, check_finite=False)
    for images in (photographs.flip(0), 255 - photographs):
        static.copy_(images)
        graph.replay()
        assert torch.equal(result.cpu(), mas_glcm(images))


def test_capture_with_the_check_says_what_to_pass(photographs):
    images = photographs.cuda().float()
    mas_glcm(images, check_finite=False)
    with pytest.raises(RuntimeError, match="check_finite=False"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mas_glcm(images)


def test_first_call_during_capture_says_what_to_do(photographs):
    images = photographs.cuda()
    with pytest.raises(RuntimeError, match="must run once"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mas_glcm(images, 7, (3, 11), check_finite=False)


def test_compiled_into_cuda_graphs():
    function = lambda x: mas_glcm(x * 0.5, 5, (2, 9), source="laplacian", check_finite=False) + 1  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    for seed in range(5):  # the first calls warm up and record, later ones replay
        images = torch.rand(2, 3, 48, 40, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        torch.testing.assert_close(compiled(images).clone(), function(images), rtol=0, atol=1e-7)


def test_no_host_synchronisation_without_the_check():
    images = torch.rand(4, 3, 64, 64, device="cuda")
    mas_glcm(images, check_finite=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mas_glcm(images, check_finite=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend):
    compiled = torch.compile(lambda x: mas_glcm(x * 0.5) + 1, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 3, 40, 48), (1, 3, 65, 33)):
        images = torch.rand(shape, device="cuda")
        torch.testing.assert_close(compiled(images), mas_glcm(images * 0.5) + 1, rtol=0, atol=1e-7)


def test_autocast_and_inference_mode_change_nothing():
    images = torch.rand(2, 3, 64, 64, device="cuda")
    expected = mas_glcm(images)
    with torch.autocast("cuda"), torch.inference_mode():
        assert torch.equal(mas_glcm(images), expected)


def test_not_finite_is_named():
    images = torch.zeros(3, 1, 8, 8, device="cuda")
    images[2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"images\[2\]"):
        mas_glcm(images)


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
def test_runs_on_the_device_of_its_input():
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(mas_glcm(images.to("cuda:1")).cpu(), mas_glcm(images))


def test_more_than_2_31_elements():
    side = 46400  # side^2 > 2^31 bytes
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8, device="cuda")
    image[0, 0, -1, -1] = 255
    counts = glcm(image, [(0, 1), (1, 0)], levels=2, normalize=False)
    assert counts.sum((2, 3)).tolist() == [[side * (side - 1)] * 2]
    assert counts[0, :, 0, 1].tolist() == [1, 1]


def test_large_batch_runs_in_pieces():
    images = random_images((600, 1, 16, 16), torch.uint8)
    assert torch.equal(mas_glcm(images.cuda(), levels=64).cpu(), mas_glcm(images, levels=64))
