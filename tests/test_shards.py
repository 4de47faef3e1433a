"""Shards: every image once an epoch, shared by ranks, resumed without decoding, damage named."""

import io
import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data import shards as module
from bdg_fast.data.datasets import ImageFolder, PairedFolder, SampleError
from bdg_fast.data.loader import Skipped, TooManySkipped, batches
from bdg_fast.data.order import Order
from bdg_fast.data.shards import ShardFolder, write_shards
from bdg_fast.table.sources import parts_of


def png(value, side=6):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    members(path, files.items())


def members(path, files):
    """A tar file of names and bytes, also of several of one name."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    """Four shards of 5, 4, 3 and 6 images, of values 1 to 18."""
    value = 0
    for number, images in enumerate((5, 4, 3, 6)):
        files = {}
        for _ in range(images):
            value += 1
            files |= {f"{value:03d}.json": json.dumps({"kind": "rain" if value % 2 else "snow"}).encode()}
            files |= {f"{value:03d}.png": png(value)}
        shard(tmp_path / f"{number}.tar", files)
    return tmp_path


def take(steps, dataset, seed=0, **options):
    found = batches(dataset, Order(len(dataset), seed), **{"batch": 3, "crop": 4, "workers": 0} | options)
    result = [next(found) for _ in range(steps)]
    found.close()
    return result


def values(found):
    return [int(image[0, 0, 0]) for batch in found for image in batch.clean]


@pytest.mark.parametrize("buffer", [0, 4, 1000])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_an_epoch(folder, buffer, workers):
    dataset = ShardFolder(folder, buffer=buffer)
    assert (len(dataset), dataset.paired) == (4, False)
    found = values(take(12, dataset, workers=workers))
    assert sorted(found[:18]) == sorted(found[18:]) == list(range(1, 19))
    assert found[:18] != found[18:]
    assert found == values(take(12, dataset))
    assert found != values(take(12, dataset, seed=1))


def test_a_buffer_shuffles_anew(tmp_path):
    shard(tmp_path / "a.tar", {f"{value:02d}.png": png(value) for value in range(30)})
    for buffer in (5, 100):
        found = values(take(20, ShardFolder(tmp_path, buffer=buffer)))
        assert found[:30] != found[30:]
        assert found[:30] != values(take(10, ShardFolder(tmp_path, buffer=buffer), seed=1))
        for epoch in (found[:30], found[30:]):
            rises = sum(later > value for value, later in pairwise(epoch))
            assert 6 < rises < 27  # all 29 in the files' order
            assert max(at - epoch.index(at) for at in range(30)) <= buffer  # none before it was read


def test_without_a_buffer_shards_are_read_from_end_to_end(folder):
    found = values(take(6, ShardFolder(folder, buffer=0)))
    ends = [i for i in range(17) if found[i + 1] != found[i] + 1]
    assert len(ends) <= 3


@pytest.mark.parametrize("buffer", [0, 4])
def test_ranks_share_an_epoch(folder, buffer):
    dataset = ShardFolder(folder, buffer=buffer)
    seen = []
    for rank in range(2):
        order = Order(4, 0)
        own = [order.number(at) for at in (rank, rank + 2)]
        images = sum((5, 4, 3, 6)[number] for number in own)
        seen += values(take(images, dataset, batch=1, rank=rank, world=2))
    assert sorted(seen) == list(range(1, 19))


@pytest.mark.parametrize("start", [3, 15, 18, 21, 57])
def test_resumes_without_decoding_what_was(folder, monkeypatch, start):
    dataset = ShardFolder(folder, buffer=4)
    whole = take(22, dataset)
    decoded = []
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda data, name: decoded.append(name) or decode(data, name))
    opened, read = [], []
    entries, extract = module.entries_of, tarfile.TarFile.extractfile
    monkeypatch.setattr(module, "entries_of", lambda *given: opened.append(given) or entries(*given))
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *given: read.append(given) or extract(*given))
    resumed = take(2, dataset, start=start)
    assert len(decoded) == 6
    assert len(opened) <= 3 * len(dataset)  # one epoch before, two that are read
    assert len(read) <= 2 * (6 + module.OTHERS + dataset.buffer + 1)  # an image and a JSON file each
    for one, other in zip(resumed, whole[start // 3 :], strict=False):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def test_kinds_seeds_and_numbers(folder):
    found = take(6, ShardFolder(folder, kinds=("snow", "rain")))
    for batch in found:
        assert torch.equal(batch.kinds, batch.clean[:, 0, 0, 0].long() % 2)
    assert torch.cat([batch.seeds for batch in found]).tolist() == [Order(4, 0).seed_of(i) for i in range(18)]
    numbers = torch.cat([batch.numbers for batch in found])
    assert numbers.min() >= 0
    assert len(set(numbers.tolist())) == 18
    assert take(1, ShardFolder(folder))[0].kinds.tolist() == [-1] * 3


def test_pairs(tmp_path):
    files = {}
    for value in range(1, 7):
        files |= {f"deep/{value}.input.png": png(value + 100, side=3), f"deep/{value}.target.png": png(value)}
    shard(tmp_path / "a.tar", files)
    dataset = ShardFolder(tmp_path)
    assert dataset.paired
    for batch in take(2, dataset):
        assert torch.equal(batch.degraded, batch.clean + 100)


def test_broken_members_are_replaced_by_what_follows_and_named(tmp_path):
    files = {f"{value}.png": png(value) for value in range(1, 9)} | {"3.png": b"no image", "9.txt": b"words"}
    shard(tmp_path / "a.tar", files)
    dataset, skipped = ShardFolder(tmp_path, buffer=0), Skipped()
    whole = take(6, dataset, skipped=skipped)
    assert values(whole)[:9] == [1, 2, 4, 4, 5, 6, 7, 8, 1]
    assert list(skipped.reasons) == [f"{tmp_path}/a.tar/3.png", f"{tmp_path}/a.tar/9"]
    assert skipped.reasons[f"{tmp_path}/a.tar/9"] == "must have one clean image, has txt"
    assert skipped.count == 4
    assert values(take(4, dataset, start=6, workers=2, skipped=Skipped())) == values(whole)[6:]
    with pytest.raises(SampleError, match=r"a\.tar/3\.png: cannot identify"):
        take(1, dataset)


def test_tables_take_every_image_by_its_own_name(tmp_path):
    """Also where names differ in case alone, or repeat."""
    names = ["a.JPG", "b.json", "b.png", "b.PNG", "b.png", "deep/c.input.png", "deep/c.target.Png"]
    members(tmp_path / "a.tar", [(name, png(value)) for value, name in enumerate(names)])
    [(_, items)] = parts_of([str(tmp_path / "a.tar")], 100)
    found = [(item.key, int(item.read()[0, 0, 0])) for item in items]
    assert found == [(f"{tmp_path}/a.tar/{name}", value) for value, name in enumerate(names) if value != 1]


@pytest.mark.parametrize(
    ("files", "name", "told"),
    [
        ([("3.png", 3), ("3.PNG", 103)], "3.png", "png, PNG of 3"),
        ([("3.PNG", 3), ("3.PNG", 103)], "3.PNG", "PNG, PNG of 3"),
        ([("3.json", None), ("3.json", None), ("3.png", 3)], "3.json", "json, json of 3"),
    ],
)
def test_members_of_one_name_are_refused_by_name(tmp_path, files, name, told):
    """Where they stand: what is before and after comes as it did."""
    content = [("1.PNG", 1), ("2.png", 2), *files, ("4.png", 4), ("5.png", 5), ("6.png", 6)]
    members(tmp_path / "a.tar", [(member, b"{}" if value is None else png(value)) for member, value in content])
    dataset, skipped = ShardFolder(tmp_path, kinds=("rain",), buffer=0), Skipped()
    assert values(take(4, dataset, skipped=skipped)) == [1, 2, 4, 4, 5, 6] * 2
    assert skipped.reasons == {f"{tmp_path}/a.tar/{name}": f"must be there once, got {told}"}
    assert values(take(2, dataset, start=3, skipped=Skipped())) == [4, 5, 6, 1, 2, 4]


@pytest.mark.parametrize("damage", ["cut", "header", "between", "text", "missing"])
def test_broken_shards_are_named_and_left_out(folder, damage):
    path = folder / "3.tar"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: 512 * 5 + 10])
    elif damage == "header":
        path.write_bytes(data[: 512 * 8] + b"x" * 512 + data[512 * 9 :])
    elif damage == "between":
        path.write_bytes(data[: 512 * 8])
    elif damage == "text":
        path.write_text("no tar")
    dataset = ShardFolder(folder, buffer=3)
    if damage == "missing":
        path.unlink()
    skipped = Skipped()
    whole = take(15, dataset, skipped=skipped)
    assert list(skipped.reasons) == [str(path)]
    assert skipped.count >= 2
    assert set(range(1, 13)) <= set(values(whole))
    assert ({13, 14} <= set(values(whole))) == (damage in ("header", "between"))
    assert not {15, 16, 17, 18} & set(values(whole))
    for start in (9, 21, 30):
        assert values(take(3, dataset, start=start, skipped=Skipped())) == values(whole)[start : start + 9]


def test_nothing_readable_ends(folder):
    dataset = ShardFolder(folder, buffer=3)
    for path in folder.glob("*.tar"):
        path.write_text("no tar")
    with pytest.raises((TooManySkipped, ValueError), match=r"\.tar"):
        take(1, dataset, skipped=Skipped(1.0))


def test_written_shards_are_read_back(folder, tmp_path):
    for value in range(7):
        for which in ("in", "out"):
            path = tmp_path / which / f"{value}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(value + 50 * (which == "in")))
    clean = write_shards(tmp_path / "out", tmp_path / "clean", per_shard=3)
    assert [path.name for path in clean] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert sorted(values(take(7, ShardFolder(tmp_path / "clean"), batch=1))) == list(range(7))
    again = write_shards(tmp_path / "out", tmp_path / "again", per_shard=3)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in clean]
    pairs = PairedFolder(tmp_path / "in", tmp_path / "out", kind="rain")
    write_shards(pairs, tmp_path / "pairs", per_shard=100, name="rain")
    for batch in take(2, ShardFolder(tmp_path / "pairs", kinds=("haze", "rain"))):
        assert torch.equal(batch.degraded, batch.clean + 50)
        assert batch.kinds.tolist() == [1, 1, 1]
    with pytest.raises(FileExistsError, match=r"has shards already \(rain-000000\.tar"):
        write_shards(pairs, tmp_path / "pairs", name="rain")


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    images = ImageFolder(tmp_path / "in")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_shards(images, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_errors_name_the_argument(folder, tmp_path):
    dataset, order = ShardFolder(folder), Order(4, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.tar").write_text("no tar")
    for call, kind, words in [
        (lambda: ShardFolder(tmp_path / "no"), FileNotFoundError, r"no' does not exist"),
        (lambda: ShardFolder(tmp_path / "empty"), FileNotFoundError, r"root must hold \*\.tar, got .*empty"),
        (lambda: ShardFolder(tmp_path / "odd"), ValueError, r"root must hold tar files of images, got 1 without"),
        (lambda: ShardFolder(folder, buffer=-1), ValueError, r"buffer must be at least 0"),
        (lambda: batches(dataset, order, batch=1, crop=1, world=5), ValueError, r"world must be at most .* 4, got 5"),
        (lambda: batches(dataset, order, batch=1, crop=1, world=2, start=3), ValueError, r"start must be a multiple"),
        (lambda: write_shards(tmp_path, tmp_path / "out", per_shard=0), ValueError, r"per_shard must be at least 1"),
    ]:
        with pytest.raises(kind, match=words):
            call()
    shard(tmp_path / "kinds" / "a.tar", {"1.json": b'{"kind": "fog"}', "1.png": png(1)})
    with pytest.raises(SampleError, match=r"1\.json: kind must be one of rain, got 'fog'"):
        take(1, ShardFolder(tmp_path / "kinds", kinds=["rain"]))
