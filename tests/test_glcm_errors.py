"""Bad input is refused with the argument's name, what came and what is allowed."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

from bdg_fast import MASGLCM, fingerprint, glcm, glcm_offsets, local_mas_glcm, mas_glcm

IMAGES = torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
BAD_IMAGES = {
    "rank": (torch.zeros(3, 8, 9), ValueError, r"images must have rank 4.*got shape \[3, 8, 9\]"),
    "channels": (torch.zeros(1, 2, 8, 9), ValueError, r"images must have 1 .* or 3 .*channels, got 2"),
    "channels last": (torch.zeros(1, 8, 9, 3), ValueError, r"channels, got 8; .*images\.permute\(0, 3, 1, 2\)"),
    "int32": (IMAGES.to(torch.int32), TypeError, r"images must be one of uint8, uint16, float16.*got int32"),
    "int8": (IMAGES.to(torch.int8), TypeError, r"images must be one of uint8, .*got int8"),
    "bool": (IMAGES.to(torch.bool), TypeError, r"images must be one of uint8, .*got bool"),
    "sparse": (IMAGES.float().to_sparse(), TypeError, r"images must be a dense tensor, got layout sparse_coo"),
    "array": (IMAGES.numpy(), TypeError, r"images must be a torch.Tensor.*got ndarray"),
}
BAD_OPTIONS = {
    "levels low": ({"levels": 1}, r"levels must be .*2\.\.256, got 1"),
    "levels high": ({"levels": 257}, r"levels must be .*2\.\.256, got 257"),
    "levels fraction": ({"levels": 8.5}, r"levels must be .*2\.\.256, got 8\.5"),
    "levels none": ({"levels": None}, r"levels must be .*2\.\.256, got None"),
    "levels text": ({"levels": "8"}, r"levels must be .*2\.\.256, got '8'"),
    "range number": ({"value_range": 1}, r"value_range must be \(low, high\).*got 1"),
    "range text": ({"value_range": ("a", 1)}, r"value_range must be \(low, high\).*got \('a', 1\)"),
    "quantizer number": ({"quantizer": 5}, r"quantizer must be 'uniform'.*got 5"),
    "source none": ({"source": None}, r"source must be 'gray' or 'laplacian', got None"),
    "range reversed": ({"value_range": (1.0, 0.0)}, r"value_range must be .*low < high, got \(1\.0, 0\.0\)"),
    "range empty": ({"value_range": (0.5, 0.5)}, r"value_range must be .*low < high, got \(0\.5, 0\.5\)"),
    "range infinite": ({"value_range": (0.0, float("inf"))}, r"value_range must be .*finite.*inf"),
    "source": ({"source": "sobel"}, r"source must be 'gray' or 'laplacian', got 'sobel'"),
    "quantizer": ({"quantizer": "log"}, r"quantizer must be 'uniform', 'companded'.*got 'log'"),
    "companded gray": ({"quantizer": "companded"}, r"quantizer='companded' is for source='laplacian'"),
    "thresholds count": ({"levels": 4, "quantizer": [1, 2]}, r"quantizer must hold .*3 thresholds, got 2"),
    "thresholds order": ({"levels": 4, "quantizer": [1, 5, 5]}, r"quantizer must be .*increasing, got 5 "),
    "thresholds range": ({"levels": 3, "quantizer": [5, 70000]}, r"quantizer must .*0\.\.65535, got 70000"),
    "thresholds fraction": ({"levels": 3, "quantizer": [1.5, 7]}, r"quantizer must .*integers.*got 1\.5"),
    "impl": ({"impl": "cuda"}, r"impl must be one of 'auto', 'reference', 'cpu', 'triton', got 'cuda'"),
    "mask shape": (
        {"mask": torch.ones(2, 9, 8, dtype=torch.bool)},
        r"mask must have shape .*8, 9\].*got \[2, 9, 8\]",
    ),
    "mask batch": (
        {"mask": torch.ones(3, 8, 9, dtype=torch.bool)},
        r"mask must have shape \[2 or 1.*got \[3, 8, 9\]",
    ),
    "mask channels": (
        {"mask": torch.ones(2, 3, 8, 9, dtype=torch.bool)},
        r"mask must have shape .*got \[2, 3, 8, 9\]",
    ),
    "normalize text": ({"normalize": "no"}, r"normalize must be True or False, got 'no'"),
    "normalize none": ({"normalize": None}, r"normalize must be True or False, got None"),
    "symmetric number": ({"symmetric": 2}, r"symmetric must be True or False, got 2"),
    "check_finite": ({"check_finite": [True]}, r"check_finite must be True or False, got \[True\]"),
    "mask rank": ({"mask": torch.ones(8, 9, dtype=torch.bool)}, r"mask must have shape .*got \[8, 9\]"),
}
BAD_GEOMETRY = {
    "no angles": ({"angles": 0}, r"angles must be at least 1.*got 0"),
    "empty angles": ({"angles": []}, r"angles must not be empty"),
    "nan angle": ({"angles": [float("nan")]}, r"angles must be finite radians, got nan"),
    "text angles": ({"angles": "nine"}, r"angles must be a whole number or a sequence of radians, got 'nine'"),
    "angles true": ({"angles": True}, r"angles must be a whole number or a sequence of radians, got True"),
    "fractional angles": ({"angles": 0.5}, r"angles must be a whole number or .*got 0\.5"),
    "text angle": ({"angles": ["up"]}, r"angles must be finite radians, got 'up'"),
    "one scale": ({"scales": 3}, r"scales must be a sequence of distances.*got 3"),
    "nan scale": ({"scales": [float("nan")]}, r"scales must be integers >= 1.*got nan"),
    "infinite scale": ({"scales": [float("inf")]}, r"scales must be integers >= 1.*got inf"),
    "huge scale": ({"scales": [10**400]}, r"scales must be integers >= 1 \(pixels, below 2\*\*31\), got 1000"),
    "empty scales": ({"scales": ()}, r"scales must not be empty"),
    "zero scale": ({"scales": (1, 0)}, r"scales must be integers >= 1.*got 0"),
    "negative scale": ({"scales": (-2,)}, r"scales must be integers >= 1.*got -2"),
    "fractional scale": ({"scales": (1.5,)}, r"scales must be integers >= 1.*got 1\.5"),
}
each_function = pytest.mark.parametrize(
    "call", [mas_glcm, lambda images, **kw: glcm(images, [(0, 1)], **kw)], ids=["mas_glcm", "glcm"]
)


@each_function
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images(call, name):
    images, error, message = BAD_IMAGES[name]
    with pytest.raises(error, match=message):
        call(images)


@each_function
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options(call, name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        call(IMAGES, **options)


@pytest.mark.parametrize("name", BAD_GEOMETRY)
def test_angles_and_scales(name):
    options, message = BAD_GEOMETRY[name]
    mas_glcm(IMAGES, 1)  # what equals True
    glcm_offsets(1)
    for call in (lambda **kw: mas_glcm(IMAGES, **kw), glcm_offsets, MASGLCM):
        with pytest.raises(ValueError, match=message):
            call(**options)


def test_the_module_checks_what_needs_no_image():
    for option, value in {"reduction": "sum", "impl": "cuda", "levels": 1, "source": "sobel"}.items():
        with pytest.raises(ValueError, match=f"{option} must be .*got {value!r}"):
            MASGLCM(**{option: value})


def test_numbers_of_any_type_are_taken():
    images = torch.rand(1, 1, 12, 12)
    expected = mas_glcm(images, 4, (1, 2), 8)
    assert torch.equal(mas_glcm(images, np.int64(4), np.array([1, 2]), np.uint8(8)), expected)
    assert torch.equal(mas_glcm(images, 4.0, (1.0, 2.0), 8.0), expected)
    assert torch.equal(mas_glcm(images, torch.arange(4) * (torch.pi / 4), torch.tensor([1, 2]), 8), expected)
    pairs = glcm(images, [(0, 1), (2, -1)])
    assert torch.equal(glcm(images, np.array([(0, 1), (2, -1)])), pairs)


def test_flags_may_be_numbers():
    images = torch.rand(1, 1, 12, 12)
    for yes, no in ((1, 0), (np.True_, np.False_), (1.0, 0.0)):
        found = mas_glcm(images, normalize=no, symmetric=yes, check_finite=no)
        assert torch.equal(found, mas_glcm(images, normalize=False, symmetric=True, check_finite=False))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_can_be_gone_through_once_is_enough(reduction):
    images = torch.rand(2, 1, 12, 12)
    angles, scales, thresholds = (0.1, 1.4), (1, 2), (9, 40000, 50000)
    options = {"levels": 4, "reduction": reduction}
    expected = mas_glcm(images, angles, scales, quantizer=thresholds, **options)
    found = mas_glcm(images, iter(angles), (s for s in scales), quantizer=iter(thresholds), **options)
    assert torch.equal(found, expected)
    module = MASGLCM(iter(angles), (s for s in scales), quantizer=iter(thresholds), **options)
    assert torch.equal(module(images), expected)
    assert torch.equal(module(images), expected)
    assert torch.equal(glcm(images, ((0, s) for s in scales)), glcm(images, [(0, 1), (0, 2)]))
    assert torch.equal(glcm(images, [(0, True)]), glcm(images, [(0, 1)]))


def test_a_sparse_mask_is_refused():
    with pytest.raises(TypeError, match="mask must be a dense tensor, got layout sparse_coo"):
        mas_glcm(IMAGES, mask=torch.ones(2, 8, 9, dtype=torch.bool).to_sparse())


def test_a_tensor_of_angles_may_change_between_calls():
    angles, images = torch.tensor([0.0, 0.5]), torch.rand(1, 1, 12, 12)
    mas_glcm(images, angles)
    angles += 1
    assert torch.equal(mas_glcm(images, angles), mas_glcm(images, angles.tolist()))
    inside = (angles[0], angles[1])
    mas_glcm(images, inside)
    angles += 1
    assert torch.equal(mas_glcm(images, inside), mas_glcm(images, angles.tolist()))


def test_threshold_range_of_the_residual():
    with pytest.raises(ValueError, match=r"quantizer must .*-262140\.\.262140, got 300000"):
        mas_glcm(IMAGES, levels=3, source="laplacian", quantizer=[0, 300000])


def test_reduction():
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        mas_glcm(IMAGES, reduction="sum")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "offsets must not be empty"),
        ([(1, 2, 3)], r"offsets must be pairs of integers.*got \(1, 2, 3\)"),
        ((0, 1), r"offsets must be pairs of integers \(dy, dx\), got 0"),
        (5, r"offsets must be a sequence of pairs.*got 5"),
        ([(0, 1), (0.5, 1)], r"offsets must be pairs of integers.*got \(0\.5, 1\)"),
    ],
)
def test_offsets(offsets, message):
    with pytest.raises(ValueError, match=message):
        glcm(IMAGES, offsets)


@pytest.mark.parametrize("mask", [torch.ones(2, 8, 9), [[True]]], ids=["float", "list"])
def test_mask_type(mask):
    with pytest.raises(TypeError, match=r"mask must be a torch\.bool tensor, got (torch\.float32|list)"):
        mas_glcm(IMAGES, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("impl", ["reference", "cpu", "auto"])
def test_not_finite_names_the_image(value, impl, dtype):
    images = torch.rand(4, 3, 6, 7).to(dtype)
    images[2, 1, 3, 3] = value
    with pytest.raises(ValueError, match=r"images must be finite.*images\[2\].*check_finite=False"):
        mas_glcm(images, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu", "triton"])
def test_unchecked_values_clamp_and_nan_is_black(impl):
    if impl == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    images = torch.tensor([[[[float("nan"), float("inf"), -float("inf")]]]])
    counts = glcm(images, [(0, 1)], levels=4, normalize=False, impl=impl, check_finite=False)
    expected = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    expected[0, 0, 0, 3] = expected[0, 0, 3, 0] = 1
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("value_range", [(0.0, 1e39), (-1e39, 1.0), (0.0, 1e-45)])
def test_value_range_must_fit_float32(value_range):
    with pytest.raises(ValueError, match=r"value_range must be .*got"):
        mas_glcm(torch.rand(1, 1, 4, 4), value_range=value_range)


def test_float64_is_converted_to_float32():
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    assert torch.equal(mas_glcm(images), mas_glcm(images.float()))


def test_float64_beyond_float32_is_not_finite():
    images = torch.full((1, 1, 4, 4), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"images must be finite \(in float32\)"):
        mas_glcm(images)


def test_gradients_are_refused():
    images = torch.rand(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        mas_glcm(images).sum().backward()


def test_unavailable_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run: .*CUDA.*images are on cpu.*'auto'"):
        mas_glcm(IMAGES, impl="triton")


@pytest.mark.gpu
def test_unavailable_cpu_backend_on_a_gpu():
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot run: .*images are on cuda.*'auto'"):
        mas_glcm(IMAGES.cuda(), impl="cpu")


@pytest.mark.gpu
def test_mask_on_another_device():
    with pytest.raises(ValueError, match="mask must be on the device of images, cuda:0, got cpu"):
        mas_glcm(IMAGES.cuda(), mask=torch.ones(2, 8, 9, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("compute", [mas_glcm, MASGLCM(), partial(local_mas_glcm, window=32), fingerprint])
def test_floating_images_in_0_to_255_are_warned_of_where_the_caller_is(compute, dtype, monkeypatch):
    monkeypatch.setattr("bdg_fast.kernels.mas_glcm.ops._looked", 0)
    images = torch.rand(1, 3, 64, 64).mul(255).to(dtype)
    with pytest.warns(UserWarning, match=r"images are in \S+\.\.25\d.*far outside of value_range \(0, 1\)") as found:
        compute(images.requires_grad_())
    assert {each.filename for each in found} == {__file__}


def test_images_of_networks_are_warned_of_in_the_first_calls(monkeypatch):
    monkeypatch.setattr("bdg_fast.kernels.mas_glcm.ops._looked", 31)
    with pytest.warns(UserWarning, match=r"images are in -\S+\.\.\S+, far outside"):
        mas_glcm(torch.rand(1, 3, 64, 64) * 2 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mas_glcm(torch.rand(1, 3, 64, 64) * 2 - 1)


def test_values_a_little_outside_of_another_range_or_outside_the_mask_are_not_warned_of(monkeypatch):
    monkeypatch.setattr("bdg_fast.kernels.mas_glcm.ops._looked", 0)
    images, mask = torch.rand(1, 1, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool)
    mask[0, 3, 4] = False
    holed = images.clone()
    holed[0, 0, 3, 4] = -1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mas_glcm(images * 1.9 - 0.4)
        mas_glcm(images * 255, value_range=(0, 100))
        mas_glcm(images * 255, check_finite=False)
        mas_glcm(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
        mas_glcm(images[:0] * 255)
        mas_glcm(holed, mask=mask)
        mas_glcm(holed, mask=torch.zeros_like(mask))
        torch.compile(mas_glcm, backend="eager")(images * 255)
    with pytest.warns(UserWarning, match=r"-1e\+06"):
        mas_glcm(holed, mask=~mask)


def test_what_is_looked_at_makes_nobody_compile_anew(monkeypatch):
    monkeypatch.setattr("bdg_fast.kernels.mas_glcm.ops._looked", 0)
    graphs = []
    compiled = torch.compile(mas_glcm, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    images = torch.rand(1, 1, 16, 16)
    for _ in range(3):
        compiled(images)
        mas_glcm(images)  # is looked at
    assert len(graphs) == 1
