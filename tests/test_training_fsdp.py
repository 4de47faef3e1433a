"""Two processes with a shard of all weights each equal one that has them whole, and go on with one another's runs."""

import functools
import sys

import pytest
import torch
import torch.distributed as dist

from bdg_fast.training import NonFiniteError, TrainConfig, Trainer
from bdg_fast.training.parallel import local
from bdg_fast.training.settings import build
from bdg_fast.training.stages import StageModule
from training_setup import losses, on_two_ranks, pictures, same_runs, settings, two_ranks

SMALL = {
    "stages": {"steps": 2, "lr": 2e-4, "batch": 8, "accumulate": 2, "losses": {"generation": 1.0}},
    "validation": {"every": 2, "crop": 16, "steps": 1},
    "checkpoint": {"every": 3},
    "optimizer": {"clip": 0.25},  # in nearly all steps
    "network": {"width": 16, "multipliers": [1], "heads": "both", "shared_encoder": True},
}
SHORT = {"until": 1, "dtype": "bfloat16"}
FORWARD = StageModule.forward
SEEN: dict[int, torch.Tensor] = {}


def run(output, parallel="fsdp", until=None, **changes):
    values = settings(output, parallel=parallel, **(SMALL | changes))
    del values["stages"]["generation"]
    return Trainer(build(TrainConfig, values), source=pictures(), quiet=True).run(until)


def share_of_weights(folder):
    """What this process has of the weights of the network's levels, between their evaluations."""
    shares = []

    def counted(self, *inputs):
        weights = list(self.parts.unet.decoder.parameters())
        shares.append(sum(local(p).numel() for p in weights) / sum(p.numel() for p in weights))
        return FORWARD(self, *inputs)

    StageModule.forward = counted
    run(folder / "bfloat16", **SHORT)
    StageModule.forward = FORWARD
    return shares


def broken_on_the_second(self, *inputs):
    """The second step's gradient of what the second process alone computes."""
    if dist.get_rank() == 1 and inputs[-1] == 1:

        def broken(gradient):
            hook.remove()  # the weight stays the same one
            last = torch.arange(len(gradient)) == len(gradient) - 1  # in the second process's shard
            return torch.where(last[:, None, None, None], torch.inf, gradient)

        hook = self.parts.unet.head.weight.register_hook(broken)
    return FORWARD(self, *inputs)


def unread_in_the_second_step(self, *inputs):
    """The second step's loss does not reach the classifier; its weights as each step finds them."""
    step = inputs[4]
    SEEN.setdefault(step, self.parts.classifier.layers[0].weight.detach().clone())
    self._classified = functools.partial(cut_off if step == 1 else StageModule._classified, self)
    return FORWARD(self, *inputs)


def cut_off(self, features, classes):
    loss, accuracy = StageModule._classified(self, features, classes)
    return loss.detach(), accuracy


def rank_main(rank, folder):
    run(folder / "fsdp")
    run(folder / "to fsdp")
    run(folder / "from fsdp", until=3)
    assert all(0.4 < share < 0.6 for share in share_of_weights(folder))
    StageModule.forward = unread_in_the_second_step
    run(folder / "unread", until=3, optimizer={"weight_decay": 0})
    assert not torch.equal(SEEN[0], SEEN[1]) and torch.equal(SEEN[1], SEEN[2])  # by an old gradient it would move
    StageModule.forward = FORWARD
    torch.compile = functools.partial(torch.compile, backend="eager")
    for parallel in ("fsdp", "ddp"):
        run(folder / f"compiled {parallel}", parallel, until=1, compile=True)
    StageModule.forward = broken_on_the_second
    assert run(folder / "skipped", until=2, non_finite="skip").skipped == 1
    try:
        run(folder / "broken")
    except NonFiniteError as error:
        (folder / f"told{rank}").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the same runs by one process and by two with shards."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("fsdp")
    torch.set_num_threads(1)
    run(folder / "one")  # nothing to share: as if it was not asked for
    run(folder / "one in bfloat16", "ddp", **SHORT)
    run(folder / "to fsdp", "ddp", until=3)
    on_two_ranks(__file__, folder)
    run(folder / "from fsdp", "ddp")
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["fsdp", "to fsdp", "from fsdp"])
def test_shards_equal_whole_weights(folder, name):
    same_runs(folder / name, folder / "one")


def test_bfloat16_is_that_of_whole_weights(folder):
    expected, found = (losses(folder / name) for name in ("one in bfloat16", "bfloat16"))
    for one, two in zip(expected, found, strict=True):
        assert two.get("loss") == pytest.approx(one.get("loss"), rel=0.01)


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_compiled_networks_of_several_processes_have_the_same_losses(folder, parallel):
    (found,), (expected, *_) = losses(folder / f"compiled {parallel}"), losses(folder / "one")
    assert found.pop("stage") == expected.pop("stage")
    assert found == pytest.approx(expected, rel=1e-4)


def test_all_processes_stop_for_a_gradient_that_one_has_broken(folder):
    told = [(folder / f"told{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("step 2 of stage bridging: gradient not finite; of unet.head.weight, with the images")


if __name__ == "__main__":
    sys.exit(two_ranks(rank_main, sys.argv[1]))
