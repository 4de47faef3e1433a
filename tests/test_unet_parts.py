"""The compiled parts of the network against their specification, and the whole against the official code's outputs."""

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bdg_fast import UNet, UNetConfig
from bdg_fast.kernels.unet import Affine, parts
from bdg_fast.models.native import NativeUNet, unsupported

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
CPU, REFERENCE = parts("cpu"), parts("reference")


def images(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(kind, *weights, then=lambda part, buffers, module: None):
    """What `then` makes with the compiled part, and with the specification in float64 and in float32."""
    results = []
    for module, dtype in ((CPU, torch.float32), (REFERENCE, torch.float64), (REFERENCE, torch.float32)):
        own = [w.to(dtype) if isinstance(w, torch.Tensor) else w for w in weights]
        results.append(then(lambda x, dtype=dtype: x.to(dtype), module.Buffers(), getattr(module, kind)(*own)))
    return results


def assert_as_exact(results, factor, floor=1e-6):
    """Errors against float64 are at most `factor` times those of plain float32, or a few roundings."""
    got, exact, plain = (result.double() for result in results)
    assert got.shape == exact.shape
    error, usual = (got - exact).abs().max(), (plain - exact).abs().max()
    assert error <= factor * usual + floor * exact.abs().max(), (error, usual)


@pytest.mark.parametrize(
    ("first", "more", "up"), [(16, 0, False), (32, 16, False), (64, 0, False), (16, 0, True), (64, 0, True)]
)
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (6, 10), (16, 34), (34, 70)])
def test_conv3x3(size, first, more, up):
    x, y = images(2, *size, first), images(2, *size, more, seed=1) if more else None
    weight, bias = images(48, first + more, 3, 3, seed=2), images(48, seed=3)

    def then(cast, buffers, conv):
        return conv(buffers, cast(x), None if y is None else cast(y), up=up).image

    # sums of 36 transformed values instead of 9: a digit more is lost at most
    assert_as_exact(both("Conv3x3", weight, bias, then=then), 10)


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (18, 36)])
def test_conv3x3_of_what_is_normalized_and_activated(size):
    x, gain, offset = images(3, *size, 32, scale=3.0), images(3, 32, seed=1), images(3, 32, seed=2)
    weight = images(32, 32, 3, 3, seed=3)

    def then(cast, buffers, conv):
        return conv(buffers, cast(x), affine=Affine(cast(gain), cast(offset))).image

    assert_as_exact(both("Conv3x3", weight, None, then=then), 10)


@pytest.mark.parametrize("size", [(2, 2), (6, 10), (33, 65)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_group_norm_by_the_moments_of_blocks(size, mean):
    x, weight = images(2, *size, 16), images(32, 16, 3, 3, seed=1)
    gain, offset = images(2, 32, seed=2), images(1, 32, seed=3).expand(2, -1).contiguous()
    made = CPU.Conv3x3(weight, torch.full((32,), mean))(CPU.Buffers(), x)
    got = CPU.group_norm(made, 8, gain, offset)
    exact = REFERENCE.group_norm(made._replace(image=made.image.double()), 8, gain.double(), offset.double())
    for ours, theirs in zip(got, exact, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    shared = CPU.group_norm(made, 8, gain[:1], offset[:1])  # one row for all images
    assert torch.equal(shared.gain[0], got.gain[0])


@pytest.mark.parametrize(("size", "stride", "padding", "channels"), [(7, 1, 0, 6), (4, 2, 1, 32), (1, 1, 0, 16)])
@pytest.mark.parametrize("pixels", [(8, 8), (22, 70)])
def test_direct_convolution(size, stride, padding, channels, pixels):
    x = images(2, *(n * stride + size - stride - 2 * padding for n in pixels), channels)
    weight = images(32, channels, size, size)

    def then(cast, buffers, conv):
        return conv(buffers, cast(x))

    assert_as_exact(both("DirectConv", weight, images(32, seed=1), stride, padding, then=then), 3)


@pytest.mark.parametrize(("more", "shortcut"), [(0, False), (0, True), (16, True)])
def test_the_end_of_a_block(more, shortcut):
    made, first = images(2, 38, 42, 32, scale=20.0), images(2, 38, 42, 32, seed=1)
    second = images(2, 38, 42, more, seed=2) if more else None
    gain, offset = images(2, 32, seed=3), images(2, 32, seed=4)
    weight, bias = (images(32, 32 + more, seed=5), images(32, seed=6)) if shortcut else (None, None)

    def then(cast, buffers, epilogue):
        own = buffers.take(*made.shape).copy_(made) if hasattr(buffers, "take") else cast(made)
        return epilogue(
            buffers, own, Affine(cast(gain), cast(offset)), cast(first), None if second is None else cast(second)
        )

    assert_as_exact(both("Epilogue", weight, bias, then=then), 3)


@pytest.mark.parametrize("size", [(1, 2), (6, 10), (50, 70)])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # keys so far apart that sums of exponentials have to be rescaled
@pytest.mark.parametrize("channels", [16, 64])
def test_linear_attention(channels, scale, size):
    x = images(2, *size, channels)
    qkv, out = images(384, channels, seed=1, scale=scale * channels**-0.5), images(channels, 128, seed=2)
    gain, bias, gain_out = images(channels, seed=3), images(channels, seed=4), images(channels, seed=5)

    def then(cast, buffers, attention):
        return attention(buffers, cast(x.clone()))

    assert_as_exact(both("LinearAttention", gain, qkv, out, bias, gain_out, then=then), 4, floor=2e-6)


def test_what_the_compiled_parts_do_not_take_is_named():
    with pytest.raises(ValueError, match="weight must have a multiple of 16 channels in, got 8"):
        CPU.Conv3x3(images(16, 8, 3, 3), None)
    with pytest.raises(ValueError, match="width of the result must be even, got 5"):
        CPU.DirectConv(images(16, 6, 7, 7), None, 1, 0)(CPU.Buffers(), images(1, 11, 11, 6))
    with pytest.raises(ValueError, match="pixels of an image must be even, got 9"):
        CPU.LinearAttention(images(16), images(384, 16), images(16, 128), None, images(16))(
            CPU.Buffers(), images(1, 3, 3, 16)
        )


def test_what_cannot_run_here_is_told(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert unsupported(UNet(), torch.device("cpu"), torch.float32) == "the processor has no AVX2"
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: the processor has no AVX2"):
        parts("cpu")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert parts("cpu") is CPU


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="impl must be 'cpu' or 'reference', got 'gpu'"):
        parts("gpu")


@pytest.fixture(scope="module")
def unet():
    return UNet.from_pretrained(FIXTURES / "T_state.safetensors").eval()


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("size", ["48x80", "37x53"])
def test_outputs_equal_the_official_code(unet, size, impl):
    io = load_file(FIXTURES / "T_unet_io.safetensors")
    x, time, expected = io[f"x_{size}"], io[f"time_{size}"], io[f"y_{size}"]
    found = NativeUNet(unet, impl)(x[:, :3], x[:, 3:], time)
    assert found.noise is None
    assert (found.residual - expected).abs().max() < (5e-5 if impl == "cpu" else 5e-6)
    assert torch.allclose(found.features, unet(x[:, :3], x[:, 3:], time).features, atol=1e-3)


def test_both_heads_of_the_official_code():
    network = UNet.from_pretrained(FIXTURES / "rddm_shared_state.safetensors")
    io = load_file(FIXTURES / "rddm_shared_io_ddim5.safetensors")
    found = NativeUNet(network)(io["x"][:, :3], io["x"][:, 3:], io["t"].float())
    torch.testing.assert_close(found.noise, io["noise"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.residual, io["res"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("heads", ["noise", "both", "shared"])
def test_other_heads(heads):
    shared = heads == "shared"
    config = UNetConfig(width=16, multipliers=(1, 3), heads="both" if shared else heads, shared_encoder=shared)
    torch.manual_seed(0)
    network = UNet(config).eval()
    x = images(3, 3, 19, 26)
    native = NativeUNet(network)
    for time in (torch.tensor([700.0]), torch.tensor([900.0, 400.0, 3.0])):
        expected, found = network(x, x, time), native(x, x, time)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-3)
                assert not ours.requires_grad


def test_folding_and_channels_last_change_nothing(unet):
    x = images(1, 3, 32, 32)
    expected = NativeUNet(unet)(x, x, torch.tensor([300.0])).residual
    folded = UNet.from_pretrained(FIXTURES / "T_state.safetensors").eval().fold()
    last = x.to(memory_format=torch.channels_last)
    assert torch.allclose(NativeUNet(folded)(last, last, torch.tensor([300.0])).residual, expected, atol=1e-5)


def test_results_do_not_depend_on_what_came_before_or_on_threads(unet):
    native, time = NativeUNet(unet), torch.tensor([500.0])
    x, other = images(2, 3, 40, 56), images(1, 3, 24, 24, seed=1)
    first = native(x, x, time).residual
    kept = first.clone()
    native(other, other, time)
    again = native(x, x, time).residual
    assert torch.equal(first, kept)  # results are the caller's own
    assert torch.equal(again, kept)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = native(x, x, time).residual
        torch.set_num_threads(1)
        one = native(x, x, time).residual
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(many, one)
    alone = native(x[1:], x[1:], time).residual
    assert torch.equal(alone, one[1:])  # images of a batch do not mix


def test_callers_in_several_threads(unet):
    native, time = NativeUNet(unet), torch.tensor([500.0])
    pictures = [images(1, 3, 16 + 8 * n, 32, seed=n) for n in range(4)]
    expected = [native(x, x, time).residual for x in pictures]
    found = [None] * 4

    def call(n):
        found[n] = native(pictures[n], pictures[n], time).residual

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_cannot_be_evaluated_is_named(unet):
    native, x = NativeUNet(unet), images(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"x_t must be float32, got torch\.float64"):
        native(x.double(), x, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="x_lq must be on the CPU"):
        native(x, x.to("meta"), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="the network's width must be a multiple of 16, and is 8"):
        NativeUNet(UNet(UNetConfig(width=8, multipliers=(1, 1))))
    with pytest.raises(ValueError, match="it computes in float32, not in float64"):
        NativeUNet(UNet().double())
    assert "not for cuda" in unsupported(unet, torch.device("cuda"), torch.float32)
    assert native(x[:0], x[:0], torch.tensor([1.0])).residual.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_pixels_stay_visible(unet, value):
    x = images(1, 3, 32, 32)
    x[0, 1, 5, 5] = value
    assert not NativeUNet(unet)(x, x, torch.tensor([500.0])).residual.isfinite().all()


@pytest.mark.parametrize("out", [32, 64, 128])
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_few_blocks_are_split_by_channels(out, threads):
    """Each thread makes some of the channels where there are fewer blocks than threads."""
    x, weight, bias = images(1, 8, 8, 32), images(out, 32, 3, 3, seed=1), images(out, seed=2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        made = CPU.Conv3x3(weight, bias)(CPU.Buffers(), x)
    finally:
        torch.set_num_threads(before)
    exact = REFERENCE.Conv3x3(weight.double(), bias.double())(REFERENCE.Buffers(), x.double())
    assert torch.allclose(made.image.double(), exact.image, atol=1e-3)
    whole = made.image.double()
    assert torch.allclose(made.moments[0, :, 0].double().mean(0), whole.mean((0, 1, 2)), atol=1e-4)


@pytest.mark.parametrize("surroundings", ["autocast", "float64", "float16"])
def test_surroundings_change_nothing(unet, surroundings):
    x, time = images(1, 3, 32, 32), torch.tensor([500.0])
    expected = NativeUNet(unet)(x, x, time).residual
    if surroundings == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = NativeUNet(unet)(x, x, time).residual
    else:
        torch.set_default_dtype(getattr(torch, surroundings))
        try:
            found = NativeUNet(unet)(x, x, time).residual
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_changed_weights_are_seen():
    network = UNet(UNetConfig(width=16, multipliers=(1, 2))).eval()
    native, x, time = NativeUNet(network), images(1, 3, 16, 24), torch.tensor([500.0])
    native(x, x, time)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    found = native(x, x, time).residual
    assert torch.allclose(found, network(x, x, time).residual, atol=1e-4)


def test_copies_and_pickles(unet):
    x, time = images(1, 3, 32, 32), torch.tensor([500.0])
    native = NativeUNet(unet)
    for twin in (copy.deepcopy(native), pickle.loads(pickle.dumps(native))):
        # memory that lies otherwise may round otherwise
        assert torch.allclose(twin(x, x, time).residual, native(x, x, time).residual, atol=1e-5)


def test_memory_is_kept_until_it_is_released(unet):
    native, x, time = NativeUNet(unet), images(1, 3, 64, 64), torch.tensor([500.0])
    expected = native(x, x, time).residual
    assert native.held > 64 * 64 * 500
    native.release()
    assert native.held == 0
    assert torch.equal(native(x, x, time).residual, expected)


@pytest.mark.parametrize(
    ("x_t", "x_lq", "time", "message"),
    [
        ((1, 1, 16, 16), (1, 1, 16, 16), 1, r"x_t must be \[B, 3, H, W\], both of one shape, got \[1, 1, 16, 16\]"),
        ((1, 3, 16, 16), (1, 4, 16, 16), 1, r"x_lq must be \[B, 3, H, W\]"),
        ((1, 3, 16, 16), (1, 3, 16, 17), 1, r"x_lq must be .* both of one shape, got \[1, 3, 16, 17\]"),
        ((4, 3, 16, 16), (4, 3, 16, 16), 2, r"time must be \[1\] or \[B\] = \[4\], got \[2\]"),
    ],
)
def test_bad_images_are_named(unet, x_t, x_lq, time, message):
    with pytest.raises(ValueError, match=message):
        NativeUNet(unet)(images(*x_t), images(*x_lq), torch.ones(time))


def test_channels_of_the_parts_are_checked():
    with pytest.raises(ValueError, match="images must have 32 channels, got 16"):
        CPU.Conv3x3(images(16, 32, 3, 3), None)(CPU.Buffers(), images(1, 4, 4, 16))
    with pytest.raises(ValueError, match="images must have 6 channels, got 8"):
        CPU.DirectConv(images(16, 6, 7, 7), None, 1, 0)(CPU.Buffers(), images(1, 10, 10, 8))
    with pytest.raises(ValueError, match="images must have 16 channels, got 32"):
        CPU.LinearAttention(images(16), images(384, 16), images(16, 128), None, images(16))(
            CPU.Buffers(), images(1, 4, 4, 32)
        )
    with pytest.raises(ValueError, match=r"contiguous float32 on the CPU, got torch\.float64"):
        CPU.Conv3x3(images(16, 16, 3, 3), None)(CPU.Buffers(), images(1, 4, 4, 16).double())


def test_other_networks_are_left_to_pytorch():
    class Own(UNet):
        pass

    def told(network):
        return unsupported(network, torch.device("cpu"), torch.float32)

    hooked = UNet()
    hooked.final.register_forward_hook(lambda *_: None)
    assert "hooks" in told(hooked) and "a UNet itself" in told(Own())
    assert told(UNet().bfloat16()) == "the network's weights must be float32, and are bfloat16"
    assert told(UNet()) is None


def test_code_of_changed_sources_is_not_taken_from_the_cache():
    from bdg_fast.kernels.unet import cpu_conv
    from bdg_fast.kernels.unet.cpu_products import _sources

    assert cpu_conv.winograd.function.__qualname__ == f"winograd_{_sources()}" and len(_sources()) == 12
