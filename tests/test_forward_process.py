"""Training's noisy images: the closed form, Triton against the reference, gradients, and what is refused."""

import importlib.util
import itertools

import pytest
import torch

from bdg_fast import ResidualSchedule
from bdg_fast.kernels.forward_process import forward_process
from bdg_fast.kernels.sampler_step import StepRow, sampler_step
from test_sampler_step import DEVICE, DTYPES, LAYOUTS, SHAPES, assert_same, draw, seeds

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
SCHEDULE = ResidualSchedule.linear()
TABLE = SCHEDULE.forward_table()


def times(batch):
    return torch.tensor([999, 0, 417, 3][:batch], dtype=torch.int64)


def run(impl, x_0, x_lq, t, table=TABLE, **options):
    """``x_t`` and noise, from and to the CPU."""
    place = DEVICE if impl == "triton" else "cpu"
    options = {name: value.to(place) for name, value in options.items()}
    found = forward_process(x_0.to(place), x_lq.to(place), t.to(place), table.to(place), impl=impl, **options)
    return [part.cpu() for part in found]


@pytest.mark.parametrize("stage", ["generation", "bridging", "restoration"])
def test_reference_is_the_closed_form(stage):
    schedule = SCHEDULE.stage(stage)
    x_0, x_lq, noise = (draw((4, 3, 6, 5), seed, torch.float64) for seed in range(3))
    table = schedule.forward_table(dtype=torch.float64)
    assert table.shape == (1000, 3) and schedule.forward_table().dtype == torch.float32
    x_t, given = run("reference", x_0, x_lq, times(4), table, noise=noise)
    assert given is noise
    torch.testing.assert_close(x_t, schedule.diffuse(x_0, x_lq, noise, times(4)), rtol=0, atol=1e-14)


@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_triton_equals_the_reference(shape, last, monkeypatch):
    memory_format = torch.channels_last if last else torch.contiguous_format
    x_0, x_lq, noise = (draw(shape, seed).contiguous(memory_format=memory_format) for seed in range(3))
    for options in ({"noise": noise}, {"seed": seeds(shape[0])}):
        expected = run("reference", x_0, x_lq, times(shape[0]), **options)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
            found = run("triton", x_0, x_lq, times(shape[0]), **options)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, drawn="seed" in options)
        assert expected[1].stride() == torch.empty_like(x_0).stride() or "noise" in options


@needs_triton
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=2)), ids=str)
def test_any_mix_of_types(dtypes):
    shape = (2, 3, 7, 5)
    x_0, x_lq = (draw(shape, seed, dtype) for seed, dtype in enumerate(dtypes))
    for dtype in DTYPES:
        noise = draw(shape, 5, dtype)
        expected = run("reference", x_0, x_lq, times(2), noise=noise)[0]
        assert expected.dtype == x_0.dtype
        assert_same(run("triton", x_0, x_lq, times(2), noise=noise)[0], expected)
    for impl in ("reference", "triton"):
        x_t, noise = run(impl, x_0, x_lq, times(2), seed=seeds(2))
        assert noise.dtype == x_0.dtype
        assert torch.equal(run(impl, x_0, x_lq, times(2), noise=noise)[0], x_t)  # they belong together


@needs_triton
@pytest.mark.parametrize("names", list(itertools.product(LAYOUTS, repeat=2)), ids="-".join)
def test_any_strides(names):
    first, second = (LAYOUTS[name] for name in names)
    x_0, x_lq = first(draw((2, 3, 8, 6))), second(draw((2, 3, 8, 6), 1))
    for options in ({"noise": first(draw((2, 3, 8, 6), 2))}, {"seed": seeds(2)}):
        expected = run("reference", x_0, x_lq, times(2), **options)
        for one, other in zip(run("triton", x_0, x_lq, times(2), **options), expected, strict=True):
            assert_same(one, other, drawn="seed" in options)


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=needs_triton)])
def test_noise_is_of_the_image_alone(impl):
    x_0, x_lq = draw((3, 3, 9, 7)), draw((3, 3, 9, 7), 1)
    x_t, noise = run(impl, x_0, x_lq, times(3), seed=seeds(3))
    for b in range(3):
        part = slice(b, b + 1)
        alone = run(impl, x_0[part], x_lq[part], times(3)[part], seed=seeds(3)[part])
        assert torch.equal(alone[0], x_t[part]) and torch.equal(alone[1], noise[part])
    other = x_0.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(impl, other, x_lq, times(3), seed=seeds(3))[0], x_t)
    # the sampler draws other noise from the same seed
    rows = torch.tensor([StepRow(sigma=1.0).padded()])
    z = sampler_step(x_0, x_lq, x_0, rows, 0, heads="residual", seed=seeds(3), impl="reference")
    assert (z * noise).mean().abs() < 4 / z.numel() ** 0.5


@needs_triton
def test_times_beyond_the_table():
    x_0 = draw((3, 3, 4, 4))
    for bad in (-1, 1000):
        t = torch.tensor([5, bad, 7])
        x_t, _ = run("triton", x_0, x_0, t, seed=seeds(3))
        assert x_t[1].isnan().all() and not x_t[::2].isnan().any()
        with pytest.raises(IndexError, match=rf"t must be in 0..999, got {bad}"):
            run("reference", x_0, x_0, t, seed=seeds(3))


def test_gradients_reach_the_images_and_given_noise():
    leaves = [draw((2, 3, 2, 3), seed, torch.float64).requires_grad_() for seed in range(3)]
    table = SCHEDULE.forward_table(dtype=torch.float64)

    def given(x_0, x_lq, noise):
        return forward_process(x_0, x_lq, times(2), table, noise=noise)[0]

    def drawn(x_0, x_lq):
        return forward_process(x_0, x_lq, times(2), table, seed=seeds(2))[0]

    assert torch.autograd.gradcheck(given, leaves) and torch.autograd.gradgradcheck(given, leaves)
    assert torch.autograd.gradcheck(drawn, leaves[:2])
    x_t, noise = forward_process(*leaves[:2], times(2), table, seed=seeds(2))
    assert x_t.requires_grad and not noise.requires_grad


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=needs_triton)])
def test_gradients_have_the_types_of_their_images(impl):
    x_0, x_lq = draw((1, 3, 4, 4), 0, torch.bfloat16).requires_grad_(), draw((1, 3, 4, 4), 1).requires_grad_()
    run(impl, x_0, x_lq, times(1), seed=seeds(1))[0].float().sum().backward()
    a, _, d = SCHEDULE.at(999)
    torch.testing.assert_close(x_0.grad, torch.full_like(x_0, 1 - a))
    torch.testing.assert_close(x_lq.grad, torch.full_like(x_lq, a - d))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad):
    x_0, x_lq, noise = (draw((2, 3, 5, 4), seed).requires_grad_(grad) for seed in range(3))
    torch.library.opcheck(torch.ops.bdg_fast.forward_process.default, (x_0, x_lq, times(2), TABLE, noise, "reference"))
    torch.library.opcheck(
        torch.ops.bdg_fast.forward_process_drawn.default, (x_0, x_lq, times(2), TABLE, seeds(2), "reference")
    )


def test_compiles_with_its_backward():
    def loss(x_0, x_lq, t, seed):
        x_t, noise = forward_process(x_0 * 0.5, x_lq, t, TABLE, seed=seed)
        return (x_t * noise).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 9, 7), (1, 3, 12, 5)):
        eager, traced = (draw(shape).requires_grad_() for _ in range(2))
        arguments = (draw(shape, 1), times(shape[0]), seeds(shape[0]))
        loss(eager, *arguments).backward()
        compiled(traced, *arguments).backward()
        torch.testing.assert_close(traced.grad, eager.grad, rtol=0, atol=0)


def test_autocast_changes_nothing():
    x_0, x_lq = draw((2, 3, 9, 7)), draw((2, 3, 9, 7), 1)
    expected = forward_process(x_0, x_lq, times(2), TABLE, seed=seeds(2))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(forward_process(x_0, x_lq, times(2), TABLE, seed=seeds(2))[0], expected)


def test_bad_input_is_named():
    x = draw((2, 3, 5, 4))
    good = {"x_0": x, "x_lq": x, "t": times(2), "table": TABLE, "noise": x}
    for options, error, message in (
        ({"x_0": x[0]}, ValueError, r"x_0 must have shape \[B, C, H, W\], got \[3, 5, 4\]"),
        ({"x_lq": x.int()}, TypeError, "x_lq must be one of .*got torch.int32"),
        ({"t": times(2).int()}, TypeError, "t must be one of torch.int64, got torch.int32"),
        ({"t": times(3)}, ValueError, r"t must have shape \[2\], one an image, got \[3\]"),
        ({"table": TABLE.T}, ValueError, r"table must have shape \[rows, 3\], got \[3, 1000\]"),
        ({"noise": x[:1]}, ValueError, r"noise must have shape \[2, 3, 5, 4\]"),
        ({"noise": None}, ValueError, "seed or noise must be given, one of them, got neither"),
        ({"seed": seeds(2)}, ValueError, "seed or noise must be given, one of them, got both"),
        ({"noise": None, "seed": seeds(3)}, ValueError, r"seed must have shape \[2\]"),
        ({"impl": "cpu"}, ValueError, "impl must be one of 'auto', 'reference', 'triton', got 'cpu'"),
        ({"table": TABLE.clone().requires_grad_()}, RuntimeError, "no gradient with respect to table"),
    ):
        with pytest.raises(error, match=message):
            forward_process(**(good | options))
