"""Networks that are not ours: sampled, saved, loaded and restored with; what is refused."""

import sys

import pytest
import torch

from bdg_fast import BackboneConfig, ResidualSampler, Restorer, UNet, UNetConfig
from bdg_fast.backends import rounded
from bdg_fast.cli import main
from bdg_fast.models import DiffusersConfig, DiffusersUNet
from bdg_fast.models.checkpoints import CheckpointError, load_backbone
from bdg_fast.models.kinds import ModuleConfig, find_backbone, kind_of, new_network
from user_network import DIFFUSERS, Halved, Informed, NoNetwork, Plain, PlainConfig

NAMES = ["Plain", *DIFFUSERS]


def network(name, seed=0, **settings):
    """One that has been trained, to judge by its weights."""
    if name != "Plain":
        pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    found = Plain(PlainConfig(**settings)) if name == "Plain" else None
    if found is None:
        found = DiffusersUNet(DiffusersConfig(model=name, options=DIFFUSERS[name], **settings))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return found.eval()


def images(batch, height, width, channels=3, seed=1):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", ["residual", "noise", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_sampled_by_what_it_predicts(name, heads):
    if name == "Plain" and heads == "noise":
        pytest.skip("has none alone")
    found = network(name, heads=heads, time="index", family="rddm")
    x_lq = images(2, 13, 18) * 2 - 1
    once = found(x_lq, x_lq, torch.tensor([3.0]).expand(2))
    assert (once.residual is not None, once.noise is not None) == (heads != "noise", heads != "residual")
    assert all(part is None or part.shape == x_lq.shape for part in once[:2])
    assert once.features.shape == (2, found.feature_channels, 7, 9)
    if heads == "noise":  # of which alone RDDM's start tells no residual
        return
    restored = ResidualSampler.of(found.config, 2)(found, x_lq, generator=torch.Generator().manual_seed(0))
    assert restored.shape == x_lq.shape and restored.isfinite().all()


@pytest.mark.parametrize("name", ["UNet", *NAMES])
def test_latents_of_any_channels(name):
    if name == "UNet":
        found = UNet(UNetConfig(width=8, multipliers=(1, 1), channels=4, heads="both"))
    else:
        found = network(name, channels=4, heads="both")
    x = images(1, 6, 7, channels=4)
    predicted = found(x, x, torch.tensor([3.0]))
    assert predicted.residual.shape == predicted.noise.shape == x.shape
    with pytest.raises(ValueError, match=r"unet must be a network of 3 channels, of pixels, got 4"):
        Restorer(found, device="cpu")


@pytest.mark.parametrize("name", DIFFUSERS)
def test_blocks_called_one_by_one_are_the_library_s_forward(name):
    found = network(name, heads="both")
    x, time = images(2, 16, 24, channels=6), torch.tensor([3.5, 700.0])
    text = {} if found.text is None else {"encoder_hidden_states": found.text.expand(2, -1, -1)}
    with torch.no_grad():
        expected, ours = found.net(x, time, **text).sample, found.evaluate(x, time)
    assert torch.equal(torch.cat((ours.residual, ours.noise), 1), expected)


def test_text_that_begins_at_nothing_is_learnt():
    pytest.importorskip("diffusers")
    found = DiffusersUNet(DiffusersConfig(model="UNet2DConditionModel", options=DIFFUSERS["UNet2DConditionModel"]))
    assert not found.text.any()
    x = images(1, 8, 8)
    found(x, x, torch.tensor([500.0])).residual.square().mean().backward()
    assert found.text.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name, tmp_path):
    found = network(name, sampler_steps=2)
    found.save_pretrained(tmp_path)
    loaded = type(found).from_pretrained(tmp_path)
    assert loaded.config == found.config and not loaded.training
    expected = found.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert load_backbone(tmp_path / "model.safetensors", type(found)).config == found.config
    if name != "Plain":
        assert type(load_backbone(tmp_path)) is DiffusersUNet


@pytest.mark.parametrize("name", NAMES)
def test_restores_odd_sizes_and_batches(name, tmp_path):
    network(name).save_pretrained(tmp_path)
    restorer = Restorer.from_pretrained(tmp_path, steps=2, backbone=Plain if name == "Plain" else None, device="cpu")
    assert restorer.backend == "eager"
    pixels = images(2, 37, 21)
    restored = restorer.restore(pixels)
    assert restored.shape == pixels.shape and restored.isfinite().all()
    assert torch.allclose(restorer.restore(pixels[:1]), restored[:1], atol=1e-5)
    with pytest.raises(ValueError, match=r"backend must be one that can run here.*'native'.*must be a UNet itself"):
        Restorer.from_pretrained(tmp_path, backbone=Plain if name == "Plain" else None, device="cpu", backend="native")


def test_a_network_of_one_s_own_is_told_of_the_same_pixels_whatever_their_type():
    pixels = (images(2, 6, 7) * 255).round().to(torch.uint8)
    unet = Informed(PlainConfig())
    torch.nn.init.constant_(unet.norm.weight, 1.5)  # so that it counts as trained
    restorer = Restorer(unet, device="cpu")
    expected = (pixels / 127.5 - 1).mean((2, 3))
    torch.testing.assert_close(restorer.told(pixels), expected)
    torch.testing.assert_close(restorer.told(pixels / 255), expected)


def test_restores_in_tiles():
    found = network("Plain")
    pixels = images(1, 190, 150)
    whole = Restorer(found, device="cpu").restore(pixels)
    tiled = Restorer(found, device="cpu", tile=144).restore(pixels)
    assert tiled.shape == pixels.shape
    assert (whole - tiled).abs().mean() < 0.02  # norms are a tile's own


def test_compiles_unless_it_says_that_it_cannot(monkeypatch):
    found, pixels = network("Plain"), images(2, 20, 24)
    eager = Restorer(found, device="cpu", backend="eager").restore(pixels)
    compiled = Restorer(found, device="cpu", backend="compiled").restore(pixels)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-4)
    monkeypatch.setattr(Plain, "compiles", False)
    with pytest.raises(ValueError, match=r"got 'compiled': Plain says that torch.compile cannot take it"):
        Restorer(found, device="cpu", backend="compiled")


def test_a_checkpoint_never_has_code_imported(tmp_path, monkeypatch):
    """Its class is named by the file, and would be found."""
    network("Plain").save_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "user_network")
    with pytest.raises(CheckpointError, match=r"'user_network:Plain', which is not ours.*--backbone"):
        Restorer.from_pretrained(tmp_path)
    assert "user_network" not in sys.modules
    restorer = Restorer.from_pretrained(tmp_path, backbone="user_network:Plain", device="cpu")
    assert type(restorer.unet) is sys.modules["user_network"].Plain


def test_the_command_restores_with_a_class_that_is_named(tmp_path, capsys):
    from PIL import Image

    network("Plain").save_pretrained(tmp_path / "model")
    Image.new("RGB", (9, 7), (50, 90, 120)).save(tmp_path / "in.png")
    command = ["restore", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--checkpoint", str(tmp_path / "model")]
    assert main([*command, "--device", "cpu"]) == 2
    assert "'user_network:Plain', which is not ours" in capsys.readouterr().err
    assert main([*command, "--device", "cpu", "--backbone", "user_network:Plain"]) == 0
    assert Image.open(tmp_path / "out.png").size == (9, 7)
    command = ["demo", str(tmp_path / "in.png"), "--output", str(tmp_path / "demo"), "--steps", "1"]
    command += ["--checkpoint", str(tmp_path / "model")]
    assert main(command) == 2
    assert "'user_network:Plain', which is not ours" in capsys.readouterr().err
    assert main([*command, "--backbone", "user_network:Plain"]) == 0


def test_the_command_evaluates_with_classes_that_are_named(tmp_path, checkpoint, capsys):
    from PIL import Image

    network("Plain").save_pretrained(tmp_path / "model")
    network("Plain").save_pretrained(tmp_path / "more")
    for folder in ("in", "clean"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (24, 20), (50, 90, 120)).save(tmp_path / folder / "a.png")
    data = ["--input", str(tmp_path / "in"), "--target", str(tmp_path / "clean"), "--device", "cpu"]
    data += ["--output", str(tmp_path / "report")]
    model, more = (["--checkpoint", str(tmp_path / name)] for name in ("model", "more"))
    ours = ["--checkpoint", f"ours={checkpoint}"]
    assert main(["evaluate", *data, *model]) == 1
    assert "'user_network:Plain', which is not ours" in capsys.readouterr().err
    assert main(["evaluate", *data, *model, "--backbone", "user_network:Plain"]) == 0
    assert main(["evaluate", *data, *model, *ours, "--backbone", "user_network:Plain"]) == 2
    assert "--backbone must be NAME=..., with the name one of model, ours; got" in capsys.readouterr().err
    assert main(["evaluate", *data, *model, *ours, "--backbone", "model=user_network:Plain"]) == 0
    out = capsys.readouterr().out
    assert "model: 1 of 1 are there already" in out and "3 methods, 1 images" in out
    twice = ["--backbone", "more=user_network:Plain", "--backbone", "more=user_network:Other"]
    assert main(["evaluate", *data, *more, *ours, *twice]) == 2
    assert "--backbone must be given once for more" in capsys.readouterr().err
    assert main(["evaluate", *data, "--backbone", "user_network:Plain"]) == 2
    assert "there is none" in capsys.readouterr().err
    assert main(["evaluate", *data, *model, "--backbone", "user_network:Nothing"]) == 2
    assert "Nothing" in capsys.readouterr().err


def test_another_class_than_the_file_s_is_refused(tmp_path):
    UNet(UNetConfig(width=8, multipliers=(1,))).save_pretrained(tmp_path / "ours")
    network("Plain").save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"is of a network 'unet', not of 'user_network:Plain'"):
        Plain.from_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"is of a network 'user_network:Plain', not of 'unet'"):
        UNet.from_pretrained(tmp_path / "plain")


def test_a_subclass_of_ours_is_not_taken_for_ours(tmp_path):
    torch.manual_seed(0)
    own = Halved(UNetConfig(width=8, multipliers=(1,)))
    own.save_pretrained(tmp_path / "own")
    x, time = images(1, 8, 8), torch.tensor([500.0])
    loaded = Halved.from_pretrained(tmp_path / "own")
    assert type(loaded) is Halved
    torch.testing.assert_close(loaded(x, x, time).residual, own(x, x, time).residual)
    with pytest.raises(CheckpointError, match=r"is of a network 'user_network:Halved', which is not ours"):
        Restorer.from_pretrained(tmp_path / "own")
    UNet(own.config).save_pretrained(tmp_path / "ours")  # may be begun with
    assert type(load_backbone(tmp_path / "ours", Halved)) is Halved
    assert rounded(own, torch.bfloat16) is own  # where it computes in float32 nobody knows


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("unets", r"kind must be one of 'unet', 'diffusers', or 'package.module:Class', got 'unets'"),
        ("nowhere.at_all:Net", r"that can be imported \(installed, or in a folder of PYTHONPATH\), got 'nowhere"),
        ("user_network:Missing", r"got 'user_network:Missing': .*no attribute 'Missing'"),
        ("user_network:NoNetwork", r"a subclass of bdg_fast.Backbone, got 'user_network:NoNetwork', which is none"),
    ],
)
def test_kinds_that_are_none(kind, told):
    with pytest.raises(ValueError, match=told):
        find_backbone(kind)
    assert kind_of(find_backbone("user_network:Plain")) == "user_network:Plain"


def test_bad_settings_are_named():
    for bad, told in (
        ({"heads": "all"}, "heads must be one of"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"sampler_steps": 0}, "sampler_steps must be at least 1"),
    ):
        for kind in (BackboneConfig, UNetConfig, DiffusersConfig, PlainConfig):
            with pytest.raises(ValueError, match=told):
                kind(**bad)
    for bad, told in (
        ({"model": "UNet1DModel"}, r"model must be one of 'UNet2DModel', 'UNet2DConditionModel', got 'UNet1DModel'"),
        ({"options": {"in_channels": 3}}, r"options.in_channels must not be given: it follows from channels and heads"),
        ({"options": {"class_embed_type": "timestep"}}, r"options.class_embed_type must be None"),
        ({"options": {"up_block_types": ["SkipUpBlock2D"]}}, r"options.up_block_types must be .*got 'SkipUpBlock2D'"),
        ({"options": {"act_fn": torch.relu}}, r"options must be numbers, texts and lists"),
        ({"tokens": 0}, r"tokens must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=told):
            DiffusersConfig(**bad)
    with pytest.raises(ValueError, match=r"kind must be a subclass of bdg_fast.Backbone"):
        ModuleConfig(kind=NoNetwork)
    with pytest.raises(ValueError, match=r"options must be a PlainConfig, got BackboneConfig"):
        ModuleConfig(kind=Plain, options=BackboneConfig())
    with pytest.raises(TypeError, match=r"network must be a UNetConfig, a DiffusersConfig or a ModuleConfig"):
        new_network(PlainConfig())
    with pytest.raises(TypeError, match=r"unet must be a bdg_fast.Backbone, as UNet is, got NoNetwork"):
        Restorer(NoNetwork())


def test_options_that_the_library_does_not_have():
    pytest.importorskip("diffusers")
    with pytest.raises(
        ValueError, match=r"options.layer_per_block is no option of UNet2DModel; did you mean layers_per_block\?"
    ):
        DiffusersUNet(DiffusersConfig(options={"layer_per_block": 2}))
    with pytest.raises(ValueError, match=r"options must be what UNet2DModel takes, .*block_out_channels"):
        DiffusersUNet(DiffusersConfig(options={"block_out_channels": [8]}))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'bdg-fast\[diffusers\]'"):
        DiffusersUNet()


@pytest.mark.parametrize("heads", ["residual", "both"])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_begins_with_the_library_s_weights(name, heads, tmp_path):
    """What was added knows nothing of the degraded image; its noise is what the network predicted of the noisy one."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    source = getattr(diffusers, name)(in_channels=3, out_channels=3, **DIFFUSERS[name]).eval()
    source.save_pretrained(tmp_path / "pipeline" / "unet")
    found = DiffusersUNet.from_diffusers(tmp_path / "pipeline", subfolder="unet", heads=heads, sampler_steps=2)
    assert (found.config.sampler_steps, found.config.channels, found.config.model) == (2, 3, name)
    x_t, x_lq, time = images(1, 8, 12), images(1, 8, 12, seed=2), torch.tensor([300.0])
    text = {} if found.text is None else {"encoder_hidden_states": torch.zeros(1, 1, 12)}
    with torch.no_grad():
        predicted, expected = found(x_t, x_lq, time), source(x_t, time, **text).sample
    assert not predicted.residual.any()
    if heads == "both":
        torch.testing.assert_close(predicted.noise, expected, rtol=0, atol=1e-5)
    found.save_pretrained(tmp_path / "ours")
    assert DiffusersUNet.from_pretrained(tmp_path / "ours").config == found.config


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("UNet2DModel", {"attention_head_dim": None}),  # as google/ddpm-*-256: one head
        ("UNet2DModel", {"mid_block_type": None}),
        ("UNet2DConditionModel", {"mid_block_type": None}),
    ],
)
def test_an_option_that_is_null_is_no_default(name, absent, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    source = getattr(diffusers, name)(
        in_channels=3, out_channels=3, **{**DIFFUSERS[name], "block_out_channels": [8, 16], **absent}
    )
    with torch.no_grad():  # else attention does little
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    source.eval().save_pretrained(tmp_path / "unet")
    found = DiffusersUNet.from_diffusers(tmp_path / "unet", heads="both")
    found.save_pretrained(tmp_path / "ours")
    loaded = DiffusersUNet.from_pretrained(tmp_path / "ours")
    assert loaded.config == found.config and absent.items() <= loaded.config.options.items()
    x_t, time = images(1, 8, 12), torch.tensor([300.0])
    text = {} if found.text is None else {"encoder_hidden_states": torch.zeros(1, 1, 12)}
    with torch.no_grad():
        expected = source(x_t, time, **text).sample
        for network in (found, loaded):
            noise = network(x_t, torch.zeros_like(x_t), time).noise
            torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)


def test_weights_that_do_not_fit_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    diffusers = pytest.importorskip("diffusers")
    diffusers.UNet2DModel(**DIFFUSERS["UNet2DModel"]).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["mid_block.resnets.0.conv1.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its configuration: 1 keys, mid_block.resnets.0.conv1.weight"):
        DiffusersUNet.from_diffusers(tmp_path)


def test_weights_that_may_run_code_are_not_read(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.UNet2DModel(**DIFFUSERS["UNet2DModel"]).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"no weights in safetensors at"):
        DiffusersUNet.from_diffusers(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no UNet of diffusers at"):
        DiffusersUNet.from_diffusers(tmp_path / "nothing")
