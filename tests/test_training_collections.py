"""Data sets of files as sources of a training run."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data.datasets import ImageFolder, PairedFolder, SampleError
from bdg_fast.data.degrade import CDD11
from bdg_fast.data.shards import ShardFolder, write_shards
from bdg_fast.training import TrainConfig, Trainer
from bdg_fast.training.config import Data
from bdg_fast.training.data import Collection, open_source
from bdg_fast.training.log import read_log
from bdg_fast.training.settings import build
from training_setup import config, last, settings


@pytest.fixture
def pairs(tmp_path):
    """Two kinds of degradation with six images each, of a gray that tells which."""
    for place, kind in enumerate(("haze", "rain")):
        for number in range(6):
            for folder, gray in (("target", 20 * number), ("input", 20 * number + 10 + place)):
                (tmp_path / kind / folder).mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(np.full((20, 24, 3), gray, np.uint8))
                image.save(tmp_path / kind / folder / f"{number}.png")
    return tmp_path


def taken(source, count, **options):
    found = source.batches(**{"batch": 2, "crop": 12, "rank": 0, "world": 1, "start": 0, "seed": 3, **options})
    batches = [next(found) for _ in range(count)]
    found.close()
    return batches


def test_pairs_bring_their_classes(pairs):
    source = open_source(Data(source="paired", root=str(pairs), held_out=4))
    assert source.classes == ("haze", "rain")
    held = source.held_out(12)
    assert held.clean.shape == (4, 3, 12, 12) and sorted(held.kinds.tolist()) == [0, 0, 1, 1]
    epoch = taken(source, 4)
    for batch in (*epoch, held):
        assert torch.equal(batch.degraded[:, 0, 0, 0].long(), batch.clean[:, 0, 0, 0].long() + 10 + batch.kinds)
    seen = [(int(k), int(c)) for batch in epoch for k, c in zip(batch.kinds, batch.clean[:, 0, 0, 0], strict=True)]
    apart = {(int(k), int(c)) for k, c in zip(held.kinds, held.clean[:, 0, 0, 0], strict=True)}
    assert len(set(seen)) == 8 and not apart & set(seen)
    assert f"{seen[0][1] // 20}.png" in source.name(int(epoch[0].numbers[0]))


def test_a_held_out_scene_is_not_trained_on_under_another_degradation(tmp_path):
    """CDD-11 has eleven degraded images of each clean one."""
    for folder in ("clear", *(kind.replace("lowlight", "low").replace("+", "_") for kind in CDD11)):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(np.full((12, 12, 3), 20 * number, np.uint8))
            image.save(tmp_path / "train" / folder / f"{number}.png")
    source = open_source(Data(source="cdd11", root=str(tmp_path), held_out=2))
    held = set(source.held_out(12).clean[:, 0, 0, 0].tolist())
    seen = torch.cat([batch.clean[:, 0, 0, 0] for batch in taken(source, 1, batch=11 * 3)])
    assert len(held) == 2 and seen.bincount().tolist().count(11) == 3
    assert not held & set(seen.tolist())
    with pytest.raises(ValueError, match=r"held_out must leave an image .* got 5 with the clean files of all"):
        open_source(Data(source="cdd11", root=str(tmp_path), held_out=5))


def test_held_out_images_are_the_middles_of_those_that_can_be_read(tmp_path):
    for number in range(4):
        pixels = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20) * 160
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    source = open_source(Data(source="folder", root=str(tmp_path), held_out=2))
    middle = np.rint(pixels[6:14, 6:14] / 257)
    held = source.held_out(8)
    assert [np.array_equal(one[0], middle) for one in held.clean] == [True, True]
    assert held.seeds.tolist() == held.numbers.tolist() == [0, 2]
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"0\.png cannot be read and is left out"):
        assert source.held_out(8).numbers.tolist() == [2]
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning), pytest.raises(SampleError, match=r"2\.png: cannot identify"):
        source.held_out(8)


def test_pairs_of_an_unknown_kind_are_not_classified(pairs, tmp_path):
    alone = {"source": "paired", "root": str(pairs / "haze"), "held_out": 0}
    changes = {"data": alone, "validation": {"every": 0}}
    with pytest.raises(ValueError, match=r"^stages.bridging.losses.classification must be 0: the images have one"):
        Trainer(config(tmp_path / "run", **changes))
    run = config(tmp_path / "run", stages={"losses": {"classification": 0}}, **changes)
    assert Trainer(run, quiet=True).run().finished
    write_shards(PairedFolder(pairs / "haze" / "input", pairs / "haze" / "target"), tmp_path / "shards")
    shards = {"source": "shards", "root": str(tmp_path / "shards"), "held_out": 0, "degradations": ["haze", "rain"]}
    with pytest.raises(ValueError, match=r"losses.classification must be 0: of image \d+ nobody knows"):
        Trainer(config(tmp_path / "other", data=shards), quiet=True).run()


def test_a_stage_cannot_choose_among_degradations_that_were_made_before(pairs, tmp_path):
    data = {"source": "paired", "root": str(pairs), "held_out": 0, "degradations": ["haze", "rain"]}
    for given in ({"degradations": ["rain"]}, {"draws": {"rain": 2}}, {"mild": 2}, {"tone": 0.2}):
        stages = {"bridging": {"coefficients": "bridging", "steps": 1, **given}}
        run = build(TrainConfig, {**settings(tmp_path / "run", data=data), "stages": stages})
        told = rf"^stages.bridging.{next(iter(given))} must not be given: .* degraded already"
        with pytest.raises(ValueError, match=told):
            Trainer(run)


def test_ranks_share_out_a_step_and_runs_resume(pairs):
    source = open_source(Data(source="paired", root=str(pairs), held_out=0))
    whole = taken(source, 3, batch=4)
    ranks = [taken(source, 3, rank=rank, world=2) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert sorted(torch.cat([part.seeds for part in parts]).tolist()) == sorted(one.seeds.tolist())
    assert torch.equal(taken(source, 1, batch=4, start=2)[0].clean, whole[2].clean)


def test_files_by_pattern_are_never_read(pairs):
    folder = pairs / "haze" / "target"
    source = open_source(Data(source="folder", root=str(folder), exclude=("[0-2].png", "5*"), held_out=1))
    read = {source.name(number) for batch in taken(source, 4) for number in batch.numbers.tolist()}
    held = {source.name(number) for number in source.held_out(12).numbers.tolist()}
    assert {name[-5:] for name in read | held} == {"3.png", "4.png"} and not read & held
    with pytest.raises(ValueError, match=r"data.exclude leaves no image of .*target"):
        open_source(Data(source="folder", root=str(folder), exclude=("*",)))


def test_what_cannot_be_read_is_named_once_and_replaced(pairs):
    (pairs / "rain" / "input" / "3.png").write_bytes(b"no picture")
    source = open_source(Data(source="paired", root=str(pairs), held_out=0))
    with pytest.warns(UserWarning, match=r"3\.png cannot be read and is left out") as told:
        assert len(taken(source, 12)) == 12  # two epochs
    assert len(told) == 1 and source.unreadable >= 2


def test_a_run_tells_how_many_reads_failed(pairs, tmp_path, capsys):
    (pairs / "rain" / "input" / "3.png").write_bytes(b"no picture")
    given = settings(tmp_path / "run", data={"source": "paired", "root": str(pairs), "held_out": 0, "workers": 1})
    with pytest.warns(UserWarning, match=r"3\.png cannot be read and is left out"):
        result = Trainer(build(TrainConfig, given), quiet=True).run()
    assert result.unreadable >= 1
    assert read_log(tmp_path / "run")[-1]["unreadable"] == result.unreadable


def test_a_stage_does_not_end_for_what_another_could_not_read(tmp_path):
    """Of a stream only what was taken tells how many images there are."""
    for number in range(300):
        Image.new("L", (8, 8), number % 256).save(tmp_path / f"{number:03d}.png")
    write_shards(ImageFolder(tmp_path), tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.tar")
    content = bytearray(shard.read_bytes())
    for number, found in enumerate(list(re.finditer(rb"\x89PNG", content))):
        content[found.start()] ^= 255 * (number % 25 == 0)
    shard.write_bytes(content)
    source = open_source(Data(source="shards", root=str(tmp_path / "shards"), held_out=0))
    with pytest.warns(UserWarning, match="cannot be read and is left out"):
        taken(source, 75, batch=4)
        once = source.unreadable
        taken(source, 20, batch=4)
    assert once == 12 and source.unreadable > once


def test_a_factor_of_enlargement_chooses_the_pairs(tmp_path):
    for scale in (1, 2):
        folder = tmp_path / ("DIV2K_train_HR" if scale == 1 else "DIV2K_train_LR_bicubic/X2")
        folder.mkdir(parents=True)
        for number in range(3):
            name = f"{number:04d}.png" if scale == 1 else f"{number:04d}x2.png"
            Image.new("RGB", (32 // scale, 32 // scale), (number, 0, 0)).save(folder / name)
    alone, pairs = (
        open_source(Data(source="div2k", root=str(tmp_path), factor=factor, held_out=0)) for factor in (None, 2)
    )
    assert alone.classes == () and taken(alone, 1)[0].degraded is None
    assert pairs.classes == ("x2",) and taken(pairs, 1)[0].degraded is not None


def test_shards_are_gone_on_with_by_as_many_processes_alone(pairs, tmp_path, monkeypatch):
    write_shards(pairs / "haze" / "target", tmp_path / "shards", per_shard=1)
    shards = {"source": "shards", "root": str(tmp_path / "shards"), "held_out": 0, "degradations": ["haze", "rain"]}
    run = config(tmp_path / "run", data=shards)
    Trainer(run, quiet=True).run(until=2)
    assert Trainer(run, quiet=True).run(until=4).step == 4
    state = last(tmp_path / "run").folder / "state.json"
    state.write_text(state.read_text().replace('"world": 1', '"world": 2'))
    with pytest.raises(ValueError, match=r"as 2 processes began to, of .*step-00000004: 1 cannot go on"):
        Trainer(run, quiet=True).run()


def test_progress_is_measured_on_another_folder(pairs, tmp_path):
    write_shards(pairs / "haze" / "target", tmp_path / "shards", per_shard=3)
    shards = {"source": "shards", "root": str(tmp_path / "shards"), "held_out": 0, "degradations": ["haze", "rain"]}
    validation = {"every": 2, "crop": 16, "steps": 1, "root": str(pairs / "rain" / "target"), "images": 4}
    trainer = Trainer(config(tmp_path / "run", data=shards, validation=validation), quiet=True)
    held = trainer.source.held_out(16)
    assert held.clean[:, 0, 0, 0].tolist() == [0, 20, 60, 80]  # evenly over six
    assert trainer.run().best is not None and (tmp_path / "run" / "best").is_dir()
    assert trainer.source.by_ranks, "shards are still gone on with by as many processes alone"
    paired = {"source": "paired", "root": str(pairs), "held_out": 2}  # which means nothing then
    both = config(tmp_path / "pairs", data=paired, validation={"every": 2, "root": str(pairs / "haze"), "images": 99})
    source = Trainer(both, quiet=True).source
    held = source.held_out(16)
    assert len({number for batch in taken(source, 6) for number in batch.numbers.tolist()}) == 12
    assert len(held.clean) == 6 and (held.degraded[:, 0, 0, 0] - held.clean[:, 0, 0, 0]).tolist() == [10] * 6
    none = config(tmp_path / "none", data=shards, validation={"every": 2, "root": str(tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match=r"validation.root must name a folder of images, got .*nowhere"):
        Trainer(none)
    Trainer(replace(none, validation=replace(none.validation, every=0)))  # without one it need not be there


def test_shards_and_a_wrong_tree(pairs, tmp_path):
    write_shards(pairs / "haze" / "target", tmp_path / "shards", per_shard=3)
    source = open_source(Data(source="shards", root=str(tmp_path / "shards"), held_out=0))
    assert source.classes == () and source.held_out(12) is None
    assert taken(source, 3)[0].degraded is None
    with pytest.raises(ValueError, match=r"held_out must be 0 for shards"):
        Collection(ShardFolder(tmp_path / "shards"), held_out=1)
    with pytest.raises(FileNotFoundError, match=r"clear"):
        open_source(Data(source="cdd11", root=str(tmp_path)))
