"""Tables of fingerprints: what is in them, interrupted and shared runs, bad files."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import fingerprint
from bdg_fast.analysis import Analyser
from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs, read_image
from bdg_fast.data.shards import write_shards
from bdg_fast.table import Describer, Settings, Table, build
from table_setup import make_photos

FORMATS = [
    "safetensors",
    pytest.param("parquet", marks=pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs pyarrow")),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def run(*words):
    return main(["fingerprints", *map(str, words)])


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_the_images_and_their_fingerprints(photos, tmp_path, format, capsys):
    assert run(photos, "--output", tmp_path / "table", "--format", format, "--dtype", "float32", "--per-part", 4) == 0
    assert "11 images" in capsys.readouterr().out
    table = Table(tmp_path / "table")
    keys = table.column("key", range(len(table)))
    # those of a folder, then of the folders below
    assert keys == [str(path) for place in (photos, photos / "more") for path in sorted(place.glob("*.*g"))]
    assert [len(vectors) for vectors in table.vectors()] == [4, 4, 3]
    sizes = [table.column(name, range(11)) for name in ("width", "height")]
    for key, width, height, vector in zip(keys, *sizes, torch.cat([*table.vectors()]), strict=True):
        image = read_image(key)
        assert (height, width) == tuple(image.shape[1:])
        assert torch.equal(vector, fingerprint(image[None])[0])


@pytest.mark.parametrize("format", FORMATS)
def test_projection_analysis_and_half_precision(photos, tmp_path, format):
    settings = Settings(format=format, project=True, analyse=True)
    assert build([photos], tmp_path / "table", settings).complete
    table = Table(tmp_path / "table")
    rows = range(len(table))
    keys, kinds, levels, shares = (table.column(name, rows) for name in ("key", "kind", "level", "confidence"))
    (vectors,) = table.vectors()
    analyser = Analyser.from_pretrained()
    for key, kind, level, share, vector in zip(keys, kinds, levels, shares, vectors, strict=True):
        report = analyser(key)
        assert (kind, share) == (report.kind, pytest.approx(report.confidence))
        assert np.isnan(level) if report.level is None else level == pytest.approx(report.level)
        assert torch.equal(vector, analyser.coordinates(fingerprint(read_image(key)[None]))[0].half().float())


def test_parquet_is_read_by_others(photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(photos, "--output", tmp_path / "table.parquet", "--per-part", 5, "--analyse") == 0
    found = parquet.read_table(tmp_path / "table.parquet")
    assert found.num_rows == 11
    assert found.column_names == ["key", "width", "height", "kind", "level", "confidence", "fingerprint"]
    assert str(found.schema.field("fingerprint").type) == "fixed_size_list<element: halffloat>[2048]"
    clean = found.filter(found["kind"].to_numpy(zero_copy_only=False) == "clean")
    assert clean["level"].null_count == clean.num_rows > 0


def test_shards_lists_and_files_make_the_same_rows(photos, tmp_path):
    shards = write_shards(photos, tmp_path / "shards", per_shard=6)
    names = [path.relative_to(photos) for path in sorted(photos.rglob("*.*g"))]
    (photos / "list.txt").write_text("".join(f"{name}\n" for name in names) + "\n")
    for output, inputs in (("a", [tmp_path / "shards"]), ("b", [photos / "list.txt"]), ("c", [photos / "*.jpg"])):
        assert run(*inputs, "--output", tmp_path / output, "--per-part", 4) == 0
    (photos / "list.txt").unlink()
    tables = [Table(tmp_path / name) for name in "abc"]
    assert [len(table) for table in tables] == [11, 11, 2]
    assert tables[1].column("key", [0, 10]) == [str(photos / names[0]), str(photos / names[10])]
    assert tables[0].column("key", [0])[0].startswith(f"{shards[0]}/000")
    assert [len(vectors) for vectors in tables[0].vectors()] == [4, 2, 4, 1]  # a tar file begins a part
    sorted_rows = [torch.cat([*table.vectors()]).tolist() for table in tables[:2]]
    assert sorted(sorted_rows[0]) == sorted(sorted_rows[1])


KILLED = """
import os, signal, sys
import bdg_fast.table
from bdg_fast.cli import main
build = sys.modules["bdg_fast.table.build"]
write, count = build.write_part, 0
def killing(path, *rest):
    global count
    count += 1
    if count == 3:
        path.write_bytes(b"half of")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, *rest)
build.write_part = killing
main(sys.argv[1:])
"""


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(photos, tmp_path, format, capsys):
    words = [str(photos), "--per-part", "2", "--format", format, "--output"]
    command = [sys.executable, "-c", KILLED, "fingerprints", *words, str(tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert len([*(tmp_path / "killed").glob("part-*")]) == 2
    with pytest.raises(ValueError, match="is not finished"):
        Table(tmp_path / "killed")
    assert main(["search", str(tmp_path / "killed"), "--duplicates"]) == 2
    capsys.readouterr()
    assert run(*words, tmp_path / "killed") == 0
    assert "11 images, 4 of them from before" in capsys.readouterr().out
    assert run(*words, tmp_path / "whole") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_processes_share_the_work_in_any_order(photos, tmp_path, monkeypatch, capsys):
    words = [photos, "--per-part", 2, "--output"]
    assert run(*words, tmp_path / "one") == 0
    assert run(*words, tmp_path / "some", "--shard", "2/3") == 0
    monkeypatch.setenv("RANK", "0")  # as torchrun tells
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(*words, tmp_path / "some") == 0
    assert "finished when all shares are" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not finished"):
        Table(tmp_path / "some")
    assert run(*words, tmp_path / "some", "--shard", "1/3") == 0
    one, some = (
        {name: digest for name, digest in contents(tmp_path / place).items() if name[0] != "."}
        for place in ("one", "some")
    )
    assert one == some
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    capsys.readouterr()
    assert run(*words, tmp_path / "some") == 0  # one process goes on with what three made
    assert "11 of them from before" in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "some")


def test_files_that_fail_are_named_again_until_they_can_be_read(photos, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in photos.glob("*.png"):
        Image.open(path).save(folder / path.name)
    (folder / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (40, 20)).save(folder / "tiny.png")
    count = len([*folder.iterdir()])
    for kept in (0, count - 2):  # a second run tells them, too
        assert run(folder, "--output", tmp_path / "table") == 1
        told = capsys.readouterr()
        assert "broken.png" in told.err and "tiny.png: image must have at least 32 x 32 pixels" in told.err
        assert (f"{kept} of them from before" in told.out) is bool(kept)
    assert len(Table(tmp_path / "table")) == count - 2
    for name in ("broken.png", "tiny.png"):
        Image.new("RGB", (40, 40)).save(folder / name)
    assert run(folder, "--output", tmp_path / "table") == 0
    assert len(Table(tmp_path / "table")) == count


def test_a_shard_cut_off_is_named_and_its_images_are_kept(photos, tmp_path, capsys):
    (shard,) = write_shards(photos, tmp_path / "shards")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert run(shard, "--output", tmp_path / "table") == 1
    assert str(shard) in capsys.readouterr().err
    assert 2 < len(Table(tmp_path / "table")) < 11


def test_damaged_parts_and_other_images_are_made_again(photos, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(photos.glob("*.png")):
        Image.open(path).save(folder / path.name)
    first = build([folder], tmp_path / "table", Settings(per_part=2))
    part = tmp_path / "table" / "part-000000-0000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    assert build([folder], tmp_path / "table", Settings(per_part=2)).kept == first.rows - 2
    removed = sorted(folder.iterdir())[2:]
    for path in removed:
        path.unlink()
    assert build([folder], tmp_path / "table", Settings(per_part=2)).rows == 2
    assert [path.name for path in (tmp_path / "table").glob("part-*")] == [part.name]  # no rows of what is gone


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing/", "--output", "new"], "missing/"),
        (["empty", "--output", "new"], "no image in empty"),
        (["empty", "--output", "full"], "not empty"),
        (["photos", "--output", "table", "--project"], "project False"),
        (["photos", "--output", "new", "--crop", "20"], "crop must be at least 32, got 20"),
        (["photos", "--output", "new", "--index", "x"], "--index needs"),
        (["photos", "--output", "new/deep/er"], "new/deep"),
    ],
)
def test_bad_usage_says_what_is_wrong(photos, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "table").mkdir()
    settings = {"version": 1, "settings": Settings().as_dict(), "parts": []}
    (tmp_path / "table" / "_manifest.json").write_text(json.dumps(settings))
    assert run(*words) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["3", "2/2", "a/b"])
def test_bad_shards(photos, tmp_path, text, capsys):
    with pytest.raises(SystemExit):
        run(photos, "--output", tmp_path / "table", "--shard", text)
    assert "must be I/N with 0 <= I < N" in capsys.readouterr().err


def test_crops_and_smaller_copies_are_looked_at():
    image = read_image(bundled_photographs()[0])
    row = Describer(Settings(crop=64, dtype="float32"))(image)
    height, width = image.shape[1:]
    top, left = (height - 64) // 2, (width - 64) // 2
    assert (row.height, row.width) == (height, width)
    assert torch.equal(row.fingerprint, fingerprint(image[None, :, top : top + 64, left : left + 64])[0])
    small = Describer(Settings(max_side=64))(image)
    assert small.fingerprint.dtype == torch.float16
    assert not torch.equal(small.fingerprint, row.fingerprint.half())


def test_force_makes_a_table_of_other_settings(photos, tmp_path):
    build([photos], tmp_path / "table", Settings(per_part=3))
    with pytest.raises(ValueError, match=r"other settings \(dtype 'float16'\)"):
        build([photos], tmp_path / "table", Settings(per_part=3, dtype="float32"))
    built = build([photos], tmp_path / "table", Settings(per_part=6), force=True)
    assert (built.rows, built.kept, len([*(tmp_path / "table").glob("part-*")])) == (11, 0, 2)


class Stopped(Exception):
    """What ends a run amid its images."""


def stops_after(count):
    left = [count]

    def progress(done):
        left[0] -= done
        if left[0] <= 0:
            raise Stopped

    return progress


def test_parts_of_other_settings_are_made_again_after_an_interrupted_force(photos, tmp_path):
    other = Settings(per_part=3, crop=32)
    build([photos], tmp_path / "table", Settings(per_part=3))
    with pytest.raises(Stopped):
        build([photos], tmp_path / "table", other, force=True, progress=stops_after(5))
    built = build([photos], tmp_path / "table", other)
    assert (built.rows, built.kept, built.complete) == (11, 3, True)
    build([photos], tmp_path / "fresh", other)
    assert contents(tmp_path / "table") == contents(tmp_path / "fresh")


def test_a_share_of_an_earlier_table_completes_none(photos, tmp_path):
    before, after = Settings(per_part=3), Settings(per_part=3, project=True)
    for rank in range(2):
        build([photos], tmp_path / "table", before, shard=(rank, 2))
    assert not build([photos], tmp_path / "table", after, shard=(0, 2), force=True).complete
    with pytest.raises(ValueError, match="is not finished"):
        Table(tmp_path / "table")
    built = build([photos], tmp_path / "table", after, shard=(1, 2))
    assert (built.kept, built.complete) == (0, True)
    (tmp_path / "more.png").write_bytes(min(photos.glob("*.png")).read_bytes())
    both = [photos, tmp_path / "more.png"]
    built = build(both, tmp_path / "table", after, shard=(0, 2))  # the other one knows no more.png
    assert (built.complete, built.differing) == (False, [1])
    assert build(both, tmp_path / "table", after, shard=(1, 2)).complete
    assert len(Table(tmp_path / "table")) == 12


def test_a_list_may_begin_with_a_byte_order_mark(photos, tmp_path):
    names = sorted(photos.glob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)), encoding="utf-8-sig")
    built = build([tmp_path / "list.txt"], tmp_path / "table")
    assert (built.rows, built.failures) == (len(names), [])
