"""A run that was stopped at any moment goes on to the same numbers to the bit; checkpoints are whole or not there."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bdg_fast import UNet
from bdg_fast.models.checkpoints import CheckpointError
from bdg_fast.training import Trainer, checkpoint
from bdg_fast.training.trainer import _Run
from training_setup import config, losses, pictures, trainer

TOTAL = 9  # steps
KILLED = {"step:6": 4, "write:6": 2, "pointer:2": 3}
"""In the midst of a step, of a file, or between a checkpoint and its pointer: which one, and the step saved last."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_thread):
    """Folder of a run that was never stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert trainer(output).run() == (TOTAL, True, 0, None, 0)
    return output


def same_ends(output, whole):
    """Every logged number and every tensor of the last checkpoint are equal to the bit."""
    assert losses(output) == losses(whole)
    found, expected = (checkpoint.read(folder / "checkpoints" / f"step-{TOTAL:08d}") for folder in (output, whole))
    assert found.state == expected.state
    for name in ("parts", "optimizer", "network"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name


def test_a_run_repeats(whole, tmp_path):
    trainer(tmp_path / "run").run()
    same_ends(tmp_path / "run", whole)


@pytest.mark.parametrize("until", [1, 5])
def test_a_stopped_run_goes_on_exactly(whole, tmp_path, until):
    assert trainer(tmp_path / "run").run(until).finished is False
    assert trainer(tmp_path / "run").run().finished is True
    same_ends(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder of runs that were killed, named by where."""
    root, setup = tmp_path_factory.mktemp("killed"), Path(__file__).with_name("training_setup.py")
    done = subprocess.run([sys.executable, setup, root, *KILLED], capture_output=True, text=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(KILLED), done.stderr
    return root


@pytest.mark.parametrize("where", KILLED)
def test_a_killed_run_goes_on_exactly(whole, killed, where):
    output = killed / where
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert any(name.startswith(".writing") for name in left) == where.startswith("write")
    saved, problems = checkpoint.load(output / "checkpoints")
    # saved after steps 2, 3 and 4; the sixth file is the third of step 3, and the second renaming is its folder's
    assert saved is not None and saved.state["step"] == KILLED[where]
    assert not problems
    trainer(output).run()
    same_ends(output, whole)
    assert not [path for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_finished_run_stays_finished(whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*") if path.is_file()}
    assert trainer(whole).run() == (TOTAL, True, 0, None, 0)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_averaged_network_is_an_ordinary_one(whole):
    folder = whole / "checkpoints" / (whole / "checkpoints" / "latest").read_text().strip() / "network"
    for path in (folder, whole / "network"):
        unet = UNet.from_pretrained(path)
        assert unet.trained and unet.config == config(whole).network


def test_checkpoints_are_pruned_and_the_best_stays(tmp_path):
    unet = UNet(config(tmp_path).network)
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, {"step": step}, {"a": torch.ones(2)}, {}, unet)
        checkpoint.prune(tmp_path, 2, best=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert (tmp_path / "latest").read_text() == "step-00000005\n"


def saved_twice(root):
    unet = UNet(config(root).network)
    for step in (1, 2):
        checkpoint.save(root, {"step": step}, {"a": torch.full((2,), float(step))}, {}, unet)
    return root / "step-00000002"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / "state.json").unlink(), r"state.json is missing"),
        (lambda folder: (folder / "state.json").write_text("{"), r"state.json is missing or damaged"),
        (lambda folder: (folder / "parts.safetensors").unlink(), r"parts.safetensors is missing"),
        (lambda folder: flip(folder / "parts.safetensors"), r"parts.safetensors is not what was written"),
        (lambda folder: (folder / "network/config.json").write_text(""), r"config.json is not what was written"),
    ],
    ids=["no state", "half a state", "no weights", "one bit", "emptied"],
)
def test_what_is_damaged_is_passed_over_by_name(tmp_path, damage, match):
    folder = saved_twice(tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.read(folder)
    saved, problems = checkpoint.load(tmp_path)
    assert saved is not None and saved.state == {"step": 1} and len(problems) == 1
    assert saved.parts["a"].tolist() == [1, 1]


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(tmp_path):
    trainer(tmp_path / "run").run(until=2)
    (tmp_path / "run/checkpoints/step-00000002/state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        trainer(tmp_path / "run").run()


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_last_and_is_set_aside(whole, tmp_path, capsys):
    output = tmp_path / "run"
    damaged = output / "checkpoints/step-00000006/optimizer.safetensors"
    for copies in (1, 2):
        trainer(output).run(until=6)
        flip(damaged)
        Trainer(config(output), source=pictures()).run(until=5)
        assert f"passed over: {damaged} is not what was written" in capsys.readouterr().out
        assert len(list(output.glob("checkpoints/damaged-step-00000006*/optimizer.safetensors"))) == copies
    trainer(output).run()
    same_ends(output, whole)


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(whole, tmp_path, monkeypatch):
    output = tmp_path / "run"
    trainer(output).run(until=6)
    newest, read = output / "checkpoints/step-00000006", Path.read_text

    def unsteady(path, *args, **kwargs):
        if path == newest / "state.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", unsteady)
        with pytest.raises(OSError, match=r"of step 6 below .*cannot be read now, and may be whole: Input/output"):
            trainer(output).run()
    assert newest.is_dir()
    trainer(output).run()
    same_ends(output, whole)


def test_a_checkpoint_of_another_version_is_not_passed_over(tmp_path):
    folder = saved_twice(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(CheckpointError, match=r"step-00000002 has format 2; this version reads 1"):
        checkpoint.load(tmp_path)
    assert folder.is_dir()


@pytest.mark.parametrize("file", range(1, 5))
def test_a_full_disk_leaves_the_old_checkpoint_whole(monkeypatch, tmp_path, file):
    folder = saved_twice(tmp_path)
    write, calls = checkpoint._write, []

    def full(path, content):
        calls.append(path)
        if len(calls) == file:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(
        OSError, match=r"checkpoint of step 3 not written .*No space left.*of step [23] is whole"
    ) as told:
        checkpoint.save(tmp_path, {"step": 3}, {"a": torch.ones(2)}, {}, UNet(config(tmp_path).network))
    assert told.value.errno == errno.ENOSPC
    assert checkpoint.read(folder).state == {"step": 2}
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    saved, problems = checkpoint.load(tmp_path)
    assert saved is not None and not problems


def test_a_full_disk_in_a_run_costs_nothing_that_was_saved(monkeypatch, whole, tmp_path):
    output = tmp_path / "run"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer(output).run(until=5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(OSError, match=r"checkpoint of step 6 not written.*step 4 is whole"):
            trainer(output).run()
    trainer(output).run()
    same_ends(output, whole)


def test_changed_settings_are_refused_by_name(tmp_path):
    trainer(tmp_path / "run").run(until=1)
    for change in ({"seed": 4}, {"stages": {"lr": 1e-4}}, {"ema": 0.5}):
        with pytest.raises(ValueError, match=rf"{'lr' if 'stages' in change else next(iter(change))}.* differ"):
            trainer(tmp_path / "run", **change)
    trainer(tmp_path / "run", checkpoint={"every": 1}, validation={"every": 7, "pictures": 1})  # how often is free
    changed = config(tmp_path / "run", ema=0.5)
    Trainer(changed, source=pictures(), quiet=True, allow_changes=True)


def test_other_images_to_train_on_are_refused(tmp_path):
    output, more = tmp_path / "run", pictures(number=10)
    trainer(output).run(until=2)
    with pytest.raises(ValueError, match=r"was trained on 7 images, and 8 are there: .* or allow changes"):
        trainer(output, source=more).run()
    assert Trainer(config(output), source=more, quiet=True, allow_changes=True).run(until=4).step == 4
    assert trainer(output, source=more).run(until=5).step == 5


def test_a_source_that_is_a_sequence_tells_no_count(tmp_path):
    class Listed(list):
        def __getattr__(self, name):
            return getattr(pictures(), name)

    assert trainer(tmp_path / "run", Listed([1])).run(until=2).step == 2


def test_scores_of_other_images_are_not_compared(tmp_path):
    output = tmp_path / "run"
    Image.new("RGB", (20, 20)).save(tmp_path / "other.png")
    given = {"every": 1, "crop": 16}
    assert trainer(output, validation=given).run(until=4).best is not None
    for change in ({"root": str(tmp_path)}, {"crop": 20}, {"steps": 1}, {"images": 2}):
        with pytest.raises(ValueError, match=rf"validation\.{next(iter(change))} differ"):
            trainer(output, validation={**given, **change})
    changed = config(output, validation={**given, "crop": 20})
    assert Trainer(changed, source=pictures(), quiet=True, allow_changes=True).run(until=4).best is None


def test_the_log_is_cut_back_to_where_a_run_goes_on(tmp_path):
    output = tmp_path / "run"
    trainer(output).run(until=2)
    with open(output / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "stage": "generation", "loss": 0.0}) + '\n{"step": 4, "sta')
    trainer(output).run(until=3)
    assert [line["step"] for line in losses(output)] == [1, 2, 3]


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    told = []

    def step(self, now):
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with pytest.raises(RuntimeError, match=r"another process trains in .*run: stop it first"):
            trainer(tmp_path / "run").run()
        told.append({path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before)
        return STEP(self, now)

    STEP = _Run._step
    monkeypatch.setattr(_Run, "_step", step)
    assert trainer(tmp_path / "run").run(until=3).step == 3
    assert told == [True] * 3
    assert not list((tmp_path / "run").glob(".*"))
