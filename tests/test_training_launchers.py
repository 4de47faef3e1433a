"""`accelerate launch`: what it sets for its processes, and what it was told that a run does not read."""

import json
import re

import pytest

from bdg_fast.cli import main
from bdg_fast.training.launchers import unread
from training_setup import config, settings

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
