"""Networks that are not ours, trained: gone on with exactly, by two processes as by one, and restored with."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from bdg_fast import Restorer
from bdg_fast.models import DiffusersConfig, DiffusersUNet, ModuleConfig
from bdg_fast.training import TrainConfig, Trainer, load_config
from bdg_fast.training.config_stage import Losses, Stage
from bdg_fast.training.optim import Average
from bdg_fast.training.settings import as_dict, build
from bdg_fast.training.stages import Parts
from training_setup import last, losses, on_two_ranks, pictures, same_runs, settings, two_ranks
from user_network import DIFFUSERS, Informed, Plain, PlainConfig

NETWORKS = {
    "plain": {"kind": "user_network:Plain", "options": {"width": 6, "heads": "both"}},
    "text": {"kind": "diffusers", "model": "UNet2DConditionModel", "options": DIFFUSERS["UNet2DConditionModel"]},
    "image": {"kind": "diffusers", "heads": "both", "options": DIFFUSERS["UNet2DModel"]},
}
OTHERS = ("generation", "reconstruction", "bridging", "negative")
TERMS = {
    "bridging": {"generation": 1.0, "bridging": 0.1, "classification": 0.1},
    "restoration": {"generation": 0.1, "reconstruction": 1.0},
}


def run(output, name, parallel="ddp", until=None):
    values = settings(output, parallel=parallel, network=NETWORKS[name], ema=0.5)
    values |= {"validation": {"every": 2, "crop": 16, "steps": 1}}
    del values["stages"]["generation"]
    for stage, each in values["stages"].items():
        each |= {"steps": 2, "lr": 5e-5, "batch": 8, "accumulate": 2, "losses": TERMS[stage]}
    return Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run(until)


def rank_main(rank, folder):
    for name in ("plain", "text"):
        for parallel in ("ddp", "fsdp"):
            run(folder / f"{name} {parallel}", name, parallel)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the same runs by one process and by two."""
    pytest.importorskip("diffusers")
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("backbones")
    torch.set_num_threads(1)
    for name in NETWORKS:
        run(folder / name, name)
    on_two_ranks(__file__, folder)
    yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["plain", "text"])
def test_two_processes_equal_one(folder, name, parallel):
    same_runs(folder / f"{name} {parallel}", folder / name)


@pytest.mark.parametrize("name", NETWORKS)
def test_goes_on_exactly(folder, name):
    stopped = folder / f"{name} stopped"
    run(stopped, name, until=3)
    run(stopped, name)
    assert losses(stopped) == losses(folder / name)
    one, other = last(folder / name), last(stopped)
    for part in ("parts", "optimizer", "network"):
        expected, found = getattr(one, part), getattr(other, part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_trained_restores(folder, name):
    backbone = Plain if name == "plain" else None
    restorer = Restorer.from_pretrained(folder / name / "network", backbone=backbone, device="cpu")
    assert type(restorer.unet) is (backbone or DiffusersUNet)
    assert restorer.restore(torch.rand(1, 3, 19, 23)).shape == (1, 3, 19, 23)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_trained_and_begins_at_the_degraded_image(folder, name):
    torch.manual_seed(0)
    config = load_config(folder / name / "config.json")
    begun = Parts(config, 3)
    x = torch.rand(1, 3, 8, 8)
    assert not begun.unet(x, x, torch.tensor([500.0])).residual.any()
    found = last(folder / name).parts
    still = {key for key, tensor in begun.state_dict().items() if torch.equal(found[key], tensor)}
    # attention to one token does not depend on what asks, and a bias of keys changes none
    idle = (".norm2.", "attn2.to_q", "attn2.to_k", "to_k.bias")
    assert all(any(part in key for part in idle) for key in still), still


def test_settings_repeat_themselves(folder):
    for name, network in NETWORKS.items():
        config = load_config(folder / name / "config.json")
        told = json.loads((folder / name / "config.json").read_text())
        assert as_dict(config) == told
        assert told["network"]["kind"] == network["kind"]
    assert load_config(folder / "plain" / "config.json").network == ModuleConfig(
        kind=Plain, options=PlainConfig(width=6, heads="both")
    )


def test_a_run_begins_with_a_network_of_the_settings_class(folder, tmp_path):
    values = settings(tmp_path, network=NETWORKS["plain"], init=str(folder / "plain" / "network"))
    for each in values["stages"].values():
        each |= {"lr": 1e-12, "losses": {"generation": 1.0}}
    Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run(until=2)
    for key, tensor in last(folder / "plain").network.items():
        assert torch.allclose(last(tmp_path).network[key], tensor, atol=1e-6), key
    values |= {"network": {"width": 8, "multipliers": [1]}, "output": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=r"is of a network 'user_network:Plain', not of 'unet'"):
        Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run()


def test_statistics_of_a_batch_norm_are_the_averaged_network_s():
    found = Plain(PlainConfig())
    found.norm = torch.nn.BatchNorm2d(8)
    average = Average(found, 0.5)
    found(*torch.rand(2, 2, 3, 8, 8), torch.tensor([5.0]))
    assert found.norm.num_batches_tracked == 1
    average.update(found, 0)
    for name, buffer in average.unet.named_buffers():
        assert torch.equal(buffer, found.get_buffer(name)), name


def test_a_run_from_before_some_settings_were_there_may_go_on(tmp_path):
    config = build(TrainConfig, settings(tmp_path))
    before = as_dict(config)
    for stage in before["stages"].values():
        del stage["draws"]
    for where, name in (
        (before["network"], "channels"),
        (before["network"], "condition_residual"),
        (before, "init"),
        (before, "latent"),
        (before, "encoder"),
    ):
        del where[name]
    (tmp_path / "config.json").write_text(json.dumps(before))
    plain = settings(tmp_path)
    del plain["encoder"]
    Trainer(build(TrainConfig, plain), source=pictures(), quiet=True)
    plain["stages"]["bridging"]["draws"] = {"noise": 2}
    for changes in ({"network": {"width": 24, "multipliers": [1, 1]}}, {"network": {"kind": "user_network:Plain"}}, {}):
        with pytest.raises(ValueError, match=r"stages.bridging.draws" if not changes else r"network.width"):
            Trainer(build(TrainConfig, {**plain, **changes}), source=pictures())


def test_what_a_network_of_one_s_own_cannot_do_is_named():
    network = ModuleConfig(kind=Informed)
    config = build(TrainConfig, settings("nowhere"))
    with pytest.raises(ValueError, match=r"compile must be false: Informed says that torch.compile cannot take it"):
        Parts(replace(config, network=network, compile=True), 3)
    reading = Stage(coefficients="restoration", steps=1, losses=Losses(**dict.fromkeys(OTHERS, 0), classification=1))
    with pytest.raises(ValueError, match=r"stages.reading.losses must not be classification alone: Informed is told"):
        Parts(replace(config, network=network, stages={"reading": reading}), 3)
    Parts(replace(config, network=ModuleConfig(kind=Plain), stages={"reading": reading}), 3)


def network_of(**values):
    return build(TrainConfig, settings("nowhere", network=values)).network


def test_settings_of_networks():
    assert network_of(kind="unet", width=16) == network_of(width=16)
    assert network_of(kind="diffusers", options={"sample_size": 32}) == DiffusersConfig(options={"sample_size": 32})
    assert network_of(kind="user_network:Plain") == ModuleConfig(kind=Plain)
    for values, told in (
        ({"kind": "unets"}, r"network.kind must be one of 'unet', 'diffusers', or 'package.module:Class', got 'unets'"),
        ({"kind": "diffusers", "width": 8}, r"network.width is no setting"),
        ({"kind": "diffusers", "model": "UNet"}, r"network.model must be one of 'UNet2DModel'"),
        ({"kind": "user_network:Plain", "width": 8}, r"network.width is no setting; those of user_network:Plain"),
        ({"kind": "user_network:Plain", "options": {"with": 8}}, r"network.options.with is no setting; did you mean"),
        ({"kind": "user_network:Plain", "options": {"width": 0}}, r"network.options.width must be at least 1, got 0"),
        ({"kind": "user_network:Plain", "options": {"heads": "noise"}}, r"network.heads must be 'residual' or 'both'"),
    ):
        with pytest.raises(ValueError, match=told):
            network_of(**values)


if __name__ == "__main__":
    Parts(build(TrainConfig, settings("nowhere", network=NETWORKS["text"])), 3)  # loads diffusers, once for both
    sys.exit(two_ranks(rank_main, sys.argv[1]))
