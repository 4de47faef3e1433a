"""Two processes equal one with the joined batch, validation included, stop together, and go on with one's run."""

import signal
import sys

import pytest
import torch
import torch.distributed as dist

from bdg_fast.training import NonFiniteError, checkpoint
from bdg_fast.training.signals import StopRequest
from bdg_fast.training.stages import StageModule
from training_setup import on_two_ranks, same_runs, trainer, two_ranks

VALIDATION = {"every": 2, "crop": 16, "steps": 1}
SMALL = {"validation": VALIDATION, "stages": {"steps": 2, "lr": 2e-4}}
FORWARD = StageModule.forward


def broken_on_the_second(self, *inputs):
    found = FORWARD(self, *inputs)
    if dist.is_initialized() and dist.get_rank() == 1 and inputs[-1] == 1:
        found["loss"] = found["loss"] * torch.nan
    return found


def stopped_by_the_second(folder):
    """Two processes train, of which the second alone is asked to stop, in the third step."""
    stop = StopRequest()

    def asked(self, *inputs):
        if dist.get_rank() == 1 and inputs[-1] == 2:
            stop.ask(signal.SIGTERM)
        return FORWARD(self, *inputs)

    StageModule.forward = asked
    result = trainer(folder, **SMALL, checkpoint={"every": 100}).run(stop=stop)
    StageModule.forward = FORWARD
    assert (result.step, result.finished, stop.agreed) == (3, False, signal.SIGTERM)
    assert checkpoint.read(folder / "checkpoints/step-00000003").state["step"] == 3  # before any process leaves
    assert stop.asked == (signal.SIGTERM if dist.get_rank() == 1 else 0)


def rank_main(rank, folder):
    stopped_by_the_second(folder / "two")
    trainer(folder / "two", **SMALL).run()
    trainer(folder / "resumed", **SMALL).run()
    StageModule.forward = broken_on_the_second
    try:
        trainer(folder / "broken").run()
    except NonFiniteError as error:
        (folder / f"told{rank}").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the same run by one process and by two, and of one that two have gone on with."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)
    trainer(folder / "one", **SMALL).run()
    trainer(folder / "resumed", **SMALL).run(until=3)
    on_two_ranks(__file__, folder)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["two", "resumed"])
def test_two_processes_equal_one_with_the_joined_batch(folder, name):
    same_runs(folder / name, folder / "one")


def test_all_processes_stop_where_one_has_a_loss_that_is_not_finite(folder):
    told = [(folder / f"told{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("step 2 of stage generation: loss, gradient not finite; on process 1: loss of the images")


if __name__ == "__main__":
    sys.exit(two_ranks(rank_main, sys.argv[1]))
