"""The UNet against outputs, gradients and sampling intermediates of the official code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bdg_fast import SIZES, UNet, UNetConfig
from bdg_fast.models.blocks import StandardizedConv2d
from bdg_fast.models.checkpoints import our_name

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"


@pytest.fixture(scope="module")
def unet():
    return UNet.from_pretrained(FIXTURES / "T_state.safetensors")


@pytest.mark.parametrize("size", ["37x53", "48x80"])
@pytest.mark.parametrize("folded", [False, True])
def test_outputs_equal_the_official_code(size, folded):
    unet = UNet.from_pretrained(FIXTURES / "T_state.safetensors")
    unet = unet.fold() if folded else unet
    io = load_file(FIXTURES / "T_unet_io.safetensors")
    x = io[f"x_{size}"]
    with torch.no_grad():
        found = unet(x[:, :3], x[:, 3:], io[f"time_{size}"])
    assert found.noise is None
    torch.testing.assert_close(found.residual, io[f"y_{size}"], rtol=0, atol=1e-5)


def test_both_heads_equal_the_official_code():
    unet = UNet.from_pretrained(FIXTURES / "rddm_shared_state.safetensors")
    io = load_file(FIXTURES / "rddm_shared_io_ddim5.safetensors")
    with torch.no_grad():
        found = unet(io["x"][:, :3], io["x"][:, 3:], io["t"].float())
        exact = unet.double()(io["x"][:, :3].double(), io["x"][:, 3:].double(), io["t"].double())
    torch.testing.assert_close(found.noise, io["noise"], rtol=0, atol=1e-5)
    # here the official float32 output is itself 2.4e-5 off: we must be no worse
    assert (found.residual - exact.residual).abs().max() <= (io["res"] - exact.residual).abs().max()
    torch.testing.assert_close(found.residual, io["res"], rtol=0, atol=3e-5)


def test_gradients_equal_the_official_code():
    unet = UNet.from_pretrained(FIXTURES / "T_state.safetensors").train()
    io = load_file(FIXTURES / "T_train_loss.safetensors")
    from bdg_fast import ResidualSchedule

    schedule = ResidualSchedule.linear()
    x_0, x_lq = 2 * io["gt01"] - 1, 2 * io["lq01"] - 1
    x_t = schedule.diffuse(x_0, x_lq, io["noise"], io["t"])
    torch.testing.assert_close(x_t, io["x_t"], rtol=0, atol=1e-6)
    loss = (unet(x_t, x_lq, schedule.network_time(io["t"])).residual - (x_lq - x_0)).abs().mean()
    assert loss.item() == pytest.approx(io["loss"].item(), rel=1e-5)
    loss.backward()
    compared = 0
    gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
    for key, norm in io.items():
        if key.endswith(".norm") and key.startswith("grad."):
            official = key.removeprefix("grad.").removesuffix(".norm")
            gradient = gradients[our_name(official.removeprefix("model.unet0."))]
            head = io[key.removesuffix(".norm") + ".head"]
            assert gradient.norm().item() == pytest.approx(norm.item(), rel=1e-4, abs=1e-5)
            torch.testing.assert_close(gradient.flatten()[: len(head)], head, rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared == len(gradients) == 276


@pytest.mark.parametrize(("size", "parameters"), [("T", 886435), ("S", 3268643), ("B", 12406851), ("L", 36261187)])
def test_published_sizes(size, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(SIZES[size]).parameters()) == parameters


@pytest.mark.parametrize("heads", ["residual", "noise", "both"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 7, 5), (1, 3, 16, 33)], ids=str)
def test_any_size_and_head(heads, shape):
    unet = UNet(UNetConfig(width=8, multipliers=(1, 2), heads=heads)).eval()
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = unet(image, image, torch.zeros(shape[0]))
    assert (found.residual is None) == (heads == "noise")
    assert (found.noise is None) == (heads == "residual")
    for output in (found.residual, found.noise):
        assert output is None or (output.shape == shape and output.isfinite().all())
    assert found.features.shape[:2] == (shape[0], 16)


def test_images_of_a_batch_do_not_mix(unet):
    images = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    times = torch.tensor([900.0, 10.0, 400.0])
    with torch.no_grad():
        together = unet(images, images.flip(0), times).residual
        for i in range(3):
            alone = unet(images[i : i + 1], images.flip(0)[i : i + 1], times[i : i + 1]).residual
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_padding_reflects(unet):
    """A size that needs padding equals its own reflection, cropped."""
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    larger = torch.nn.functional.pad(image, (0, 2, 0, 12), mode="reflect")
    time = torch.tensor([500.0])
    with torch.no_grad():
        expected = unet(larger, larger, time).residual[:, :, :20, :30]
        torch.testing.assert_close(unet(image, image, time).residual, expected, rtol=0, atol=1e-6)


def test_channels_last_changes_nothing(unet):
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    time = torch.tensor([500.0])
    with torch.no_grad():
        expected = unet(image, image, time).residual
        other = UNet.from_pretrained(FIXTURES / "T_state.safetensors").fold().to(memory_format=torch.channels_last)
        last = image.to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(last, last, time).residual, expected, rtol=0, atol=1e-5)


def test_folding_leaves_no_standardization_and_no_gradient():
    unet = UNet(UNetConfig(width=8, multipliers=(1, 2))).fold()
    assert not any(isinstance(module, StandardizedConv2d) for module in unet.modules())
    assert not any(parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width must be a positive multiple of 8"),
        ({"multipliers": ()}, "multipliers must be integers >= 1"),
        ({"multipliers": (1, 0)}, r"multipliers must be integers >= 1.*got \(1, 0\)"),
        ({"heads": "all"}, "heads must be one of 'residual', 'noise', 'both', got 'all'"),
        ({"shared_encoder": True}, "shared_encoder=True is for heads='both'"),
        ({"time": "seconds"}, "time must be 'scaled' or 'index', got 'seconds'"),
        ({"time": "index", "family": "diffuir"}, "time must be 'scaled' for family='diffuir', got 'index'"),
        ({"delta_end": -1e-3}, "delta_end must not be negative, got -0.001"),
        ({"sum_scale": 0.0}, "sum_scale must be above 0 and at most 1, got 0.0"),
    ],
)
def test_bad_configurations_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)
