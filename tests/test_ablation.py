"""The ablations run from end to end on a tiny network, go on without training again; arms are what they say."""

import json

import pytest
import torch
from PIL import Image

from bdg_fast.data.images import bundled_photographs
from bdg_fast.files import held
from bdg_fast.training.settings import as_dict, differences
from benchmarks import ablation
from benchmarks.ablation import ARMS, BASE, CONFIG, Ablation, arm_config, main
from benchmarks.ablation_scores import middle, readout
from benchmarks.ablation_table import spread

pytest.importorskip("yaml")

CHANGED = {
    "base": set(),
    "not told": {"network.condition"},
    "no fingerprint": {
        "network.condition",
        "stages.encoder.steps", "stages.bridging.losses.bridging", "stages.bridging.losses.classification",
        "stages.restoration.losses.classification",
        "stages.restoration.losses.bridging", "stages.restoration.losses.negative",
    },
    "no bridging stage": {"stages.bridging.steps", "stages.restoration.steps"},
    "no classification": {
        "stages.encoder.steps", "stages.bridging.losses.classification", "stages.restoration.losses.classification",
    },
    "both heads": {"network.heads", "stages.restoration.losses.generation"},
    "DiffUIR": {
        "network.condition", "stages.encoder.steps", "stages.restoration.losses.classification",
        "stages.generation.steps", "stages.bridging.steps", "stages.restoration.steps",
        "stages.restoration.losses.bridging", "stages.restoration.losses.negative",
    },
    "gray fingerprint": {"network.condition_residual"},
    "three steps": {"stages.restoration.sampler_steps", "network.sampler_steps"},
    "all times": {"stages.restoration.sampler_steps", "network.sampler_steps"},
}  # fmt: skip


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_from_the_base_in_what_it_says_at_equal_steps(tmp_path, arm):
    base, own = (arm_config(CONFIG, each, 1, tmp_path, 0.1) for each in (BASE, arm))
    assert set(differences(as_dict(base), as_dict(own))) == CHANGED[arm]
    assert [stage.steps for stage in base.stages.values()] == [30, 5, 15, 70]
    assert sum(stage.steps for name, stage in own.active.items() if name != "encoder") == 90
    uses_matrices = arm not in ("no fingerprint", "DiffUIR")
    assert own.uses_encoder == uses_matrices
    assert own.network.heads == ("both" if arm == "both heads" else "residual")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Folders of two small photographs each, to train and to test on."""
    folders = []
    for name, files in (("train", bundled_photographs()[:2]), ("test", bundled_photographs()[2:4])):
        folder = tmp_path_factory.mktemp(name)
        for file in files:
            Image.open(file).crop((96, 96, 160, 160)).save(folder / f"{file.stem}.png")
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of two steps an arm at most, but one in each of the base's three stages."""
    stage = {"steps": 1, "batch": 2, "crop": 16, "lr": 1e-3}
    values = {
        "device": "cpu",
        "network": {"width": 16, "multipliers": [1, 1], "condition": 8, "sampler_steps": 1},
        "encoder": {"residual": True, "angles": 2, "scales": [1], "levels": 8, "width": 16, "projection": 8},
        "data": {"source": "folder", "root": "photographs", "degradations": ["clean", "noise", "haze"], "held_out": 0},
        "stages": {
            "encoder": {
                "coefficients": "bridging",
                **stage,
                "losses": {"generation": 0, "bridging": 0, "classification": 1},
            },
            **{name: {"coefficients": name, **stage} for name in ("generation", "bridging", "restoration")},
        },
        "validation": {"every": 0},
        "log": {"every": 1, "tensorboard": False},
    }
    path = tmp_path_factory.mktemp("settings") / "tiny.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def finished(photographs, tiny, tmp_path_factory):
    """A command that was run once, and its folder."""
    train, test = photographs
    out = tmp_path_factory.mktemp("out")
    command = ["--root", train, "--test", test, "--config", tiny, "--out", out, "--seeds", 1, "--crop", 16, "--quiet"]
    command = [*map(str, command), "--arms", "DiffUIR", "base", "all times"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ablation, "SAMPLED", (1, 3))  # more take most of the time
        assert main(command) == 0
    return command, out


def test_results_and_table_are_written(finished):
    runs = json.loads((finished[1] / "results.json").read_text())["runs"]
    assert list(runs) == ["base", "DiffUIR", "all times"]  # in the order of the arms
    base, other, times = (runs[arm]["0"] for arm in runs)
    assert base["steps"] == {"encoder": 1, "generation": 1, "bridging": 1, "restoration": 1}
    assert other["steps"] == {"restoration": 3}
    assert set(times["sampling"]) == {"1", "3"} and base["sampling"] == other["sampling"] == {}
    assert other["training_accuracy"] is None and 0 <= base["training_accuracy"] <= 1
    assert other["encoder_accuracy"] is None and 0 <= base["encoder_accuracy"] <= 1
    for one in (base, other):
        assert set(one["scores"]) == {"clean", "noise", "haze", "mean"}
        assert one["scores"]["clean"]["psnr_degraded"] == 100  # equal, and in no mean
        mean = (one["scores"]["noise"]["psnr"] + one["scores"]["haze"]["psnr"]) / 2
        assert one["scores"]["mean"]["psnr"] == pytest.approx(mean)
        assert 0 <= one["readout_accuracy"] <= 1 and one["seconds"] > 0
    assert times["sampling"]["3"] == times["scores"]["mean"]
    table = (finished[1] / "table.md").read_text()
    for text in (
        "| base | 1 |",
        "| DiffUIR | 1 |",
        "| degraded |",
        "| PSNR (dB) | noise | haze | mean |",
        "steps | 1 | 3 |",
    ):
        assert text in table


def test_finished_arms_are_not_trained_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "Trainer", None)
    before = (finished[1] / "results.json").read_bytes()
    assert main(finished[0]) == 0
    assert (finished[1] / "results.json").read_bytes() == before
    assert "| DiffUIR |" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(finished, monkeypatch):
    """Training is there, its results are not: they come again, of equal scores."""
    command, out = finished
    before = json.loads((out / "results.json").read_text())
    cut = json.loads(json.dumps(before))
    del cut["runs"]["DiffUIR"]["0"]
    (out / "results.json").write_text(json.dumps(cut))
    assert main(command) == 0
    after = json.loads((out / "results.json").read_text())
    assert after["runs"]["DiffUIR"]["0"] == before["runs"]["DiffUIR"]["0"]


def test_two_commands_share_the_work(finished, monkeypatch, capsys):
    """What another one is at is left to it, and its results are kept."""
    command, out = finished
    before = json.loads((out / "results.json").read_text())
    trained = []

    def run_by_another(self, arm, seed, stop):
        trained.append((arm, seed))
        Ablation(self.arguments).add(arm, seed, before["runs"]["base"]["0"])
        return True

    monkeypatch.setattr(Ablation, "one", run_by_another)
    with held(out / "base-1.lock") as mine:
        assert mine and main([*command, "--seeds", "2"]) == 0
    assert trained == [("DiffUIR", 1), ("all times", 1)]
    assert capsys.readouterr().err.endswith("other commands are still at base, seed 1\n")
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert list(runs["DiffUIR"]) == ["0", "1"] and list(runs["base"]) == ["0"]
    (out / "results.json").write_text(json.dumps(before))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--steps-scale", "0"], "--steps-scale must be above 0"),
        (["--arms", "none"], "--arms must be of 'base', 'not told', 'no fingerprint'"),
        (["--exclude", "*"], "--exclude must leave photographs"),
        (["--crop", "32"], "--out holds results of other conditions: test differ"),
        (["--steps-scale", "2"], "--out holds results of other conditions: "),
    ],
)
def test_bad_arguments_are_named(finished, changes, message, capsys):
    assert main([*finished[0], *changes]) == 2
    assert message in capsys.readouterr().err


def test_what_is_tested_on_is_not_trained_on(photographs, tiny, tmp_path, capsys):
    train, test = photographs
    (train / "copy.png").write_bytes(next(test.iterdir()).read_bytes())
    command = [*map(str, ["--root", train, "--test", test, "--config", tiny, "--out", tmp_path / "out"])]
    try:
        assert main(command) == 2
        assert "--root must not hold test photographs unless --exclude names them: copy.png" in capsys.readouterr().err
    finally:
        (train / "copy.png").unlink()


def test_settings_of_an_arm_that_the_base_has_already_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="must not have the settings of the arm 'gray fingerprint' already"):
        arm_config(tiny, "gray fingerprint", 0, tmp_path, more=["network.condition_residual=false"])
    with pytest.raises(ValueError, match="--config must have the stages encoder, generation, bridging, restoration"):
        arm_config(tiny, BASE, 0, tmp_path, more=["stages.bridging.steps=0"])


def test_small_parts():
    image = torch.arange(30.0).view(1, 5, 6)
    assert middle(image, 2).tolist() == [[[8, 9], [14, 15]]]
    assert torch.equal(middle(image, 0), image) and torch.equal(middle(image, 9), image)
    assert spread([1.0, 3.0]) == "2.00 ± 1.41" and spread([0.5], 2, "+") == "+0.50" and spread([]) == "-"
    features, labels = torch.tensor([[0.0, 5.0], [0.1, 5.0], [9.0, 5.0], [9.1, 5.0]]), torch.tensor([0, 0, 1, 1])
    nine = (features.repeat(3, 1), labels.repeat(3))
    assert readout(nine, (torch.tensor([[0.2, 5.0], [8.0, 5.0]]), torch.tensor([0, 1]))) == 1
