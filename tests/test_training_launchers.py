"""`torchrun` and `accelerate launch`: their processes train as one does, and what a run does not read is told."""

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from bdg_fast.cli import main
from bdg_fast.training.launchers import unread
from training_setup import config, last, pictures, same_runs, settings

PLAIN = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
TWO = {**PLAIN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "changes", "told"),
    [
        ({}, {}, None),
        (PLAIN, {}, None),
        (TWO, {}, None),
        ({"MASTER_ADDR": "host"}, {}, None),  # no launcher's
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "bf16"}, {"dtype": "bfloat16"}, None),
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "mixed_precision=bf16 .* dtype=float32"),
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "fp16"}, {"dtype": "bfloat16"}, "=fp16 .* dtype=bfloat16"),
        ({**TWO, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, "dynamo_backend=inductor .* compile=false"),
        ({**TWO, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {"compile": True}, None),
        ({**TWO, "ACCELERATE_USE_FSDP": "true"}, {}, "use_fsdp .* parallel=ddp"),
        ({**TWO, "ACCELERATE_USE_FSDP": "true"}, {"parallel": "fsdp"}, None),
        ({**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}, {}, "use_deepspeed .* parallel=ddp"),
        ({**PLAIN, "MASTER_ADDR": "127.0.0.1"}, {}, "accelerate started one process: with --multi_gpu"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_told(tmp_path, environment, changes, told):
    found = unread(environment, config(tmp_path, **changes))
    assert len(found) == (told is not None)
    assert told is None or re.search(told, found[0])


def test_the_command_tells_and_trains(monkeypatch, tmp_path, capsys):
    """As one of one process, with the environment that the launcher makes for it."""
    for name, value in {**PLAIN, "ACCELERATE_MIXED_PRECISION": "bf16"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings(tmp_path / "run", stages={"steps": 1})))
    assert main(["train", "--config", str(file)]) == 0
    found = capsys.readouterr()
    assert "bdg-fast: mixed_precision=bf16 of accelerate is not read" in found.err
    assert "3 steps" in found.out


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"),
}
"""On any free port; `--multi_gpu` has it start two, on CPUs too."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory, one_thread):
    """Settings of a run on files, in a folder where one process has trained by them."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "photographs").mkdir()
    for number, image in enumerate(pictures(6).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"photographs/{number}.png")
    data = {"source": "folder", "root": str(folder / "photographs"), "degradations": ["noise", "haze"], "workers": 1}
    values = settings("unset", data=data, stages={"steps": 1, "lr": 2e-4})
    (folder / "run.json").write_text(json.dumps(values))
    assert main(["train", "--config", str(folder / "run.json"), f"output={folder / 'run'}"]) == 0
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_of_a_launcher_train_as_one_does(alone, tmp_path, launcher):
    module, *options = LAUNCHERS[launcher]
    pytest.importorskip(module.partition(".")[0])
    command = [sys.executable, "-m", module, *options, "-m", "bdg_fast.cli", "train", "--config", alone / "run.json"]
    changes = [f"output={tmp_path / 'run'}", "device=cpu"]
    # nothing that somebody has set for launchers: accelerate has a file of settings in that home
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([*command, *changes], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps; bdg-fast restore") == 1  # one of the two tells
    assert last(tmp_path / "run").state["world"] == 2
    same_runs(tmp_path / "run", alone / "run")
