"""Matrices of overlapping windows: exactly those of the cropped windows, whatever the stride."""

import importlib.util

import pytest
import torch

from bdg_fast import local_mas_glcm, local_texture_features, mas_glcm, texture_features

HAS_TRITON = importlib.util.find_spec("triton") is not None
IMPLS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="needs triton"))]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRIDS = [((9, 12), (3, 2)), (7, 1), ((30, 37), 5), ((10, 8), (1, 7)), (1, 4), ((16, 16), (15, 1)), (13, (2, 30))]


def random_images(shape=(2, 3, 30, 37), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def cropped(images, window, stride, **options):
    """The definition."""
    h, w = (window, window) if isinstance(window, int) else window
    sy, sx = (stride, stride) if isinstance(stride, int) else stride
    tops, lefts = range(0, images.shape[2] - h + 1, sy), range(0, images.shape[3] - w + 1, sx)
    crops = [images[:, :, y : y + h, x : x + w] for y in tops for x in lefts]
    matrices = torch.stack([mas_glcm(crop, impl="reference", **options) for crop in crops], 1)
    return matrices.unflatten(1, (len(tops), len(lefts)))


@pytest.mark.parametrize(("window", "stride"), GRIDS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"levels": 8},
        {"levels": 5, "symmetric": True, "angles": [0.3, 4.0], "scales": (2, 40)},
        {"levels": 8, "source": "laplacian", "quantizer": "companded", "scales": (1, 2)},
    ],
    ids=["plain", "symmetric", "residual"],
)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_equals_cropping(impl, window, stride, options):
    images = random_images()
    options = {"angles": 3, "scales": (1, 3), **options}
    found = local_mas_glcm(images, window, stride, impl=impl, **options)
    torch.testing.assert_close(found, cropped(images, window, stride, **options), rtol=1.3e-7, atol=0)
    counts = local_mas_glcm(images, window, stride, impl=impl, normalize=False, **options)
    assert torch.equal(counts, cropped(images, window, stride, normalize=False, **options))


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize(("window", "stride"), [((9, 12), (7, 9)), (20, (10, 17))], ids=str)
def test_triton_equals_cropping(window, stride):
    images = random_images()
    options = {"levels": 8, "angles": 3, "scales": (1, 3), "normalize": False}
    found = local_mas_glcm(images.to(DEVICE), window, stride, impl="triton", **options)
    assert torch.equal(found.cpu(), cropped(images, window, stride, **options))


@pytest.mark.parametrize("levels", [2, 32, 33, 256])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.bfloat16, torch.float64])
def test_levels_and_types(levels, dtype):
    images = random_images((1, 1, 20, 50))
    images = images.to(dtype) if dtype.is_floating_point else (images * 255).to(torch.int32).to(dtype)
    for layout in (images, images.mT.contiguous().mT, images[:, :, 1:, 3:]):
        found = local_mas_glcm(layout, (12, 15), (4, 3), 4, (1, 2), levels, impl="cpu")
        expected = local_mas_glcm(layout, (12, 15), (4, 3), 4, (1, 2), levels, impl="reference")
        torch.testing.assert_close(found, expected, rtol=1.3e-7, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_chunks_do_not_change_counts(photographs, threads, monkeypatch):
    from bdg_fast.kernels.local_glcm import cpu

    images = photographs[:1, :, :90, :140]
    expected = local_mas_glcm(images, 24, 3, normalize=False)
    monkeypatch.setattr(cpu, "STRIP_BYTES", 1 << 14)  # eight windows a chunk
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(local_mas_glcm(images, 24, 3, normalize=False), expected)
    finally:
        torch.set_num_threads(before)


def test_sums_to_one(photographs):
    found = local_mas_glcm(photographs[:, :, :64, :64], 32, 16)
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(3, 3, 3))


def test_features_are_those_of_the_matrices(photographs, monkeypatch):
    images = photographs[:2, :, :60, :70]
    props = ("contrast", "entropy", "correlation")
    matrices = local_mas_glcm(images, 20, (5, 10), levels=16, source="laplacian", quantizer="companded")
    expected = texture_features(matrices, props).movedim(-1, 1)
    options = {"levels": 16, "source": "laplacian", "quantizer": "companded"}
    assert torch.equal(local_texture_features(images, 20, (5, 10), props, **options), expected)
    monkeypatch.setattr("bdg_fast.texture.BAND_CELLS", 1)  # a row of windows at a time
    torch.testing.assert_close(local_texture_features(images, 20, (5, 10), props, **options), expected)


def test_a_map_shows_where_the_noise_is(photographs):
    image = photographs[:1].float() / 255
    noisy = image.clone()
    noise = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    noisy[0, :, 64:192, 64:192] += noise
    options = {"source": "laplacian", "quantizer": "companded"}
    before = local_texture_features(image, 32, 32, ("contrast",), **options)[0, 0]
    after = local_texture_features(noisy.clamp(0, 1), 32, 32, ("contrast",), **options)[0, 0]
    changed = after > 1.5 * before
    assert changed[2:6, 2:6].all()
    changed[2:6, 2:6] = False
    assert not changed.any()


def test_compiles_and_checks():
    images = random_images((1, 1, 20, 24))
    compiled = torch.compile(
        lambda x: local_mas_glcm(x, 8, (2, 3), 3, (1,), 8) * 2, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    assert torch.equal(compiled(images), local_mas_glcm(images, 8, (2, 3), 3, (1,), 8) * 2)
    for impl in ("cpu", "reference"):
        arguments = (images, [8, 8], [2, 3], "0,1,0;1,-1,0", 8, 0.0, 1.0, "gray", [], True, True, impl)
        torch.library.opcheck(torch.ops.bdg_fast.local_glcm.default, arguments)


def test_feature_maps_compile_and_still_check():
    images = random_images((2, 1, 20, 24))
    compiled = torch.compile(local_texture_features, fullgraph=True, dynamic=True, backend="aot_eager")
    props = ("contrast", "correlation", "entropy")  # each is traced for seconds
    torch.testing.assert_close(compiled(images, 8, 4, props), local_texture_features(images, 8, 4, props))
    images[1, 0, 19, 23] = torch.nan
    with pytest.raises(ValueError, match=r"images must be finite .*images\[1\]"):
        compiled(images, 8, 4, props)
    torch.library.opcheck(torch.ops.bdg_fast.zero_if_finite.default, (images[:1],))


def test_features_are_float32_whatever_the_default():
    images = random_images((1, 1, 20, 24))
    expected = local_texture_features(images, 8, 4)
    assert expected.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        for dtype in (torch.float16, torch.float32, torch.float64):
            assert local_texture_features(images.to(dtype), 8, 4).dtype == torch.float32
        assert torch.equal(local_texture_features(images.double(), 8, 4), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_finite_means_finite_in_float32():
    images = random_images((2, 1, 20, 24)).double()
    images[1, 0, 0, 0] = 1e300
    for function in (local_mas_glcm, local_texture_features):
        with pytest.raises(ValueError, match=r"images must be finite \(in float32\).*images\[1\]"):
            function(images, 8, 4)


def test_what_can_be_gone_through_once_is_enough():
    images = random_images((2, 1, 20, 24))
    props, options = ("contrast", "mean"), {"angles": (0.1, 1.0), "scales": (1, 2)}
    expected = local_texture_features(images, 8, 4, props, **options)
    once = {key: iter(value) for key, value in options.items()}
    assert torch.equal(local_texture_features(images, 8, 4, iter(props), **once), expected)


def test_empty_batch_and_gradient():
    assert local_mas_glcm(random_images((0, 3, 20, 24)), 8, 4).shape == (0, 4, 5, 32, 32)
    with pytest.raises(RuntimeError, match="no gradient"):
        local_mas_glcm(random_images().requires_grad_(), 8, 4).sum().backward()


@pytest.mark.parametrize("stride", [1, 100])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_not_finite_names_the_image(impl, stride):
    images = random_images()
    images[1, 0, 29, 36] = torch.nan
    for function in (local_mas_glcm, local_texture_features):
        with pytest.raises(ValueError, match=r"images\[1\]"):
            function(images, 8, stride, impl=impl)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "window must be an integer >= 1 or two of them .*got 0"),
        (((3, 4, 5),), r"window must be .*got \(3, 4, 5\)"),
        (("8",), "window must be .*got '8'"),
        ((31,), "window must be no larger than images, 30 x 37, got 31 x 31"),
        ((8, 0), "stride must be an integer >= 1.*got 0"),
        ((8, 1.5), r"stride must be .*got 1\.5"),
    ],
)
def test_bad_windows_and_strides_are_named(arguments, message):
    for function in (local_mas_glcm, local_texture_features):
        with pytest.raises(ValueError, match=message):
            function(random_images(), *arguments)


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "stride"), [((9, 12), (7, 9)), (20, (10, 17)), (7, 1)], ids=str)
@pytest.mark.parametrize("levels", [8, 32, 256])
def test_windows_on_the_gpu_equal_the_cpu(window, stride, levels, photographs):
    images = photographs[:2, :, :30, :37]
    found = local_mas_glcm(images.cuda(), window, stride, 3, (1, 3), levels, normalize=False)
    expected = local_mas_glcm(images, window, stride, 3, (1, 3), levels, normalize=False)
    assert found.is_cuda and torch.equal(found.cpu(), expected)
    features = local_texture_features(images.cuda(), 16, 7, levels=8)
    torch.testing.assert_close(features.cpu(), local_texture_features(images, 16, 7, levels=8), rtol=1e-4, atol=1e-5)
