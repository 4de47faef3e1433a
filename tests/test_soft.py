"""The differentiable matrix: its values, its gradient on every backend, and what a texture loss does with it."""

import importlib.util

import pytest
import torch

from bdg_fast import glcm_offsets, mas_glcm, soft_mas_glcm

HAS_TRITON = importlib.util.find_spec("triton") is not None
FAST = [
    "cpu",
    pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="needs triton")),
]
IMPLS = ["reference", *FAST]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def device_of(impl):
    return DEVICE if impl == "triton" else "cpu"


def random(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [2, 8, 33, 256])
@pytest.mark.parametrize("impl", IMPLS)
def test_equals_the_hard_matrix_on_level_centres(impl, levels):
    index = torch.randint(0, levels, (2, 1, 13, 9), generator=torch.Generator().manual_seed(levels))
    images = (index + 0.5) / levels
    mask = random((2, 13, 9)) > 0.2
    for options in ({}, {"normalize": False}, {"symmetric": True}, {"reduction": "none"}, {"mask": mask}):
        expected = mas_glcm(images, 4, (1, 2), levels, impl="reference", **options)
        moved = {key: value.to(device_of(impl)) if key == "mask" else value for key, value in options.items()}
        found = soft_mas_glcm(images.double().to(device_of(impl)), 4, (1, 2), levels, impl=impl, **moved)
        torch.testing.assert_close(found.cpu(), expected.double(), rtol=1e-5, atol=1e-5 if not options else 1e-4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value_range", [(100, 100.5), (-1000, -999.5)], ids=str)
def test_a_narrow_range_far_from_zero(impl, value_range):
    low, high = value_range
    index = torch.randint(0, 3, (2, 3, 13, 9), generator=torch.Generator().manual_seed(0))[:, :1].expand(-1, 3, -1, -1)
    images = low + (index + 0.5).double() / 3 * (high - low)
    expected = mas_glcm(images, 4, (1, 2), 3, value_range, impl="reference").double()
    found = soft_mas_glcm(images.to(device_of(impl)), 4, (1, 2), 3, value_range, impl=impl)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=2e-8)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"normalize": False, "symmetric": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(impl, options, masked):
    images = random((2, 3, 6, 7)).requires_grad_()
    mask = random((2, 6, 7), 1) > 0.2 if masked else None
    assert torch.autograd.gradcheck(
        lambda x: soft_mas_glcm(x, 3, (1, 2), 5, mask=mask, impl=impl, **options), (images,)
    )


@pytest.mark.parametrize("shape", [(2, 3, 14, 17), (1, 1, 1, 1), (2, 1, 7, 5), (0, 1, 8, 8), (1, 1, 0, 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("impl", FAST)
def test_values_and_gradients_equal_the_reference(impl, shape, masked):
    for dtype, tolerance in ((torch.float64, 2e-8), (torch.float32, 2e-6)):
        images = random(shape, 0, dtype)
        mask = random((shape[0], *shape[2:]), 1) > 0.2 if masked else None
        for options in ({"levels": 8}, {"levels": 2, "reduction": "none"}, {"levels": 256, "normalize": False}):
            results = []
            for chosen in ("reference", impl):
                place = device_of(chosen)
                leaf = images.clone().to(place).requires_grad_()
                out = soft_mas_glcm(
                    leaf, 3, (1, 2, 40), mask=None if mask is None else mask.to(place), impl=chosen, **options
                )
                (out * random(out.shape, 2, dtype).to(place)).sum().backward()
                results.append((out.detach().cpu(), leaf.grad.cpu()))
            (value, gradient), (found_value, found_gradient) = results
            size = 1 + gradient.abs().max().item() if gradient.numel() else 1
            torch.testing.assert_close(found_value, value, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(found_gradient, gradient, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("impl", FAST)
def test_float32_is_as_good_as_eager_float32(impl, photographs):
    images = photographs[:1, :, :48, :40].double() / 255
    exact = soft_mas_glcm(images, impl="reference")
    eager = soft_mas_glcm(images.float(), impl="reference").double()
    found = soft_mas_glcm(images.float().to(device_of(impl)), impl=impl).cpu().double()
    rounding = exact.abs().max() * 2**-24
    assert (found - exact).abs().max() <= (eager - exact).abs().max() + rounding


@pytest.mark.parametrize("impl", FAST)
def test_results_repeat_to_the_bit(impl, photographs):
    images = (photographs[:2, :, :40, :50].float() / 255).to(device_of(impl))
    runs = []
    for _ in range(2):
        leaf = images.clone().requires_grad_()
        out = soft_mas_glcm(leaf, impl=impl)
        out.square().sum().backward()
        runs.append((out.detach(), leaf.grad))
    assert all(torch.equal(out, runs[0][0]) and torch.equal(grad, runs[0][1]) for out, grad in runs)


def test_sums_to_the_number_of_pairs():
    images = random((1, 3, 20, 23))
    counts = soft_mas_glcm(images, 4, (1, 3), 16, normalize=False, reduction="none")[0].flatten(0, 1)
    for (dy, dx), matrix in zip(glcm_offsets(4, (1, 3)), counts, strict=True):
        assert matrix.sum().item() == pytest.approx((20 - abs(dy)) * (23 - abs(dx)))
    assert soft_mas_glcm(images, 4, (1, 3), 16).sum().item() == pytest.approx(1)


def test_a_mask_equals_cropping():
    images = random((1, 1, 20, 23))
    mask = torch.zeros(1, 20, 23, dtype=torch.bool)
    mask[:, 3:15, 4:20] = True
    whole, crop = images.clone().requires_grad_(), images[:, :, 3:15, 4:20].clone().requires_grad_()
    out, expected = soft_mas_glcm(whole, mask=mask), soft_mas_glcm(crop)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(whole.grad[:, :, 3:15, 4:20], crop.grad)
    assert whole.grad[~mask[:, None]].abs().max() == 0


def test_values_beyond_the_range_have_no_gradient():
    images = torch.tensor([[[[-0.5, 0.3, 1.5, 0.6]]]], requires_grad=True)
    soft_mas_glcm(images, 1, (1,), 4).square().sum().backward()
    assert images.grad.flatten()[[0, 2]].tolist() == [0, 0]
    assert images.grad.flatten()[[1, 3]].abs().min() > 0


def test_image_types_agree(photographs):
    images = photographs[:2, :, :40, :40]
    expected = soft_mas_glcm(images.double() / 255)
    assert expected.dtype == torch.float64
    for same in (images, images.to(torch.int32).mul(257).to(torch.uint16), images.float() / 255):
        found = soft_mas_glcm(same)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    half = (images.float() / 255).to(torch.float16)
    assert torch.equal(soft_mas_glcm(half), soft_mas_glcm(half.float()))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_opcheck(impl):
    position, mask, images = random((2, 7, 6)) * 4, random((2, 7, 6), 1) > 0.2, random((2, 3, 7, 6), 2)
    arguments = (position.requires_grad_(), mask, images, "0,1,0;1,-1,1", 2, 5, True, impl)
    torch.library.opcheck(torch.ops.bdg_fast.soft_glcm.default, arguments)


@pytest.mark.parametrize("check_finite", [True, False])
def test_compiles_with_its_backward(check_finite):
    def loss(images):
        return soft_mas_glcm(images, 3, (1, 2), 8, check_finite=check_finite).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 12, 13), (1, 3, 9, 20)):
        eager, traced = (random(shape).float().requires_grad_() for _ in range(2))
        loss(eager).backward()
        compiled(traced).backward()
        torch.testing.assert_close(traced.grad, eager.grad)


def test_compiled_code_still_checks():
    compiled = torch.compile(soft_mas_glcm, fullgraph=True, dynamic=True, backend="aot_eager")
    images = random((2, 3, 12, 13)).float()
    torch.testing.assert_close(compiled(images), soft_mas_glcm(images))
    images[1, 0, 2, 2] = torch.inf
    with pytest.raises(ValueError, match=r"images must be finite .*images\[1\]"):
        compiled(images)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_is_not_silently_wrong():
    images = random((3, 2, 3, 12, 13)).float()
    expected = torch.stack([soft_mas_glcm(part) for part in images])
    try:
        mapped = torch.func.vmap(soft_mas_glcm)(images)
    except RuntimeError:
        return  # refused
    torch.testing.assert_close(mapped, expected)


def test_scales_may_be_gone_through_once():
    images = random((1, 1, 9, 9))
    found = soft_mas_glcm(images, iter((0.1, 1.0)), (s for s in (1, 2)), 4, reduction="none")
    assert torch.equal(found, soft_mas_glcm(images, (0.1, 1.0), (1, 2), 4, reduction="none"))


def test_autocast_changes_nothing():
    images = random((2, 3, 12, 13)).float()
    expected = soft_mas_glcm(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_mas_glcm(images), expected)
    with torch.inference_mode():
        assert torch.equal(soft_mas_glcm(images), expected)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_second_derivatives_are_refused(impl):
    images = random((1, 1, 6, 6)).requires_grad_()
    (grad,) = torch.autograd.grad(soft_mas_glcm(images, impl=impl).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def test_descending_the_loss_brings_a_texture_closer(photographs):
    target = soft_mas_glcm(photographs[:1, :, :64, :64], levels=8).detach()
    image = (photographs[1:2, :, :64, :64].float() / 255).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.03)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((soft_mas_glcm(image, levels=8) + 1e-6).sqrt() - (target + 1e-6).sqrt()).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bad_input_is_named():
    images = torch.rand(2, 3, 8, 9)
    for options, message in (
        ({"levels": 1}, "levels must be"),
        ({"angles": 0}, "angles must be"),
        ({"scales": ()}, "scales must not be empty"),
        ({"value_range": (1, 0)}, "value_range must be"),
        ({"reduction": "sum"}, "reduction must be 'mean' or 'none', got 'sum'"),
        ({"impl": "magic"}, "impl must be one of"),
        ({"normalize": "no"}, "normalize must be True or False, got 'no'"),
        ({"symmetric": 3}, "symmetric must be True or False, got 3"),
        ({"check_finite": None}, "check_finite must be True or False, got None"),
        ({"mask": torch.ones(2, 8, 8, dtype=torch.bool)}, "mask must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            soft_mas_glcm(images, **options)
    with pytest.raises(TypeError, match="images must be a dense tensor"):
        soft_mas_glcm(images.to_sparse())
    with pytest.raises(TypeError, match="images must be one of"):
        soft_mas_glcm(images.to(torch.int64))
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"images\[1\]"):
        soft_mas_glcm(images)
    black = soft_mas_glcm(torch.full((1, 1, 4, 4), torch.nan), scales=(1,), check_finite=False)
    assert black[0, 0, 0].item() == pytest.approx(1)


@pytest.mark.gpu
def test_gradient_on_the_gpu_equals_the_cpu(photographs):
    results = []
    for device in ("cpu", "cuda"):
        leaf = (photographs.float() / 255).to(device).requires_grad_()
        soft_mas_glcm(leaf).sqrt().sum().backward()
        results.append(leaf.grad.cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4 * results[0].abs().max().item())


@pytest.mark.gpu
def test_no_host_synchronisation_and_capture():
    images = torch.rand(4, 3, 64, 64, device="cuda")
    expected = soft_mas_glcm(images, check_finite=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        soft_mas_glcm(images, check_finite=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = soft_mas_glcm(images, check_finite=False)
    graph.replay()
    assert torch.equal(result, expected)
