"""Checkpoints: our own come back as they were, official ones load, everything else is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bdg_fast import SIZES, ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig
from bdg_fast.models.checkpoints import CheckpointError

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
FILES = ["README.md", "config.json", "model.safetensors"]
SMALL = UNetConfig(width=8, multipliers=(1, 2))


@pytest.fixture
def state():
    return load_file(FIXTURES / "T_state.safetensors")


def equal(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "config", [SMALL, UNetConfig(width=8, multipliers=(1,), heads="both"),
               UNetConfig(width=8, multipliers=(1, 1), heads="both", shared_encoder=True, time="index")], ids=str,
)  # fmt: skip
def test_saved_and_loaded(config, tmp_path):
    unet = UNet(config)
    unet.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    loaded = UNet.from_pretrained(tmp_path / "model")
    assert loaded.config == config
    assert equal(loaded, unet)
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())


def test_official_training_checkpoint_gives_the_averaged_weights(state, tmp_path):
    buffers = {"alphas": torch.zeros(1000), "delta_cumsum": torch.zeros(1000), "posterior_variance": torch.zeros(1000)}
    online = {**buffers, **{key: tensor + 1 for key, tensor in state.items()}}
    averaged = {**buffers, **state}
    ema = {"initted": torch.tensor([True]), "step": torch.tensor([3])}
    ema |= {f"online_model.{k}": v for k, v in online.items()} | {f"ema_model.{k}": v for k, v in averaged.items()}
    content = {"step": 300, "model": online, "opt0": {"state": {}, "param_groups": []}, "ema": ema, "scaler": None}
    torch.save(content, tmp_path / "model-300.pt")
    expected = UNet.from_pretrained(FIXTURES / "T_state.safetensors")
    assert equal(UNet.from_pretrained(tmp_path / "model-300.pt"), expected)
    del content["ema"]
    torch.save(content, tmp_path / "model-300.pt")
    found = UNet.from_pretrained(tmp_path / "model-300.pt")
    assert torch.equal(found.stem.weight, expected.stem.weight + 1)
    assert found.config == replace(SIZES["T"], family="diffuir")


@pytest.mark.parametrize("prefix", ["", "module.", "unet0.", "model.unet0.", "ema_model.model.unet0.", "_orig_mod."])
def test_bare_state_dicts_of_any_prefix(state, prefix, tmp_path):
    bare = {prefix + key.removeprefix("model.unet0."): tensor for key, tensor in state.items()}
    bare["total_ops"] = torch.tensor([1.0])
    torch.save(bare, tmp_path / "weights.pt")
    save_file(bare, tmp_path / "weights.safetensors")
    expected = UNet.from_pretrained(FIXTURES / "T_state.safetensors")
    for suffix in ("pt", "safetensors"):
        assert equal(UNet.from_pretrained(tmp_path / f"weights.{suffix}"), expected)


def test_the_schedule_is_read_off_official_files(state, tmp_path):
    state["delta"] = torch.linspace(1e-6, 1.5e-3, 1000)
    save_file(state, tmp_path / "weights.safetensors")
    unet = UNet.from_pretrained(tmp_path / "weights.safetensors")
    assert unet.config.delta_end == pytest.approx(1.5e-3, rel=1e-6)
    unet.save_pretrained(tmp_path / "ours")
    assert UNet.from_pretrained(tmp_path / "ours").config == unet.config
    assert Restorer(unet).sampler.method == "use_pred_noise"


@pytest.mark.parametrize(
    ("tables", "shared", "expected"),
    [
        (ResidualSchedule.rddm(sum_scale=0.01), True, ("index", 0.1)),
        (ResidualSchedule.rddm(), False, ("index", 1.0)),
        (ResidualSchedule.linear(delta_end=0), False, ("scaled", 0.1)),  # as RDDM's later code has it
    ],
)
def test_rddm_training_files_bring_their_schedule(state, tables, shared, expected, tmp_path):
    weights = load_file(FIXTURES / "rddm_shared_state.safetensors") if shared else state
    weights |= {"alphas_cumsum": tables.alpha.float(), "betas2_cumsum": tables.beta2.float()}
    torch.save({"step": 3, "model": weights}, tmp_path / "model.pt")
    unet = UNet.from_pretrained(tmp_path / "model.pt")
    assert unet.config.family == "rddm"
    sampler = ResidualSampler.of(unet.config)
    assert (sampler.time, sampler.start_noise) == pytest.approx(expected) and sampler.method == "ddim"
    for name in ("alpha", "beta2"):
        torch.testing.assert_close(getattr(sampler.schedule, name), getattr(tables, name))
    unet.save_pretrained(tmp_path / "ours")
    assert UNet.from_pretrained(tmp_path / "ours").config == unet.config


def test_our_names_need_a_configuration(tmp_path):
    unet = UNet(replace(SMALL, heads="noise"))
    torch.save(unet.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt holds weights of a UNet but no configuration: give"):
        UNet.from_pretrained(tmp_path / "weights.pt")
    found = UNet.from_pretrained(tmp_path / "weights.pt", config=unet.config)
    assert equal(found, unet) and found.config == unet.config
    unet.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config must not be given .* has its own"):
        UNet.from_pretrained(tmp_path / "model", config=unet.config)


@pytest.mark.parametrize("ema", [{}, {"initted": torch.tensor([True])}], ids=["empty", "new"])
def test_an_average_without_weights_is_passed_over(state, ema, tmp_path):
    torch.save({"ema": ema, "model": state}, tmp_path / "model.pt")
    found = UNet.from_pretrained(tmp_path / "model.pt")
    assert equal(found, UNet.from_pretrained(FIXTURES / "T_state.safetensors"))


def test_options_of_the_hub_are_refused_for_local_paths():
    path = FIXTURES / "T_state.safetensors"
    for load in (UNet.from_pretrained, Restorer.from_pretrained):
        with pytest.raises(TypeError, match="stpes"):
            load(path, stpes=5)


def test_keys_that_do_not_fit_are_named(state, tmp_path):
    del state["model.unet0.mid_block1.block1.proj.bias"]
    state["model.unet0.extra.weight"] = torch.zeros(1)
    state["model.unet0.time_mlp.1.weight"] = torch.zeros(128, 31)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError) as raised:
        UNet.from_pretrained(tmp_path / "bad.safetensors")
    message = str(raised.value)
    assert "bad.safetensors" in message
    assert "1 missing: middle1.conv1.bias" in message
    assert "1 surplus: extra.weight" in message
    assert "1 misshaped: time.linear1.weight [128, 31] instead of [128, 32]" in message


def test_two_unets_are_refused(state, tmp_path):
    state |= {key.replace("unet0", "unet1"): tensor.clone() for key, tensor in state.items()}
    save_file(state, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="holds two UNets"):
        UNet.from_pretrained(tmp_path / "two.safetensors")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    for name, message in (
        ("evil.pt", "weights_only=True"),
        ("text.safetensors", "damaged or no safetensors"),
        ("list.pt", "holds a list, not a state dict"),
        ("other.safetensors", "no residual-diffusion UNet"),
        ("empty.pt", "holds no weights"),
    ):
        with pytest.raises(CheckpointError, match=message) as raised:
            UNet.from_pretrained(tmp_path / name)
        assert name in str(raised.value)
    assert "executed" not in capsys.readouterr().out
    for missing in ("nowhere.pt", "a/b/c", "nowhere.safetensors"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            UNet.from_pretrained(tmp_path / missing)


def test_our_weights_alone_are_a_checkpoint(tmp_path):
    unet = UNet(SMALL)
    unet.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "renamed.safetensors")
    found = UNet.from_pretrained(tmp_path / "renamed.safetensors")
    assert equal(found, unet) and found.config == unet.config and not found.training


def test_names_on_the_hub_are_fetched(tmp_path, monkeypatch):
    unet = UNet(SMALL)
    unet.save_pretrained(tmp_path / "model")
    asked = []

    def fetch(name, **options):
        asked.append((name, options.pop("revision"), options))
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert equal(UNet.from_pretrained("someone/some-model", revision="v1"), unet)
    assert asked == [("someone/some-model", "v1", {"allow_patterns": ["config.json", "model.safetensors"]})]


def test_mistyped_names_say_that_the_hub_was_asked(monkeypatch):
    def fetch(name, **_):
        raise ConnectionError("no route to the hub\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(FileNotFoundError, match=r"file 'models/rian', and the hub .*: no route to the hub$"):
        UNet.from_pretrained("models/rian")


def test_networks_are_pushed_to_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    uploaded = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id}))

    def upload(self, *, repo_id, folder_path, **_):
        uploaded[repo_id] = UNet.from_pretrained(folder_path), sorted(path.name for path in folder_path.iterdir())
        return "address"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    unet = UNet(SMALL)
    assert unet.push_to_hub("someone/one") == "address"
    assert unet.save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/two") == "address"
    for found, files in uploaded.values():
        assert equal(found, unet) and files == FILES
    card = (tmp_path / "README.md").read_text()
    assert "library_name: bdg-fast" in card and "2602.00579" in card


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        UNet.from_pretrained(tmp_path)
    UNet(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["unet"]["width"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="misshaped"):
        UNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"unet": {"depth": 3}}')
    with pytest.raises(CheckpointError, match="no configuration of a UNet"):
        UNet.from_pretrained(tmp_path)


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    old = UNet(SMALL)
    old.save_pretrained(tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        UNet(SMALL).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert equal(UNet.from_pretrained(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_folded_networks_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a folded UNet cannot be saved"):
        UNet(SMALL).fold().save_pretrained(tmp_path)


def test_half_the_space_is_float32_again_when_loaded(tmp_path):
    torch.manual_seed(0)
    unet = UNet(SMALL)
    unet.save_pretrained(tmp_path / "whole")
    unet.save_pretrained(tmp_path / "half", dtype=torch.float16)
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    loaded = UNet.from_pretrained(tmp_path / "half")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, unet.state_dict()[name].half().float())
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch.int8"):
        unet.save_pretrained(tmp_path / "no", dtype=torch.int8)
    with torch.no_grad():
        unet.stem.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"dtype=torch.float16 cannot hold stem.bias"):
        unet.save_pretrained(tmp_path / "no", dtype=torch.float16)
