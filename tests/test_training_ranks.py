"""Two processes equal one with the joined batch, validation included, and go on where one has stopped."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bdg_fast.models import Fingerprint
from bdg_fast.training import NonFiniteError, checkpoint
from bdg_fast.training.stages import StageModule
from training_setup import ended, forked, losses, trainer

VALIDATION = {"every": 2, "crop": 16, "steps": 1}
SMALL = {"validation": VALIDATION, "stages": {"steps": 2, "lr": 2e-4}}


def broken_on_the_second(self, *inputs):
    found = FORWARD(self, *inputs)
    if dist.is_initialized() and dist.get_rank() == 1 and inputs[-1] == 1:
        found["loss"] = found["loss"] * torch.nan
    return found


FORWARD = StageModule.forward


def rank_main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    trainer(folder / "two", **SMALL).run()
    trainer(folder / "resumed", **SMALL).run()
    StageModule.forward = broken_on_the_second
    try:
        trainer(folder / "broken").run()
    except NonFiniteError as error:
        (folder / f"told{rank}").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the same run by one process and by two, and of one that two have gone on with."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)
    trainer(folder / "one", **SMALL).run()
    trainer(folder / "resumed", **SMALL).run(until=3)
    done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["two", "resumed"])
def test_two_processes_equal_one_with_the_joined_batch(folder, name):
    one, two = losses(folder / "one"), losses(folder / name)
    assert len(one) == 6 + 2  # two stages are validated
    for expected, found in zip(one, two, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (pytest.approx(value, rel=1e-5, abs=1e-7) if isinstance(value, float) else value), key
    ends = [checkpoint.load(folder / run / "checkpoints")[0] for run in ("one", name)]
    assert ends[0] is not None and ends[1] is not None
    for key, expected in ends[0].parts.items():
        torch.testing.assert_close(ends[1].parts[key], expected, atol=1e-5, rtol=0, msg=key)


def test_all_processes_stop_where_one_has_a_loss_that_is_not_finite(folder):
    told = [(folder / f"told{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("step 2 of stage generation: loss, gradient not finite; on process 1: loss of the images")


if __name__ == "__main__":
    torch.set_num_threads(1)
    Fingerprint(2, [1], 8)(torch.zeros(2, 3, 16, 16))  # loads what is compiled, before there are several
    sys.exit(any([ended(child) for child in [forked(rank_main, rank, Path(sys.argv[1])) for rank in range(2)]]))
