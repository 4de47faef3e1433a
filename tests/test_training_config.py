"""Settings: what the files of the project say, overrides, and errors that name what is wrong."""

import json
import sys
from pathlib import Path

import pytest

from bdg_fast import SIZES, UNet
from bdg_fast.models import SHIPPED
from bdg_fast.schedule import STAGES
from bdg_fast.training import TrainConfig, load_config
from bdg_fast.training.config_stage import Losses, Stage
from bdg_fast.training.settings import as_dict, build, differences
from training_setup import settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["demo", "paper", "ablation"])
def test_the_files_of_the_project_are_good_and_come_back(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert build(TrainConfig, as_dict(config)) == config
    trained = [stage.coefficients for stage in config.stages.values() if not stage.reads_only]
    assert [*dict.fromkeys(trained)] == list(STAGES)


@pytest.mark.parametrize("file", ["small.yaml", "small-again.yaml"])
def test_the_shipped_network_is_what_its_settings_make(file):
    config = load_config(ROOT / "configs" / file)
    assert UNet.from_pretrained(SHIPPED).config == config.network
    assert {"lomiri-*", "gcompris-*"} <= set(config.data.exclude)  # what its card was measured on


def test_the_published_configuration_is_the_paper_s():
    config = load_config(ROOT / "configs/paper.yaml")
    assert config.network == SIZES["L"]
    assert [config.stages[name].steps for name in ("bridging", "restoration")] == [150_000, 150_000]
    assert config.encoder == build(type(config.encoder), {})


def test_published_weights_are_those_of_the_equations():
    assert Losses().completed("generation").weights == {"generation": 1}
    assert Losses().completed("bridging").weights == {"generation": 1, "bridging": 0.1, "classification": 0.1}
    assert Losses().completed("restoration").weights == {"reconstruction": 1, "bridging": 0.1, "negative": 1}
    partly = Stage(coefficients="restoration", steps=1, losses=Losses(bridging=0)).losses.weights
    assert partly == {"reconstruction": 1, "negative": 1}


def test_overrides_replace_what_a_file_says(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings("x")))
    changes = ["stages.bridging.lr=1e-4", "data.degradations=[jpeg, noise]", "output=y", "network.heads=both"]
    changes += ["stages.restoration.losses.generation=0.5", "optimizer.fused=false", "seed=7", "data.root=null"]
    config = load_config(file, changes)
    assert config.stages["bridging"].lr == 1e-4 and config.stages["bridging"].steps == 3
    assert config.data.degradations == ("jpeg", "noise") and config.output == "y" and config.seed == 7
    assert config.optimizer.fused is False and config.data.root is None
    file.write_text(json.dumps({**settings("x"), "log": None}))
    assert load_config(file, ["log.every=7"]).log.every == 7
    assert config.stages["restoration"].losses.weights["generation"] == 0.5


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("stages.bridging.stepz=1", r"^stages.bridging.stepz is no setting; did you mean steps\?"),
        ("stages.bridging.steps=1.5", r"^stages.bridging.steps must be an integer, got 1.5"),
        ("stages.bridging.steps=true", r"^stages.bridging.steps must be an integer, got True"),
        ("stages.bridging.steps=-1", r"^stages.bridging.steps must be at least 0"),
        ("stages.bridging.lr=fast", r"^stages.bridging.lr must be a number, got 'fast'"),
        ("stages.bridging.lr=nan", r"^stages.bridging.lr must be above 0"),
        ("stages.bridging.schedule=linear", r"^stages.bridging.schedule must be one of 'cosine', 'constant'"),
        ("stages.bridging.accumulate=3", r"^stages.bridging.batch must be a multiple of accumulate = 3, got 4"),
        ("stages.bridging.batch=1", r"^stages.bridging.batch must be at least 2 .* bridging compare images"),
        ("stages.bridging.losses.negative=-1", r"^stages.bridging.losses.negative must be at least 0"),
        ("stages.bridging.losses=3", r"^stages.bridging.losses must be settings by name"),
        ("stages.restoration.losses={reconstruction: 0, bridging: 0}", r"^stages.restoration.losses must train the"),
        ("stages.generation.losses.bridging=1", r"^stages.generation.losses.bridging must be 0 in generation"),
        ("stages.generation.degradations=[noise]", r"^stages.generation.degradations must not be given in generation"),
        (
            "stages.restoration.variant=published",
            r"^stages.restoration.variant must be 'plain' where losses.generation",
        ),
        (
            "stages.bridging={coefficients: bridging, steps: 1, lr_end: 1e-5, schedule: constant}",
            r"lr_end must be 0 for",
        ),
        ("stages.generation.mild={noise: 2}", r"^stages.generation.mild must not be given in generation"),
        ("stages.generation.draws={noise: 2}", r"^stages.generation.draws must not be given in generation"),
        ("stages.bridging.mild={rain: 2}", r"^stages.bridging.mild must be of the degradations drawn from, got rain"),
        ("stages.bridging.mild={noise: 0}", r"^stages.bridging.mild must be above 0, got"),
        ("stages.generation.tone=0.3", r"^stages.generation.tone must not be given in generation"),
        ("stages.bridging.tone={rain: 0.2}", r"^stages.bridging.tone must be of the degradations drawn from, got rain"),
        ("stages.bridging.tone=-0.1", r"^stages.bridging.tone must be 0 to 2.0, got -0.1"),
        ("stages.bridging.mild=much", r"^stages.bridging.mild must be a number, got 'much'"),
        ("stages.bridging.mild.noise=much", r"^stages.bridging.mild.noise must be a number, got 'much'"),
        ("stages.bridging.draws={rain: 2}", r"^stages.bridging.draws must be of the degradations drawn from, got rain"),
        ("stages.bridging.draws={noise: 0}", r"^stages.bridging.draws must be above 0, got \{'noise': 0.0\}"),
        ("stages.bridging.degradations=[rain]", r"^stages.bridging.degradations must be of .*, got rain"),
        ("stages.more.steps=1", r"^stages.more.coefficients must be given"),
        ("stages=[]", r"^stages must be settings by name"),
        ("network.width=12", r"^network.width must be a positive multiple of 8"),
        ("network.heads=noise", r"^network.heads must be 'residual' or 'both'"),
        ("network.heads=both", r"^stages.restoration.losses.generation must be above 0 for network.heads='both'"),
        ("data.degradations=[fog]", r"^data.degradations must be of .*, got 'fog'"),
        ("data.degradations=[noise, chain]", r"^data.degradations must be 'chain' alone"),
        ("data.degradations=[noise]", r"^stages.bridging.losses.classification must be 0 for the one degradation"),
        ("data.source=folder", r"^data.root must name the folder"),
        ("data.exclude=[a*]", r"^data.exclude must be empty for source='photographs', got \('a\*',\)"),
        ("init=''", r"^init must name a trained network, got ''"),
        ("stages.bridging.sampler_steps=-1", r"^stages.bridging.sampler_steps must be at least 0, got -1"),
        ("stages.bridging.sampler_steps=1001", r"^stages.bridging.sampler_steps must be at most 1000, got 1001"),
        ("log.wandb=''", r"^log.wandb must name a project, got ''"),
        ("parallel=zero", r"^parallel must be one of 'ddp', 'fsdp', got 'zero'"),
        ("data.source=web", r"^data.source must be one of 'photographs', 'folder', .* got 'web'"),
        ("data.root=mine", r"^data.root must not be given for source='photographs', which come along: 'mine'"),
        ("data={source: shards, root: x}", r"^data.held_out must be 0 for shards, .* got 2"),
        ("data={source: stablesr, root: x}", r"^data.source must be one of .* got 'stablesr'"),  # to test with alone
        (
            "data={source: realsr, root: x, factor: 8}",
            r"^data.factor must be one of 4, 2, 3 for .*'realsr', got 8",
        ),
        ("data.factor=4", r"^data.factor must be not given for source='photographs', got 4"),
        ("device=gpu", r"^device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got 'gpu'"),
        ("encoder.scales=[1, 16]", r"^stages.bridging.crop must be above 16, the largest of encoder.scales"),
        ("stages.bridging.losses.generation=0", r"^stages.bridging.losses must train .* or classification alone"),
        ("encoder.levels=1", r"^encoder.levels must be in 2..256"),
        ("optimizer.betas=[0.9]", r"^optimizer.betas must be two numbers"),
        ("validation.steps=1001", r"^validation.steps must be at most 1000, got 1001"),
        ("non_finite=ignore", r"^non_finite must be one of 'stop', 'skip'"),
        ("dtype=float16", r"^dtype must be one of 'float32', 'bfloat16'"),
        ("seed", r"^settings must be given as key.sub=value, got 'seed'"),
        ("seed.x=1", r"^seed.x: seed has no settings inside"),
    ],
)
def test_bad_settings_are_named(tmp_path, override, match):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings("x")))
    with pytest.raises(ValueError, match=match):
        load_config(file, [override])


@pytest.mark.parametrize("given", ["mild=2", "tone=0.3"])
def test_a_chain_draws_its_levels_itself(tmp_path, given):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings("x")))
    load_config(file, ["data.degradations=[chain]"])
    with pytest.raises(ValueError, match=rf"^stages.bridging.{given.split('=')[0]} must not be given for 'chain'"):
        load_config(file, ["data.degradations=[chain]", f"stages.bridging.{given}"])


def test_a_run_needs_a_step(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings("x", stages={"steps": 0})))
    with pytest.raises(ValueError, match=r"^stages must have one of more than 0 steps"):
        load_config(file)


def test_without_pyyaml_it_is_told_what_to_install(monkeypatch, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings("x")))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert load_config(file, ["seed=5"]).seed == 5  # JSON needs nothing
    with pytest.raises(ImportError, match=r"pip install 'bdg-fast\[training\]'"):
        load_config(ROOT / "configs/demo.yaml")


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("stages: [")
    with pytest.raises(ValueError, match=r"run.yaml is no YAML"):
        load_config(file)
    file.write_text("- 1")
    with pytest.raises(ValueError, match=r"must hold settings by name, got list"):
        load_config(file)
    file = tmp_path / "run.json"
    file.write_text('{"seed":')
    with pytest.raises(ValueError, match=r"run.json is no JSON: Expecting value: line 1"):
        load_config(file)


def test_differences_leave_out_what_results_do_not_depend_on():
    old = as_dict(build(TrainConfig, settings("x")))
    free = build(TrainConfig, settings("y", log={"every": 9}, checkpoint={"every": 7}, device="auto"))
    assert differences(old, as_dict(free)) == []
    changed = as_dict(build(TrainConfig, settings("x", stages={"lr": 1e-5}, ema=0.1)))
    assert differences(old, changed) == [f"stages.{name}.lr" for name in old["stages"]] + ["ema"]
