"""Training where only a GPU can show it: bfloat16, `torch.compile`, one launch of the optimizer, and going on."""

from itertools import islice

import pytest
import torch

from bdg_fast import UNet
from bdg_fast.training import checkpoint
from bdg_fast.training.prefetch import prefetched
from training_setup import losses, pictures, trainer

pytestmark = pytest.mark.gpu

FAST = {"dtype": "bfloat16", "compile": True}


@pytest.mark.parametrize("fast", [{}, {"dtype": "bfloat16"}, FAST], ids=["float32", "bfloat16", "compiled"])
def test_losses_are_near_those_of_the_cpu(tmp_path, fast):
    trainer(tmp_path / "cpu").run()
    trainer(tmp_path / "gpu", device="cuda", **fast).run()
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], rel=0.1 if fast else 0.02)
    assert UNet.from_pretrained(tmp_path / "gpu/network").trained


def test_a_stopped_run_goes_on_with_all_moments_on_the_device(tmp_path):
    run = tmp_path / "run"
    trainer(run, device="cuda").run(until=5)
    trainer(run, device="cuda").run()
    trainer(tmp_path / "whole", device="cuda").run()
    found, expected = (checkpoint.load(folder / "checkpoints")[0] for folder in (run, tmp_path / "whole"))
    assert found is not None and expected is not None and found.optimizer.keys() == expected.optimizer.keys()
    assert [line["loss"] for line in losses(run)] == pytest.approx(
        [line["loss"] for line in losses(tmp_path / "whole")], rel=1e-3
    )


@pytest.mark.parametrize("degraded", [False, True])
def test_batches_that_are_copied_ahead_are_those_of_the_cpu(degraded):
    """While the device is busy, and with memory that is used again."""

    def source():
        for batch in islice(pictures().batches(batch=64, crop=16, rank=0, world=1, start=0, seed=0), 12):
            yield batch._replace(degraded=255 - batch.clean) if degraded else batch

    busy = torch.randn(2048, 2048, device="cuda")
    for found, expected in zip(prefetched(source(), torch.device("cuda")), source(), strict=True):
        busy = busy @ busy.softmax(1)
        assert found.clean.device.type == "cuda" and found.seeds.device.type == "cpu"
        assert torch.equal(found.clean.cpu(), expected.clean)
        assert found.degraded is expected.degraded is None or torch.equal(found.degraded.cpu(), expected.degraded)


def test_a_cpu_goes_on_with_a_gpu_s_run(tmp_path):
    trainer(tmp_path, device="cuda").run(until=5)
    assert trainer(tmp_path, device="cpu").run().finished


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_validation_on_the_device(tmp_path, dtype):
    result = trainer(tmp_path, device="cuda", dtype=dtype, validation={"every": 3, "crop": 16}).run()
    assert result.best is not None and torch.isfinite(torch.tensor(result.best))
