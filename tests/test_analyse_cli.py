"""`bdg-fast analyse`: tables, files, pictures, and what it does when some of them fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdg_fast import cli
from bdg_fast.analysis import Analyser
from bdg_fast.data.images import bundled_photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, one of them further down."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    shutil.copy(bundled_photographs()[0], images / "one.jpg")
    shutil.copy(bundled_photographs()[1], images / "below" / "two.jpg")
    return images


def analyse(*arguments: object) -> int:
    return cli.main(["analyse", *map(str, arguments)])


def test_table(folder, capsys):
    assert analyse(folder) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "kind", "level", "confidence", "distance", "unit"]
    assert [row.split()[0] for row in rows] == [str(folder / "below" / "two.jpg"), str(folder / "one.jpg")]
    report = Analyser.from_pretrained()(folder / "one.jpg")
    assert report.kind in rows[1].split()
    assert f"{report.confidence:.2f}" in rows[1]


def test_failing_files_are_named_and_the_rest_is_done(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "small.png")
    output = tmp_path / "reports.json"
    assert analyse(folder, "--json", output) == 1
    told = capsys.readouterr()
    errors = told.err.splitlines()
    assert len(errors) == 2
    assert "broken.png" in errors[0]
    assert "small.png: image must have at least 32 x 32 pixels, got 9 x 8" in errors[1]
    assert f"{output}: 2 of 4 images" in told.out
    assert len(json.loads(output.read_text())["reports"]) == 2


def test_json_holds_the_reports(folder, tmp_path):
    output = tmp_path / "reports.json"
    assert analyse(folder / "one.jpg", "--json", output) == 0
    (found,) = json.loads(output.read_text())["reports"]
    expected = Analyser.from_pretrained()(folder / "one.jpg")
    assert found == {"image": str(folder / "one.jpg"), "summary": expected.summary(), **expected.as_dict()}


def test_pictures_and_reports_of_each(folder, tmp_path):
    pytest.importorskip("matplotlib")
    plots, output = tmp_path / "plots", tmp_path / "out"
    assert analyse(folder, "--plot", plots, "--output", output) == 0
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "images/one.jpg", "images/below/two.jpg", "plots/one.png", "plots/below/two.png",
        "out/one.png", "out/one.json", "out/below/two.png", "out/below/two.json",
    }  # fmt: skip
    with Image.open(output / "one.png") as drawn:
        assert drawn.width > 800
    assert json.loads((output / "one.json").read_text())["image"] == str(folder / "one.jpg")


def test_results_within_a_folder_are_no_inputs(folder):
    pytest.importorskip("matplotlib")
    for _ in range(2):
        assert analyse(folder, "--output", folder / "reports", "--plot", folder / "plots", "--force") == 0
    assert len(list(folder.rglob("*.json"))) == 2 and len(list((folder / "plots").rglob("*.png"))) == 2


def test_a_picture_by_name(folder, tmp_path):
    pytest.importorskip("matplotlib")
    assert analyse(folder / "one.jpg", "--plot", tmp_path / "report.svg") == 0
    assert "<svg" in (tmp_path / "report.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("images", "--plot", "one.png"), "--plot must be a folder for several images (2)"),
        (("images", "--plot", "one.jpg"), "--plot must name a folder, or a file that ends in .png"),
        (("images", "--json", "reports.txt"), "--json must end in .json"),
        (("images", "--output", "there.json"), "--output must name a folder"),
        (("images/one.jpg", "images/copy/one.jpg", "--output", "out"), "would be written twice"),
        (("pngs/a.png", "--plot", "pngs"), "must not replace an input"),
        (("images/one.jpg", "--json", "pngs/one.json", "--output", "pngs"), "would be written twice: of --json and of"),
        (("images", "--json", "there.json"), "exists; --force replaces it"),
        (("images", "--plot", "done"), "exists; --force replaces it"),
        (("images", "--index", "missing"), "path must name a file of an index"),
        (("nothing.png",), "no such file"),
    ],
)
def test_bad_usage_is_told_before_any_work(folder, tmp_path, monkeypatch, capsys, arguments, told):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("mine")
    for name in ("pngs", "done"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 40)).save("pngs/a.png")
    (tmp_path / "done" / "one.png").write_text("mine")
    if "images/copy/one.jpg" in arguments:
        (folder / "copy").mkdir()
        shutil.copy(folder / "one.jpg", folder / "copy")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert analyse(*arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
