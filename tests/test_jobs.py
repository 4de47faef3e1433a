"""Manifests: what is read, recorded and resumed, here and by two processes."""

import csv
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from bdg_fast import UNet, UNetConfig
from bdg_fast.cli import main
from bdg_fast.cli.manifest_restore import RestoreWork
from bdg_fast.jobs import Record, read_manifest

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three pictures and what is none, listed in `files.jsonl`, from the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    names = ["in/a.png", "in/deep/b.jpg", "in/broken.png", "in/c.webp"]
    for name, size in zip(names, ((20, 31), (33, 18), None, (20, 31)), strict=True):
        if size is None:
            (tmp_path / name).write_bytes(b"no picture")
        else:
            Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "files.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    return tmp_path


def lines_of(table):
    return {line["id"]: line for line in map(json.loads, table.read_text().splitlines())}


def restore(*arguments):
    command = ["restore", "--manifest", "files.jsonl", "--output-dir", "out", "--device", "cpu"]
    return main([*command, *map(str, arguments)])


def broken_off(monkeypatch, *arguments):
    """A run that ends before its lines are joined."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Record, "join", killed)
        assert restore(*arguments) == 130


def test_restore_writes_what_a_folder_gives_and_records_it(photos, checkpoint, capsys):
    assert restore("--checkpoint", checkpoint) == 1
    told = capsys.readouterr()
    assert "not restored: in/broken.png" in told.err
    assert re.search(r"3 of 4 images, \S+ s by 1 worker: \S+ images/s, \S+ a worker", told.out)
    assert main(["restore", "in/", "folder/", "--checkpoint", checkpoint, "--device", "cpu"]) == 1
    lines = lines_of(photos / "out" / "_manifest.jsonl")
    assert list(lines) == ["in/a.png", "in/deep/b.jpg", "in/broken.png", "in/c.webp"]
    for name, line in lines.items():
        if name == "in/broken.png":
            assert line["status"] == "failed" and "in/broken.png" in line["error"]
            continue
        content = (photos / "out" / line["output"]).read_bytes()
        assert content == (photos / "folder" / name.removeprefix("in/")).read_bytes()
        assert (line["status"], line["bytes"]) == ("done", len(content))
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        assert line["seconds"] >= 0 and line["worker"]
    summary = json.loads((photos / "out" / "_manifest.json").read_text())["summary"]
    assert (summary["runner"], summary["done"], summary["failed"], summary["workers"]) == ("local", 3, 1, 1)
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["_manifest.json", "_manifest.jsonl", "in"]


def test_a_second_run_does_what_is_missing_cut_short_or_failed(photos, checkpoint, capsys):
    assert restore("--checkpoint", checkpoint) == 1
    whole = {name: (photos / "out" / name).read_bytes() for name in ("in/a.png", "in/deep/b.jpg", "in/c.webp")}
    kept = (photos / "out" / "in" / "c.webp").stat().st_mtime_ns
    (photos / "out" / "in" / "a.png").unlink()
    (photos / "out" / "in" / "deep" / "b.jpg").write_bytes(b"half")
    Image.new("RGB", (16, 16)).save(photos / "in" / "broken.png")
    capsys.readouterr()
    assert restore("--checkpoint", checkpoint) == 0
    assert "1 of 4 are done already" in capsys.readouterr().out
    assert {name: (photos / "out" / name).read_bytes() for name in whole} == whole
    assert (photos / "out" / "in" / "c.webp").stat().st_mtime_ns == kept
    assert {line["status"] for line in lines_of(photos / "out" / "_manifest.jsonl").values()} == {"done"}
    assert restore("--checkpoint", checkpoint) == 0
    assert "_manifest.jsonl: nothing was left to do" in capsys.readouterr().out
    assert restore("--checkpoint", checkpoint, "--seed", "1") == 2
    assert "other settings (seed 0); --force" in capsys.readouterr().err
    assert restore("--checkpoint", checkpoint, "--seed", "1", "--force", "--compare") == 0
    assert (photos / "out" / "in" / "c.webp").stat().st_mtime_ns > kept
    assert Image.open(photos / "out" / "in" / "a_compare.png").size == (62, 20)


def test_what_a_killed_run_left_is_gone_on_from(photos, checkpoint, monkeypatch):
    broken_off(monkeypatch, "--checkpoint", checkpoint)
    (part,) = (photos / "out" / "_manifest.parts").glob("*.jsonl")
    text = part.read_text().splitlines(keepends=True)
    part.write_text("".join(text[:-1]) + text[-1][:20])  # its last line was being written
    written = {path: path.stat().st_mtime_ns for path in (photos / "out" / "in").rglob("*") if path.is_file()}
    assert len(written) == 3
    assert restore("--checkpoint", checkpoint) == 1
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not (photos / "out" / "_manifest.parts").exists()
    found = [line["status"] for line in lines_of(photos / "out" / "_manifest.jsonl").values()]
    assert sorted(found) in (["done", "done", "failed", "found"], ["done", "done", "done", "failed"])


def test_results_of_other_settings_never_count_as_those_of_a_forced_run(photos, checkpoint, monkeypatch):
    (photos / "in" / "broken.png").unlink()
    rows = [{"path": name} for name in ("in/a.png", "in/c.webp", "in/deep/b.jpg")]
    text = [json.dumps(row) + "\n" for row in rows]
    (photos / "files.jsonl").write_text("".join(text))
    assert restore("--checkpoint", checkpoint) == 0
    (photos / "files.jsonl").write_text(text[0])
    broken_off(monkeypatch, "--checkpoint", checkpoint, "--seed", "1", "--force")
    (part,) = (photos / "out" / "_manifest.parts").glob("*.jsonl")
    part.unlink()  # as if killed before anything was done
    (photos / "files.jsonl").write_text("".join(text))
    assert restore("--checkpoint", checkpoint, "--seed", "1") == 0
    assert main(["restore", "in/", "fresh/", "--checkpoint", checkpoint, "--device", "cpu", "--seed", "1"]) == 0
    for name, line in lines_of(photos / "out" / "_manifest.jsonl").items():
        assert line["status"] == "done" and "again" not in line
        assert (photos / "out" / name).read_bytes() == (photos / "fresh" / name.removeprefix("in/")).read_bytes()


def test_what_failed_a_forced_run_is_not_taken_for_done_by_the_next(photos, checkpoint):
    (photos / "files.jsonl").write_text('{"path": "in/a.png"}\n')
    source = (photos / "in" / "a.png").read_bytes()
    assert restore("--checkpoint", checkpoint) == 0
    old = (photos / "out" / "in" / "a.png").read_bytes()
    (photos / "in" / "a.png").write_bytes(b"no picture")
    assert restore("--checkpoint", checkpoint, "--seed", "1", "--force") == 1
    (photos / "in" / "a.png").write_bytes(source)
    assert restore("--checkpoint", checkpoint, "--seed", "1") == 0
    assert (photos / "out" / "in" / "a.png").read_bytes() != old


class Death(BaseException):
    """Of a process."""


def killed(monkeypatch, when, *arguments):
    """A run that is killed while it loads, or when its first picture is there and its line is not."""

    def die(*_):
        raise Death

    with monkeypatch.context() as patched:
        if when == "loading":
            patched.setattr(RestoreWork, "load", die)
        else:
            patched.setattr(RestoreWork, "_line", die)
        with pytest.raises(Death):
            restore(*arguments)


def test_results_without_lines_are_never_those_of_other_settings(photos, checkpoint, monkeypatch, capsys):
    (photos / "files.jsonl").write_text('{"path": "in/a.png"}\n')
    picture, state = photos / "out" / "in" / "a.png", photos / "out" / "_manifest.json"
    killed(monkeypatch, "writing", "--checkpoint", checkpoint, "--steps", "1")
    old = picture.read_bytes()
    for _ in range(2):
        killed(monkeypatch, "loading", "--checkpoint", checkpoint, "--steps", "1")
    assert not lines_of(photos / "out" / "_manifest.jsonl")
    assert restore("--checkpoint", checkpoint, "--steps", "2") == 2
    assert "other settings (steps 1); --force" in capsys.readouterr().err
    killed(monkeypatch, "loading", "--checkpoint", checkpoint, "--steps", "2", "--force")
    assert json.loads(state.read_text())["results"] is False  # each is marked by its line
    assert restore("--checkpoint", checkpoint, "--steps", "2") == 0
    assert picture.read_bytes() != old
    assert lines_of(photos / "out" / "_manifest.jsonl")["in/a.png"]["status"] == "done"


def test_runs_that_were_killed_while_they_loaded_bind_nobody(photos, checkpoint, monkeypatch):
    for seed in ("1", "2"):
        killed(monkeypatch, "loading", "--checkpoint", checkpoint, "--seed", seed)
    assert restore("--checkpoint", checkpoint) == 1


def test_a_kill_amid_the_beginning_forgets_no_results(tmp_path, monkeypatch):
    record = Record(tmp_path / "job")
    record.begin("restore", {"steps": 1}, False, {})
    (record.parts / "loaded").touch()
    with monkeypatch.context() as patched:
        patched.setattr("bdg_fast.jobs.record._write_json", lambda *_: (_ for _ in ()).throw(Death))
        with pytest.raises(Death):
            record.begin("restore", {"steps": 1}, False, {})
    with pytest.raises(ValueError, match=r"other settings \(steps 1\)"):
        record.begin("restore", {"steps": 2}, False, {})


def test_a_checkpoint_is_known_by_what_it_holds(photos, checkpoint, capsys):
    shutil.copytree(checkpoint, "model")
    assert restore("--checkpoint", checkpoint) == 1
    assert restore("--checkpoint", "model") == 1  # the same at another place
    torch.manual_seed(1)
    UNet(UNetConfig(width=8, multipliers=(1, 2))).save_pretrained("model")
    assert restore("--checkpoint", "model") == 2
    assert "other settings (checkpoint " in capsys.readouterr().err


def test_a_run_that_could_not_begin_binds_nobody(photos, checkpoint, capsys):
    assert restore("--checkpoint", "misspelt") == 2
    assert "misspelt" in capsys.readouterr().err
    assert restore("--checkpoint", checkpoint) == 1


def test_rows_that_say_otherwise_are_done_again(photos, checkpoint):
    def listed(*rows):
        names = ("path", "id", "output")
        (photos / "files.jsonl").write_text(
            "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        )
        assert restore("--checkpoint", checkpoint) == 0
        return [(photos / "out" / output).read_bytes() for _, _, output in rows]

    one, two = listed(("in/a.png", "1", "x.png"), ("in/c.webp", "2", "y.png"))
    assert listed(("in/a.png", "1", "y.png"), ("in/c.webp", "2", "x.png")) == [one, two]  # the other way round
    assert listed(("in/c.webp", "1", "y.png"), ("in/a.png", "2", "x.png")) == [two, one]
    assert listed(("in/a.png", "3", "y.png")) == [one]  # of another image, which has no line
    written = (photos / "out" / "y.png").stat().st_mtime_ns
    (photos / "files.jsonl").write_text(json.dumps({"path": str(photos / "in/a.png"), "id": "3", "output": "y.png"}))
    assert restore("--checkpoint", checkpoint) == 0  # the same file by another name
    assert (photos / "out" / "y.png").stat().st_mtime_ns == written


def test_an_output_takes_one_job_at_a_time(photos, checkpoint, capsys):
    (photos / "out").mkdir()
    record = Record(photos / "out" / "_manifest")
    with record.claimed():
        assert restore("--checkpoint", checkpoint) == 2
        assert "another job is at out/_manifest.jsonl" in capsys.readouterr().err
    assert restore("--checkpoint", checkpoint) == 1
    assert not [path.name for path in (photos / "out").iterdir() if path.name.startswith(".")]


def test_a_name_that_cannot_be_written_fails_alone(photos, checkpoint, capsys):
    with open("files.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"path": "in/a.png", "id": "long", "output": "x" * 300 + ".png"}) + "\n")
    assert restore("--checkpoint", checkpoint) == 1
    told = capsys.readouterr()
    assert "xxx.png: not written: " in told.err and "3 of 5 images" in told.out


def content(file):
    """All of it; safetensors keep no order of what their metadata tell."""
    if file.suffix == ".csv":
        return file.read_bytes()
    with safe_open(file, "pt") as opened:
        matrices = opened.get_tensor("matrices")
        return list(opened.keys()), opened.metadata(), matrices.shape, matrices.numpy().tobytes()


@pytest.mark.parametrize("suffix", ["csv", "safetensors"])
def test_glcm_gives_the_file_of_the_same_images(photos, suffix, capsys):
    names = ["in/a.png", "in/deep/b.jpg", "in/broken.png", "in/c.webp"]
    assert main(["glcm", *names, "--output", f"plain.{suffix}"]) == 1
    command = ["glcm", "--manifest", "files.jsonl", "--output", f"listed.{suffix}", "--chunk", "2"]
    assert main(command) == 1
    assert content(photos / f"listed.{suffix}") == content(photos / f"plain.{suffix}")
    assert "not read: in/broken.png" in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save(photos / "in" / "broken.png")
    assert main(command) == 0
    assert "3 of 4 are done already" in capsys.readouterr().out
    assert main(["glcm", *names, "--output", f"plain.{suffix}", "--force"]) == 0
    assert content(photos / f"listed.{suffix}") == content(photos / f"plain.{suffix}")
    parts = sorted((photos / f"listed.{suffix}.manifest.parts").iterdir())
    parts[0].write_bytes(b"")  # the machine lost power, say
    assert main(command) == 0
    assert content(photos / f"listed.{suffix}") == content(photos / f"plain.{suffix}")
    (photos / "short.csv").write_text("path\nin/a.png\n")  # another list of the same output
    assert main([*command[:2], "short.csv", *command[3:]]) == 0
    assert main(["glcm", "in/a.png", "--output", f"plain.{suffix}", "--force"]) == 0
    assert content(photos / f"listed.{suffix}") == content(photos / f"plain.{suffix}")


def test_manifests_of_all_types_say_the_same(tmp_path):
    rows = [{"path": "a b.png", "id": "first", "output": "x/1.png", "note": "unread"}, {"path": "/far/ö.png"}]
    (tmp_path / "m.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    with open(tmp_path / "m.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["note", "path", "id", "output"])
        writer.writeheader()
        writer.writerows(rows)
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        first, second = read_manifest(tmp_path / f"m.{suffix}")
        assert first[:3] == (tmp_path / "a b.png", "first", "x/1.png")
        assert (str(second.path), second.id, second.output) == ("/far/ö.png", "/far/ö.png", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"path": "a.png"}\n{"path": \n', "m.jsonl, line 2: is no JSON"),
        ("m.jsonl", '{"file": "a.png"}', "m.jsonl, line 1: has no path"),
        ("m.jsonl", '{"path": "a\\u0000.png"}', "m.jsonl, line 1: path must have no zero byte"),
        ("m.csv", "path\n" + "a" * 140_000 + "\n", "m.csv, line 2: is no CSV: field larger"),
        ("m.jsonl", '["a.png"]', "m.jsonl, line 1: must be like"),
        ("m.jsonl", '{"path": 3}', "m.jsonl, line 1: path must be a text, got 3"),
        ("m.jsonl", '{"path": "a"}\n{"path": "b", "id": "a"}', "line 2: 'a' is there already, in line 1"),
        ("m.jsonl", "", "m.jsonl names no image"),
        ("m.csv", "file\na.png\n", "m.csv must have a column path, got file"),
        ("m.parquet", "no Parquet", "m.parquet is no Parquet file, or damaged"),
        ("m.txt", "a.png", "a manifest must end in .jsonl or .csv or .parquet, got .*m.txt"),
    ],
)
def test_bad_manifests_are_told_with_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "in/a.png", "output": "../a.png"}, "output must be a path below --output-dir, got '../a.png'"),
        ({"path": "in/a.png", "output": "/etc/a.png"}, "output must be a path below --output-dir, got '/etc/a.png'"),
        ({"path": "in/a.png", "output": "_manifest.parts/a.png"}, "must not be where the job is recorded"),
        ({"path": "in/a.png", "output": "a.mp4"}, "output of 'in/a.png' must tell a format by .png"),
        ({"path": "clip.mp4"}, "output of 'clip.mp4' must tell a format by .png"),
        ({"path": "in/a.png", "id": "."}, "files.jsonl, line 2: id must end in a name unless output is given, got '.'"),
        (
            {"path": "in/a.png", "id": "x/.."},
            "files.jsonl, line 2: id must end in a name unless output is given, got 'x/..'",
        ),
        ({"path": "in/a.png", "id": "/"}, "line 2: id must end in a name unless output is given, got '/'"),
        ({"path": "in/a.png", "output": "in/deep/b.jpg"}, "OUT would hold out/in/deep/b.jpg twice"),
    ],
)
def test_outputs_that_cannot_be_are_told_before_any_work(photos, capsys, row, message):
    (photos / "files.jsonl").write_text('{"path": "in/deep/b.jpg"}\n' + json.dumps(row) + "\n")
    assert restore("--checkpoint", "not reached") == 2
    assert message in capsys.readouterr().err
    assert not (photos / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "a.png", "out/", "--ray"], "--ray needs --manifest"),
        (["restore", "a.png", "out/", "--output-dir", "out"], "--output-dir needs --manifest"),
        (["restore", "a.png", "out/", "--manifest", "files.jsonl"], "--manifest goes without paths"),
        (["restore", "--manifest", "files.jsonl"], "--manifest needs --output-dir"),
        (["glcm", "--manifest", "files.jsonl"], "--manifest needs --output"),
        (["glcm", "--manifest", "files.jsonl", "--output", "x.csv", "--plot", "y.png"], "goes without --plot"),
        (["glcm", "--manifest", "files.jsonl", "--output", "x.csv", "--workers", "2"], "--workers needs --ray"),
        (["glcm", "--manifest", "files.jsonl", "--output", "x.csv", "--chunk", "0"], "--chunk must be at least 1"),
        (["glcm", "--manifest", "files.jsonl", "--output", "x.csv", "--ray", "--workers", "0"], "must be at least 1"),
    ],
)
def test_options_that_do_not_go_together(photos, capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_manifest_paths_are_still_asked_for(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["restore", "a.png"])
    assert "required: OUT" in capsys.readouterr().err


def test_ray_is_asked_for_by_the_name_of_its_extra(photos, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert restore("--ray") == 2
    assert "pip install 'bdg-fast[ray]'" in capsys.readouterr().err
