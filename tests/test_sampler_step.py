"""The fused step: its formulas in float64, Triton against the reference, and how it is called and refused."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch

from bdg_fast.kernels.sampler_step import StepRow, sampler_step, step_parts

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS = ["residual", "noise", "both"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [(1, 3, 1, 1), (2, 3, 7, 5), (1, 3, 63, 65), (3, 3, 4, 1), (0, 3, 8, 8), (2, 3, 0, 4)]
ROWS = [
    StepRow(0.6, -0.5, 0.4, 0.9, 0.1, -0.7, -0.2, 0.95, 0.05, -0.3, -0.1, 0.2, 0.0, 0.8),
    StepRow(0.6, -0.5, 0.4, 0.9, 0.1, -0.7, -0.2, 0.95, 0.05, -0.3, -0.1, 0.2, 0.35),
]


def table(dtype=torch.float32, device="cpu"):
    return torch.tensor([row.padded() for row in ROWS], dtype=dtype, device=device)


def draw(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def images(shape, heads, dtypes=(torch.float32,) * 3):
    """x_t, x_lq and the network's output."""
    channels = (3, 3, 6 if heads == "both" else 3)
    return [
        draw((shape[0], n, *shape[2:]), seed, dtype)
        for seed, (n, dtype) in enumerate(zip(channels, dtypes, strict=True))
    ]


def seeds(batch):
    return torch.randint(-(2**63), 2**63 - 1, (batch,), generator=torch.Generator().manual_seed(9))


def noise_of(name, shape):
    return {"none": {}, "seed": {"seed": seeds(shape[0])}, "fresh": {"fresh": draw(shape, 7)}}[name]


def on_device(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def by_triton(x_t, x_lq, prediction, rows, step, **options):
    """From and to the CPU; outputs start as NaN."""
    arguments = [on_device(argument) for argument in (x_t, x_lq, prediction, rows, step)]
    options = {name: on_device(value) for name, value in options.items()}
    out = options.pop("out", None)
    if out is None:
        out = torch.full_like(arguments[0], torch.nan)
    assert sampler_step(*arguments, out=out, impl="triton", **options) is out
    return out.cpu()


def assert_same(found, expected, drawn=False):
    """To the bit, but for noise drawn in the kernel, and for what the interpreter rounds towards zero."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype == torch.bfloat16 and DEVICE == "cpu":
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-6)
    elif drawn:
        half = found.dtype == torch.float16
        torch.testing.assert_close(found, expected, rtol=2**-10 if half else 0, atol=1e-3 if half else 1e-6)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("noise", ["none", "fresh"])
def test_reference_is_the_formula(heads, noise):
    x, q, p = images((2, 3, 6, 5), heads, (torch.float64,) * 3)
    z = draw((2, 3, 6, 5), 7, torch.float64)
    c = ROWS[noise == "fresh"]
    residual, eps = (p, None) if heads == "residual" else (None, p) if heads == "noise" else (p[:, :3], p[:, 3:])
    residual = None if residual is None else residual.clamp(-c.limit, c.limit)
    if heads == "residual":
        eps = c.complete_x_t * x + c.complete_x_lq * q + c.complete_predicted * residual
    if heads == "noise":
        residual = c.complete_x_t * x + c.complete_x_lq * q + c.complete_predicted * eps
    x_0 = (c.clean_x_t * x + c.clean_x_lq * q + c.clean_residual * residual + c.clean_noise * eps).clamp(-1, 1)
    x_s = c.next_x_t * x + c.next_x_lq * q + c.next_residual * residual + c.next_noise * eps + c.next_x_0 * x_0
    rows = table(torch.float64)
    index = int(noise == "fresh")
    fresh = {"fresh": z} if index else {}
    found = sampler_step(x, q, p, rows, index, heads=heads, impl="reference", **fresh)
    torch.testing.assert_close(found, x_s + c.sigma * z, rtol=0, atol=1e-14)
    parts = step_parts(x, q, p, rows, torch.tensor(index), heads=heads)
    for part, expected in zip(parts, (residual, eps, x_0), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-14)


@needs_triton
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_triton_equals_the_reference(heads, shape, last):
    memory_format = torch.channels_last if last else torch.contiguous_format
    arguments = [image.contiguous(memory_format=memory_format) for image in images(shape, heads)]
    for noise, step in (("none", 0), ("fresh", 1), ("seed", 1), ("seed", 0), ("fresh", torch.tensor(1))):
        options = {"heads": heads, **noise_of(noise, shape)}
        expected = sampler_step(*arguments, table(), step, impl="reference", **options)
        found = by_triton(*arguments, table(), step, **options)
        assert_same(found, expected, drawn=noise == "seed")
        assert not found.isnan().any()
        assert expected.stride() == torch.empty_like(arguments[0]).stride()


@needs_triton
@pytest.mark.parametrize("dtypes", [(a, b, DTYPES[i - j]) for i, a in enumerate(DTYPES) for j, b in enumerate(DTYPES)])
def test_any_mix_of_types(dtypes):
    shape = (2, 3, 7, 5)
    heads = HEADS[sum(map(DTYPES.index, dtypes)) % 3]
    arguments = images(shape, heads, dtypes)
    for out_dtype in DTYPES:
        results = [torch.full(shape, torch.nan, dtype=out_dtype) for _ in range(2)]
        options = {"heads": heads, "fresh": draw(shape, 7, dtypes[1])}
        sampler_step(*arguments, table(), 1, out=results[0], impl="reference", **options)
        assert_same(by_triton(*arguments, table(), 1, out=on_device(results[1]), **options), results[0])


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.repeat_interleave(3, 3)[:, :, :, 1::3],
    "cropped": lambda x: torch.nn.functional.pad(x, (0, 3, 0, 2), value=9.0)[:, :, : x.shape[2], : x.shape[3]],
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1, :1, :1].expand(x.shape),
}


@needs_triton
@pytest.mark.parametrize("heads", ["residual", "both"])
@pytest.mark.parametrize("names", list(itertools.product(["contiguous", *LAYOUTS], repeat=2)), ids="-".join)
def test_any_strides(heads, names):
    shape = (2, 3, 8, 6)
    first, second = (LAYOUTS.get(name, torch.Tensor.contiguous) for name in names)
    x, q, p = images(shape, heads)
    x, q, p = first(x), second(q), second(first(p))
    out = draw(shape, 8) if names[0] == "expanded" else first(torch.full(shape, torch.nan))
    for noise, given in (("seed", heads == "both"), ("fresh", heads == "residual")):  # each with and without `out`
        options = {"heads": heads, **noise_of(noise, shape)}
        expected = sampler_step(x, q, p, table(), 1, impl="reference", **options)
        found = by_triton(x, q, p, table(), 1, out=on_device(out) if given else None, **options)
        assert_same(found, expected, drawn=noise == "seed")


@needs_triton
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_positions_of_64_bits_change_nothing(last, monkeypatch):
    from bdg_fast.kernels.sampler_step import triton

    arguments = images((2, 3, 9, 7), "both")
    if last:
        arguments = [image.contiguous(memory_format=torch.channels_last) for image in arguments]
    options = {"heads": "both", "seed": seeds(2)}
    expected = by_triton(*arguments, table(), 1, **options)
    plan = triton.layout_of
    for flat in (False, True):
        monkeypatch.setattr(
            triton, "layout_of", lambda images, out, flat=flat: plan(images, out)._replace(wide=True, flat=flat)
        )
        assert torch.equal(by_triton(*arguments, table(), 1, **options), expected)


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("heads", HEADS)
def test_in_place_and_two_tensors(impl, heads):
    place = DEVICE if impl == "triton" else "cpu"
    x, q, p = (image.to(place) for image in images((2, 3, 9, 7), heads))
    rows = table(device=place)
    options = {"heads": heads, "seed": seeds(2).to(place), "impl": impl}
    expected = sampler_step(x, q, p, rows, 1, **options)
    if heads == "both":
        apart = (p[:, :3].clone(), p[:, 3:].contiguous(memory_format=torch.channels_last))
        assert torch.equal(sampler_step(x, q, apart, rows, 1, **options), expected)
    for target in (0, 1):
        copies = [x.clone(), q.clone(), p]
        assert sampler_step(*copies, rows, 1, out=copies[target], **options) is copies[target]
        assert torch.equal(copies[target], expected)
        assert torch.equal(copies[1 - target], (q, x)[target])


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_as_good_as_eager(dtype):
    """Error against float64 at most that of the same formula in the low type, plus one rounding."""
    exact_arguments = [image.to(dtype).double() for image in images((1, 3, 33, 31), "both")]
    exact = sampler_step(*exact_arguments, table(torch.float64), 0, heads="both", impl="reference")
    x, q, p = (image.to(dtype) for image in exact_arguments)
    c = ROWS[0]
    residual, noise = p[:, :3].clamp(-c.limit, c.limit), p[:, 3:]
    x_0 = (c.clean_x_t * x + c.clean_x_lq * q + c.clean_residual * residual + c.clean_noise * noise).clamp(-1, 1)
    eager = c.next_x_t * x + c.next_x_lq * q + c.next_residual * residual + c.next_noise * noise + c.next_x_0 * x_0
    found = by_triton(x, q, p, table(), 0, heads="both")
    rounding = exact.abs().max() * torch.finfo(dtype).eps / 2
    assert (found.double() - exact).abs().max() <= (eager.double() - exact).abs().max() + rounding


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=needs_triton)])
def test_noise_does_not_depend_on_company_or_format(impl):
    place = DEVICE if impl == "triton" else "cpu"
    x, q, p = (image.to(place) for image in images((3, 3, 9, 7), "residual"))
    seed = seeds(3).to(place)
    rows, options = table(device=place), {"heads": "residual", "impl": impl}
    together = sampler_step(x, q, p, rows, 1, seed=seed, **options)
    for b in range(3):
        part = slice(b, b + 1)
        assert torch.equal(sampler_step(x[part], q[part], p[part], rows, 1, seed=seed[part], **options), together[part])
    x, q = (image.contiguous(memory_format=torch.channels_last) for image in (x, q))
    assert torch.equal(sampler_step(x, q, p, rows, 1, seed=seed, **options), together)
    assert torch.equal(sampler_step(x, q, p, rows, torch.tensor([1], device=place), seed=seed, **options), together)


@needs_triton
def test_what_only_the_device_knows_is_nan():
    arguments = images((1, 3, 4, 4), "both")
    for step in (-1, 2, 2**40):
        assert by_triton(*arguments, table(), torch.tensor(step), heads="both").isnan().all()
        with pytest.raises(IndexError, match=rf"step must be in 0..1, got {step}"):
            sampler_step(*arguments, table(), torch.tensor(step), heads="both", impl="reference")
    assert by_triton(*arguments, table(), 1, heads="both").isnan().all()
    with pytest.raises(ValueError, match=r"seed or fresh must be given: this step has sigma = 0.35"):
        sampler_step(*arguments, table(), 1, heads="both", impl="reference")


@needs_triton
@pytest.mark.parametrize("noise", ["seed", "fresh"])
def test_nan_passes_through_and_stays_where_it_is(noise):
    shape = (1, 3, 5, 6)
    x, q, p = images(shape, "both")
    p[0, 1, 2, 3] = torch.nan
    for step in (0, 1):
        found = by_triton(x, q, p, table(), step, heads="both", **noise_of(noise, shape))
        assert found.isnan().nonzero().tolist() == [[0, 1, 2, 3]]
        options = noise_of(noise, shape)
        assert sampler_step(x, q, p, table(), step, heads="both", impl="reference", **options).isnan().sum() == 1
    fresh = torch.full(shape, torch.nan)  # sigma is 0: not read
    assert not by_triton(x, q, q, table(), 0, heads="residual", fresh=fresh).isnan().any()
    assert not sampler_step(x, q, q, table(), 0, heads="residual", fresh=fresh, impl="reference").isnan().any()


@pytest.mark.parametrize("step", [None, torch.tensor([1])], ids=["number", "tensor"])
def test_opcheck(step):
    x, q, p = images((2, 3, 5, 4), "both")
    common = (x, q, p[:, :3], p[:, 3:], table(), step, 1, seeds(2), None, "reference")
    torch.library.opcheck(torch.ops.bdg_fast.sampler_step.default, common)
    torch.library.opcheck(torch.ops.bdg_fast.sampler_step_out.default, (torch.empty_like(x), *common))


@pytest.mark.parametrize("target", ["new", "out", "in place"])
def test_compiles_as_one_graph(target):
    def steps(x, q, p, rows, step, seed):
        x = x * 0.5
        out = {"new": None, "out": torch.empty_like(x), "in place": x}[target]
        return sampler_step(x, q, p, rows, step, heads="both", seed=seed, out=out) + x

    compiled = torch.compile(steps, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 9, 7), (1, 3, 12, 5)):
        arguments = (*images(shape, "both"), table(), torch.tensor(1), seeds(shape[0]))
        torch.testing.assert_close(compiled(*arguments), steps(*arguments), rtol=0, atol=0)


def test_integers_of_any_type():
    arguments = (*images((1, 3, 4, 5), "both"), table())
    options = {"heads": "both", "seed": seeds(1)}
    assert torch.equal(sampler_step(*arguments, np.int64(1), **options), sampler_step(*arguments, 1, **options))
    for one, other in zip(*(step_parts(*arguments, s, heads="both") for s in (np.uint8(1), 1)), strict=True):
        assert torch.equal(one, other)


def test_autocast_and_inference_mode_change_nothing():
    arguments = (*images((2, 3, 9, 7), "both"), table(), 0)
    expected = sampler_step(*arguments, heads="both")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(sampler_step(*arguments, heads="both"), expected)


def test_gradients_are_refused():
    x, q, p = images((1, 3, 4, 4), "both")
    for position, name in enumerate(("x_t", "x_lq", "prediction")):
        arguments = [image.clone().requires_grad_(i == position) for i, image in enumerate((x, q, p))]
        with pytest.raises(RuntimeError, match=f"no gradient with respect to {name}: detach it"):
            sampler_step(*arguments, table(), 0, heads="both")
        with torch.no_grad():
            sampler_step(*arguments, table(), 0, heads="both")
    apart = (p[:, :3], p[:, 3:].clone().requires_grad_())
    with pytest.raises(RuntimeError, match="no gradient with respect to prediction"):
        sampler_step(x, q, apart, table(), 0, heads="both")
    leaf = x.clone().requires_grad_()
    found = torch.ops.bdg_fast.sampler_step(leaf, q, p[:, :3], None, table(), None, 0, None, None, "auto")
    with pytest.raises(RuntimeError, match="sampler_step has no gradient"):
        found.sum().backward()


def test_bad_input_is_named():
    x, q, p = images((2, 3, 5, 4), "both")
    good = {"x_t": x, "x_lq": q, "prediction": p, "table": table(), "step": 0, "heads": "both"}
    for options, error, message in (
        ({"heads": "neither"}, ValueError, "heads must be one of 'residual', 'noise', 'both', got 'neither'"),
        ({"impl": "cpu"}, ValueError, "impl must be one of 'auto', 'reference', 'triton', got 'cpu'"),
        ({"x_t": x.int()}, TypeError, "x_t must be one of .*got torch.int32"),
        ({"x_t": x[0]}, ValueError, r"x_t must have shape \[B, C, H, W\], got \[3, 5, 4\]"),
        ({"x_lq": q[:1]}, ValueError, r"x_lq must have shape \[2, 3, 5, 4\] like the other images, got \[1, 3, 5, 4\]"),
        ({"prediction": p[:, :3]}, ValueError, r"prediction must have shape \[B, 6, H, W\], got \[2, 3, 5, 4\]"),
        ({"prediction": (p, p)}, ValueError, r"prediction\[0\] must have shape \[B, 3, H, W\]"),
        ({"prediction": (q,)}, ValueError, "prediction must hold a residual and a noise, got 1"),
        ({"prediction": None}, TypeError, "prediction must be a tensor, got NoneType"),
        ({"table": table()[:, :3]}, ValueError, r"table must have shape \[rows, 16\], got \[2, 3\]"),
        ({"table": table(torch.float16)}, TypeError, "table must be one of torch.float32, torch.float64"),
        ({"step": 2}, IndexError, r"step must be in 0..1, got 2"),
        ({"step": True}, TypeError, "step must be an integer or an int64 tensor, got bool"),
        ({"step": 0.5}, TypeError, "step must be an integer or an int64 tensor, got float"),
        ({"step": torch.zeros(2, dtype=torch.int64)}, ValueError, r"step must have one element, got shape \[2\]"),
        ({"step": torch.zeros(1)}, TypeError, "step must be one of torch.int64, got torch.float32"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, r"seed must have shape \[2\], one an image"),
        ({"seed": seeds(2), "fresh": x}, ValueError, "seed and fresh are two sources"),
        ({"fresh": p}, ValueError, r"fresh must have shape \[B, 3, H, W\]"),
        ({"out": x[:, :, :, :2]}, ValueError, r"out must have shape \[2, 3, 5, 4\]"),
        ({"out": torch.zeros(2, 1, 1, 4).expand(2, 3, 5, 4)}, ValueError, "out must not be expanded"),
        ({"x_lq": q.to("meta")}, ValueError, "x_lq must be on cpu like the images, got meta"),
    ):
        with pytest.raises(error, match=message):
            sampler_step(**(good | options))


@pytest.mark.parametrize("heads", HEADS)
def test_latents_have_any_channels_and_no_bound(heads):
    x, q, p = images((2, 3, 5, 4), heads)
    fresh = draw(x.shape, 7)
    expected = sampler_step(x, q, p, table(), 1, heads=heads, fresh=fresh)
    x, q, fresh = (torch.cat((image, image[:, :1]), 1) for image in (x, q, fresh))
    p = torch.cat([torch.cat((part, part[:, :1]), 1) for part in p.split(3, 1)], 1)
    found = sampler_step(x, q, p, table(), 1, heads=heads, fresh=fresh)
    assert torch.equal(found, torch.cat((expected, expected[:, :1]), 1))
    x_0 = step_parts(x, q, p, table(), 1, heads=heads, bound=float("inf"))[2]
    assert x_0.abs().max() > 1.5
    assert torch.equal(x_0.clamp(-1.5, 1.5), step_parts(x, q, p, table(), 1, heads=heads, bound=1.5)[2])
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run: images are of 4 channels with bound=1"):
        sampler_step(x, q, p, table(), 1, heads=heads, fresh=fresh, impl="triton")
