"""TensorBoard and Weights & Biases: optional, named where they are missing, and told the same as the folder."""

import importlib.util
import io
import itertools
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.training import TrainConfig, Trainer, trackers
from bdg_fast.training import trainer as training_loop
from bdg_fast.training.log import RunLog, read_log
from bdg_fast.training.settings import build
from training_setup import config, losses, pictures, settings, trainer

WANDB = '''
"""Stands for Weights & Biases: keeps what it is told."""
told = []
Image = lambda pixels: (pixels.dtype.name, pixels.shape)

def init(**options):
    told.append(options)
    return Run()

class Run:
    def define_metric(self, name, step_metric=None):
        told.append((name, step_metric))

    def log(self, values):
        told.append(values)

    def finish(self):
        told.append("finished")
'''


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A module of that name, in place of one that may be installed."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb")


@pytest.mark.parametrize(
    ("name", "setting", "extra"), [("tensorboard", True, "training"), ("wandb", "restoration", "wandb")]
)
def test_they_are_optional_and_named_where_they_are_asked_for(monkeypatch, tmp_path, name, setting, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    with pytest.raises(ImportError, match=rf"pip install 'bdg-fast\[{extra}\]', or log.{name}="):
        trainer(tmp_path / "run", log={"tensorboard": False, name: setting})
    assert not (tmp_path / "run").exists()
    RunLog(tmp_path, 0, config(tmp_path, log={}), quiet=True).close()


def test_a_folder_that_is_called_wandb_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / "tracker_of_this_test").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("tracker_of_this_test") is not None
    assert not trackers.installed("tracker_of_this_test")


def test_tensorboard_gets_numbers_and_pictures(monkeypatch, tmp_path):
    told = []

    class Writer:
        def __init__(self, folder, purge_step):
            told.append(("begin", purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def add_image(self, name, image, step):
            told.append((name, tuple(image.shape), step))

        def close(self):
            told.append(("end",))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    log = RunLog(tmp_path, 4, config(tmp_path, log={"tensorboard": True}), quiet=True)
    log.numbers(5, "bridging", {"loss": 0.5})
    log.picture(5, torch.zeros(3, 4, 6, dtype=torch.uint8))
    log.close()
    assert told == [("begin", 5), ("bridging/loss", 0.5, 5), ("samples", (3, 4, 6), 5), ("end",)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs TensorBoard")
def test_tensorboard_itself(tmp_path):
    log = RunLog(tmp_path, 0, config(tmp_path, log={"tensorboard": True}), quiet=True)
    log.numbers(1, "bridging", {"loss": 0.5})
    log.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_weights_and_biases_gets_the_numbers_of_the_log_in_one_run(wandb, tmp_path):
    run = tmp_path / "first"
    changes = {"log": {"every": 1, "tensorboard": False, "wandb": "restoration"}, "stages": {"steps": 2}}
    validation = {"every": 2, "crop": 16, "steps": 1, "pictures": 2}
    trainer(run, **changes, validation=validation).run(until=3)
    trainer(run, **changes, validation=validation).run(until=4)
    begun = [each for each in wandb.told if isinstance(each, dict) and "project" in each]
    assert len(begun) == 2 and begun[0] == begun[1]  # one run, by its id
    options = begun[0]
    assert (options["project"], options["name"], options["dir"]) == ("restoration", "first", str(run))
    assert options["resume"] == "allow" and options["config"]["seed"] == 3
    assert options["id"] == (run / "wandb-id").read_text().strip() and len(options["id"]) == 16
    assert wandb.told.count("finished") == 2 and ("*", "step") in wandb.told
    logged = [each for each in wandb.told if isinstance(each, dict) and "step" in each]
    shown = [each for each in logged if "samples" in each]
    assert shown == [{"step": 4, "samples": ("uint8", (2 * 16, 3 * 16, 3))}]
    curves = [{name: x for name, x in each.items() if not name.endswith("images_per_s")} for each in logged]
    expected = []
    for line in losses(run):
        step, stage = line.pop("step"), line.pop("stage")
        expected.append({"step": step, **{f"{stage}/{name}": value for name, value in line.items()}})
    again = [each for each in expected if each["step"] == 3]  # computed again after the checkpoint of step 2
    assert [each for each in curves if "samples" not in each] == [*expected[:3], *again, *expected[3:]]


RATES = {"bridging": [2.5e-4, 5e-4, 4e-4, 2e-4], "restoration": [1e-4, 2e-4, 3e-4]}
"""Up to the largest in warm-up; then by a cosine of 0, 60 and 120 degrees to 1e-4, or not at all."""
STAGES = {
    "bridging": {"coefficients": "bridging", "steps": 4, "warmup": 1, "lr": 5e-4, "lr_end": 1e-4},
    "restoration": {"coefficients": "restoration", "steps": 3, "warmup": 2, "lr": 3e-4, "schedule": "constant"},
}
TERMS = {
    "bridging": {"generation", "bridging", "classification", "accuracy"},
    "restoration": {"reconstruction", "bridging", "negative"},
}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs TensorBoard")
def test_a_run_tells_the_folder_and_both_trackers_the_same(wandb, monkeypatch, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = settings(
        tmp_path / "run",
        log={"every": 1, "tensorboard": True, "wandb": "restoration"},
        validation={"every": 100, "crop": 16, "steps": 1, "pictures": 2},  # and at the end of a stage
    )
    values["stages"] = {name: {"batch": 4, "crop": 16, **stage} for name, stage in STAGES.items()}
    clock = itertools.count(step=0.25)  # seconds of each step
    monkeypatch.setattr(training_loop, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run()

    lines, curves = read_log(tmp_path / "run"), {}
    for stage, terms in TERMS.items():
        *steps, validation = [line for line in lines if line["stage"] == stage]
        for line in steps:
            assert line.keys() == {"step", "stage", "loss", *terms, "gradient", "lr", "images_per_s"}
            assert line["images_per_s"] == 4 / 0.25 and 0 <= line.get("accuracy", 0) <= 1
        assert [line["lr"] for line in steps] == pytest.approx(RATES[stage])
        assert validation.keys() == {"step", "stage", "psnr", "ssim", "psnr_degraded"}
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 7]
    for line in lines:
        for name in line.keys() - {"step", "stage"}:
            curves.setdefault(f"{line['stage']}/{name}", []).append((line["step"], line[name]))

    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {  # in float32
        tag: [(step, torch.tensor(value).item()) for step, value in points] for tag, points in curves.items()
    }
    assert events.Tags()["images"] == ["samples"]
    shown = events.Images("samples")
    assert [each.step for each in shown] == [4, 7]
    for each in shown:
        pixels = np.asarray(Image.open(tmp_path / f"run/samples/step-{each.step:08d}.png"))
        assert pixels.shape == (2 * 16, 3 * 16, 3)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(each.encoded_image_string))), pixels)

    logged = [each for each in wandb.told if isinstance(each, dict) and "step" in each]
    assert [each for each in logged if "samples" not in each] == [
        {"step": line["step"], **{f"{line['stage']}/{name}": line[name] for name in line.keys() - {"step", "stage"}}}
        for line in lines
    ]
    assert [each for each in logged if "samples" in each] == [
        {"step": step, "samples": ("uint8", (2 * 16, 3 * 16, 3))} for step in (4, 7)
    ]


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_network_that_goes_away_does_not_end_the_run(wandb, monkeypatch, tmp_path, broken):
    calls = []

    def gone(*_):
        calls.append(1)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb.Run, broken, gone)
    changes = {"log": {"every": 1, "tensorboard": False, "wandb": "restoration"}, "stages": {"steps": 1}}
    with pytest.warns(UserWarning, match=r"WeightsAndBiases failed .* no route to host"):
        assert trainer(tmp_path / "run", **changes).run().finished
    assert len(calls) == 1 and len(losses(tmp_path / "run")) == 3
