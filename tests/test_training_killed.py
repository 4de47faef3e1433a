"""The command, killed amid a run on files that threads read ahead and validation restores: it goes on to the bit."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from bdg_fast.training import Trainer, load_config
from training_setup import last, losses, pictures, settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(tmp_path):
    """File of a run that does not end by itself, on pictures of two sizes, by three stages of which two are short."""
    (tmp_path / "photographs/more").mkdir(parents=True)
    for number, image in enumerate([*pictures(6).images, *pictures(5, size=19).images]):
        folder = tmp_path / "photographs" / ("more" if number % 2 else "")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    data = {"source": "folder", "root": str(tmp_path / "photographs"), "degradations": ["noise", "haze"]}
    values = settings(
        tmp_path / "run",
        data={**data, "held_out": 2, "workers": 2},
        validation={"every": 3, "crop": 16, "steps": 1},
        checkpoint={"every": 4},
    )
    # of a rate so large that the best network of validation is an early one, which a run must not forget
    values["stages"]["restoration"] |= {"steps": 100_000, "lr": 0.02}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(values))
    return file


def test_a_killed_command_goes_on_exactly(tmp_path, config):
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "bdg_fast.cli", "train", "--config", config]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.startswith("step 14 restoration: loss"):
                child.kill()
    assert child.returncode == -signal.SIGKILL
    saved = last(run).state["step"]
    assert saved >= 12 and saved % 4 == 0
    until = saved + 8
    Trainer(load_config(config), quiet=True).run(until)
    Trainer(load_config(config, [f"output={json.dumps(str(whole))}"]), quiet=True).run(until)
    assert losses(run) == losses(whole)
    assert {"psnr", "loss"} <= set().union(*losses(run, after=saved))
    found, expected = last(run), last(whole)
    assert found.state == expected.state and found.state["step"] == until
    for part in ("parts", "optimizer", "network"):
        mine, theirs = getattr(found, part), getattr(expected, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), part
