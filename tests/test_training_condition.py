"""Networks that are told how an image is degraded, trained: by one process, and by two that share the work.

In float64, where two differ from one by no more than the order of sums; test_training_ranks.py is in float32.
"""

import sys

import pytest
import torch

from bdg_fast.training import TrainConfig, Trainer
from bdg_fast.training.settings import build
from training_setup import in_float64, on_two_ranks, pictures, same_runs, settings, two_ranks

TERMS = {
    "generation": {"generation": 1.0},
    "bridging": {"generation": 1.0, "bridging": 0.1, "classification": 0.1},
    "restoration": {"reconstruction": 1.0, "frequency": 0.5, "negative": 0.1},
}


def run(output, parallel="ddp", until=None, **changes):
    values = settings(output, parallel=parallel, **changes)
    values["network"] = {"width": 16, "multipliers": [1], "condition": 8}
    values["ema"] = 0.5
    values["validation"] = {"every": 2, "crop": 16, "steps": 1}
    for name, stage in values["stages"].items():
        stage |= {"steps": 2, "lr": 5e-5, "batch": 8, "accumulate": 2, "losses": TERMS[name]}
    with in_float64():
        return Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run(until)


def rank_main(rank, folder):
    run(folder / "ddp")
    run(folder / "fsdp", "fsdp")
    run(folder / "resumed", "fsdp", until=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the same runs by one process and by two."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("condition")
    torch.set_num_threads(1)
    run(folder / "one")
    on_two_ranks(__file__, folder)
    run(folder / "resumed")
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "resumed"])
def test_two_processes_equal_one(folder, name):
    same_runs(folder / name, folder / "one", rel=1e-6, far=1e-12)  # what is logged is rounded to float32


if __name__ == "__main__":
    sys.exit(two_ranks(rank_main, sys.argv[1]))
