"""What the tests of training share: a tiny run on small images."""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from bdg_fast.models import Fingerprint
from bdg_fast.training import TrainConfig, Trainer, checkpoint, inputs, validate
from bdg_fast.training import trainer as training_loop
from bdg_fast.training.data import Pictures, clean_images, degraded_pair
from bdg_fast.training.log import read_log
from bdg_fast.training.settings import build
from bdg_fast.training.stages import Parts

STAGE = {"steps": 3, "batch": 4, "crop": 16, "warmup": 1, "lr": 1e-3}


def settings(output, **changes):
    """Of a run of three stages; `changes` replace settings, `stages` those of all stages."""
    stages = changes.pop("stages", {})
    values = {
        "output": str(output),
        "seed": 3,
        "device": "cpu",
        "network": {"width": 16, "multipliers": [1, 1]},
        "encoder": {"angles": 2, "scales": [1], "levels": 8, "width": 16, "base": 16, "projection": 8},
        "data": {"degradations": ["noise", "blur", "haze"], "held_out": 2},
        "stages": {
            name: {"coefficients": name, **STAGE, **stages} for name in ("generation", "bridging", "restoration")
        },
        "checkpoint": {"every": 2, "keep": 2},
        "validation": {"every": 0},
        "log": {"every": 1, "tensorboard": False},
    }
    return {**values, **changes}


def config(output, **changes) -> TrainConfig:
    return build(TrainConfig, settings(output, **changes))


def pictures(number=9, held_out=2, size=24):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(number, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1)
    return Pictures(list((images * 255).round().to(torch.uint8)), held_out)


def batches(source, count, batch, *, rank=0, world=1, start=0, crop=12, seed=5):
    """The next `count` of a source."""
    found = source.batches(batch=batch, crop=crop, rank=rank, world=world, start=start, seed=seed)
    return [next(found) for _ in range(count)]


def trainer(output, source=None, **changes):
    return Trainer(config(output, **changes), source=source or pictures(), quiet=True)


def losses(output, after=0):
    """Logged steps, without what depends on time."""
    return [
        {name: value for name, value in line.items() if name not in ("images_per_s", "unreadable")}
        for line in read_log(output)
        if line["step"] > after
    ]


def last(output):
    """The newest checkpoint of a run."""
    found, problems = checkpoint.load(output / "checkpoints")
    assert found is not None, problems
    return found


def same_runs(output, expected, rel=1e-5, far=2e-5):
    """Logged numbers and last checkpoints of two runs are equal but for rounding; `far` is of weights."""
    one, other = losses(expected), losses(output)
    assert len(one) == len(other) > 0
    for line, found in zip(one, other, strict=True):
        assert found.keys() == line.keys()
        for key, value in line.items():
            assert found[key] == (pytest.approx(value, rel=rel, abs=1e-7) if isinstance(value, float) else value), key
    ends = [checkpoint.load(folder / "checkpoints")[0] for folder in (expected, output)]
    assert ends[0] is not None and ends[1] is not None
    for name in ("parts", "optimizer", "network"):
        assert getattr(ends[0], name).keys() == getattr(ends[1], name).keys()
        for key, tensor in getattr(ends[0], name).items():
            # in float32 a tenth of a step: AdamW divides by gradients that rounding is much of where they are small
            most = min(far, 1e-5) if name == "optimizer" else far
            torch.testing.assert_close(getattr(ends[1], name)[key], tensor, atol=most, rtol=0, msg=key)


@contextlib.contextmanager
def in_float64():
    """Runs compute in float64, so that what is not rounding shows."""

    def pair(*arguments):
        found = degraded_pair(*arguments)
        return found._replace(clean=found.clean.double(), degraded=found.degraded.double())

    doubled = {"degraded_pair": pair, "clean_images": lambda *arguments: clean_images(*arguments).double()}
    with (
        mock.patch.multiple(inputs, **doubled),
        mock.patch.object(validate, "degraded_pair", pair),
        mock.patch.object(training_loop, "Parts", lambda *arguments: Parts(*arguments).double()),
    ):
        yield


def on_two_ranks(script, folder):
    """Run a test file as two processes: its `rank_main(rank, folder)`."""
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def two_ranks(rank_main, folder):
    """Both processes, joined by gloo; the exit code."""

    def main(rank):
        dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
        rank_main(rank, Path(folder))
        dist.destroy_process_group()

    import torch._dynamo  # FSDP and DDP do, for seconds: once for both

    torch.set_num_threads(1)
    Fingerprint(2, [1], 8)(torch.zeros(2, 3, 16, 16))  # loads what is compiled, before there are several
    return any([ended(child) for child in [forked(main, rank) for rank in range(2)]])


def killed(output, where):
    """Train in this process, which is killed in the midst of something: `where` is its name and when."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    what, _, when = where.partition(":")
    count = {"calls": 0}

    def at(call, instead):
        def counted(*arguments, **options):
            count["calls"] += 1
            return (instead if count["calls"] == int(when) else call)(*arguments, **options)

        return counted

    def half(path: Path, content: bytes):
        path.write_bytes(content[: len(content) // 2])
        die()

    if what == "step":
        torch.optim.AdamW.step = at(torch.optim.AdamW.step, die)
    elif what == "write":
        checkpoint._write = at(checkpoint._write, half)
    elif what == "pointer":  # the folder has its name, the pointer not yet
        os.rename = at(os.rename, lambda *names: (os.replace(*names), die()))
    trainer(output).run()


def forked(call, *arguments):
    """Number of a process that runs `call` and ends; importing and compiling once costs less."""
    child = os.fork()
    if child == 0:
        try:
            call(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":  # a process for each kind of death
    torch.set_num_threads(1)
    Fingerprint(2, [1], 8)(torch.zeros(2, 3, 16, 16))  # loads what is compiled, before there are several
    root, *kinds = sys.argv[1:]
    for kind in kinds:
        print(-ended(forked(killed, Path(root, kind), kind)))
