"""What a step reads is made while the step before is computed, and nothing else changes."""

import pytest
import torch

from bdg_fast.training.inputs import Inputs
from training_setup import config, last, losses, pictures, trainer


class Counting:
    """A source that tells how often it was asked, and fails where told."""

    def __init__(self, fails_at=None):
        self.source, self.fails_at, self.taken = pictures(), fails_at, []
        self.classes = ()

    def batches(self, **given):
        for number, batch in enumerate(self.source.batches(**given), given["start"]):
            if number == self.fails_at:
                raise OSError("the disk is gone")
            self.taken.append(number)
            yield batch

    def held_out(self, crop):
        return self.source.held_out(crop)

    def name(self, number):
        return self.source.name(number)


def test_nothing_is_read_beyond_a_stage_or_where_a_run_ends(tmp_path):
    source = Counting()
    trainer(tmp_path / "run", source).run(until=5)
    assert source.taken == [0, 1, 2, 0, 1]  # three steps, and two of the next stage
    trainer(tmp_path / "run", source).run()
    assert source.taken[5:] == [1, 2, 0, 1, 2]  # from the checkpoint of step 4


def test_the_next_step_is_begun_before_the_loss_is_looked_at(tmp_path, monkeypatch):
    told = []
    begin, take = Inputs.begin, Inputs.take
    monkeypatch.setattr(Inputs, "begin", lambda self, step: told.append(("begin", step)) or begin(self, step))
    monkeypatch.setattr(Inputs, "take", lambda self, step: told.append(("take", step)) or take(self, step))
    trainer(tmp_path / "run", stages={"accumulate": 2}).run(until=3)
    parts = [("take", 0), ("take", 0), ("begin", 1), ("take", 1), ("take", 1), ("begin", 2), ("take", 2), ("take", 2)]
    assert told == parts


def test_a_batch_that_cannot_be_read_costs_the_step_before_it_nothing(tmp_path):
    output = tmp_path / "run"
    with pytest.raises(OSError, match="the disk is gone"):
        trainer(output, Counting(fails_at=2), checkpoint={"every": 1}).run()
    assert len(losses(output)) == 2 and last(output).state["step"] == 2
    trainer(output, checkpoint={"every": 1}).run()
    trainer(tmp_path / "whole", checkpoint={"every": 1}).run()
    assert losses(output) == losses(tmp_path / "whole")


def test_what_is_begun_is_what_the_step_would_make(tmp_path):
    settings = config(tmp_path)
    stage = settings.stages["bridging"]

    def inputs():
        batches = pictures().batches(batch=4, crop=16, rank=0, world=1, start=0, seed=1)
        return Inputs(settings, stage, pictures(), batches, None, torch.device("cpu"))

    early, late = inputs(), inputs()
    for step in (0, 1):
        early.begin(step)
        one, other = early.take(step), late.take(step)
        assert all(torch.equal(a, b) for a, b in zip(one.pair, other.pair, strict=True))
        assert torch.equal(one.seeds, other.seeds) and one.numbers == other.numbers
