"""Runs that begin with a trained network, and stages that train what reads fingerprints alone."""

import pytest
import torch

from bdg_fast import UNet, UNetConfig
from bdg_fast.training import TrainConfig, Trainer
from bdg_fast.training.settings import build
from bdg_fast.training.stages import Parts
from bdg_fast.training.validate import HeldOut, Scores
from training_setup import last, losses, pictures, settings, trainer

CONDITIONAL = {"width": 16, "multipliers": [1], "condition": 8}
READ = {"generation": 0, "reconstruction": 0, "bridging": 0, "negative": 0, "classification": 1}
READING = {"reading": {"coefficients": "restoration", "steps": 2, "batch": 4, "crop": 16, "losses": READ}}
NOTHING = Scores(1.0, 1.0, 1.0, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that may be begun with."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(7)
    UNet(UNetConfig(width=16, multipliers=(1,), condition=8, sampler_steps=5)).save_pretrained(folder)
    return folder


def test_a_run_begins_with_a_trained_network_s_weights(trained, tmp_path):
    expected = UNet.from_pretrained(trained).state_dict()
    run = trainer(tmp_path, init=str(trained), network=CONDITIONAL, stages={"lr": 1e-12})
    run.run(until=2)
    for name, tensor in last(tmp_path).network.items():
        assert torch.allclose(tensor, expected[name], atol=1e-7), name


def test_it_goes_on_without_what_it_began_with(trained, tmp_path):
    folder = tmp_path / "gone"
    UNet.from_pretrained(trained).save_pretrained(folder)
    for output in (tmp_path / "stopped", tmp_path / "whole"):
        trainer(output, init=str(folder), network=CONDITIONAL).run(until=None if output.name == "whole" else 2)
    for file in folder.iterdir():
        file.unlink()
    trainer(tmp_path / "stopped", init=str(folder), network=CONDITIONAL).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_another_network_is_refused_by_what_differs(trained, tmp_path):
    other = {**CONDITIONAL, "width": 24, "condition": 16}
    with pytest.raises(ValueError, match=r"init=.* is another network than the settings': width, condition differ"):
        trainer(tmp_path, init=str(trained), network=other).run()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'nowhere.pt'"):
        trainer(tmp_path / "nowhere", init="nowhere.pt", network=CONDITIONAL).run()


@pytest.mark.parametrize("network", [CONDITIONAL, {"width": 16, "multipliers": [1], "heads": "both"}])
def test_a_stage_of_classification_trains_the_encoder_alone(tmp_path, network, monkeypatch):
    monkeypatch.setattr(UNet, "evaluate", None)  # nothing asks the network
    run = build(TrainConfig, {**settings(tmp_path, network=network), "stages": READING})
    Trainer(run, source=pictures(), quiet=True).run()
    first = Parts(run, 3).state_dict()
    changed = {name for name, tensor in last(tmp_path).parts.items() if not torch.equal(tensor, first[name])}
    encoder = "unet.condition.encoder." if "condition" in network else "encoder."
    assert any(name.startswith(encoder) for name in changed)
    assert all(name.startswith((encoder, "classifier.")) for name in changed)
    lines = losses(tmp_path)
    assert len(lines) == 2
    assert all(0 <= line["accuracy"] <= 1 and line["loss"] == line["classification"] for line in lines)


def test_a_conditional_network_is_validated_as_it_restores(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(HeldOut, "score", lambda self, unet, sampler: asked.append(sampler.steps) or NOTHING)
    network = {**CONDITIONAL, "sampler_steps": 2}
    for validation, expected in (({"every": 1}, 2), ({"every": 1, "steps": 5}, 5)):
        output = tmp_path / str(expected)
        stages = {"restoration": {"coefficients": "restoration", "steps": 1, "batch": 4, "crop": 16}}
        values = settings(output, network=network, validation={**validation, "crop": 16})
        Trainer(build(TrainConfig, {**values, "stages": stages}), source=pictures(), quiet=True).run()
        assert asked.pop() == expected
