"""The command line as a user meets it: outputs, exit codes, and what is said about files that fail."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from bdg_fast import graycoprops, mas_glcm
from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs, read_image


@pytest.fixture
def folder(tmp_path):
    """Two photographs, a crop of another size, and a file that is no image."""
    images = tmp_path / "images"
    images.mkdir()
    for path in bundled_photographs()[:2]:
        Image.open(path).save(images / f"{path.stem}.png")
    Image.open(bundled_photographs()[2]).crop((3, 5, 80, 70)).save(images / "crop.png")
    (images / "broken.png").write_bytes(b"not a picture")
    return images


def test_safetensors_holds_matrices_names_and_settings(folder, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    assert main(["glcm", str(folder), "--output", str(output), "--levels", "16", "--scales", "1,3"]) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    (tmp_path / "new").touch()
    assert output.stat().st_mode == (tmp_path / "new").stat().st_mode  # as any new file
    with safe_open(output, "pt") as file:
        names = json.loads(file.metadata()["names"])
        settings = json.loads(file.metadata()["settings"])
        matrices = file.get_tensor("matrices")
    assert [name.rpartition("/")[2] for name in names] == sorted(
        p.name for p in folder.iterdir() if p.name != "broken.png"
    )
    assert settings["levels"] == 16
    for name, matrix in zip(names, matrices, strict=True):
        assert torch.equal(matrix, mas_glcm(read_image(name)[None], levels=16, scales=(1, 3))[0])


def test_csv_holds_features(folder, tmp_path):
    output = tmp_path / "features.csv"
    assert main(["glcm", str(folder / "crop.png"), "--output", str(output), "--source", "laplacian"]) == 0
    (row,) = csv.DictReader(output.open())
    assert (row["height"], row["width"]) == ("65", "77")
    matrix = mas_glcm(read_image(folder / "crop.png")[None], source="laplacian", quantizer="companded")
    assert float(row["contrast"]) == pytest.approx(graycoprops(matrix.double()).item(), rel=1e-8)


def test_prints_a_table_without_output(folder, capsys):
    assert main(["glcm", str(folder / "crop.png")]) == 0
    printed = capsys.readouterr().out
    assert "homogeneity" in printed
    assert "crop.png" in printed


def test_plot_draws_a_picture(folder, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plot.png"
    assert main(["glcm", str(folder / "crop.png"), "--plot", str(picture)]) == 0
    assert Image.open(picture).width > 1000


def test_all_files_bad_writes_nothing(folder, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert main(["glcm", str(folder / "broken.png"), "--output", str(output)]) == 1
    assert not output.exists()
    assert "broken.png" in capsys.readouterr().err


def test_refuses_to_overwrite_unless_forced(folder, tmp_path, capsys):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    arguments = ["glcm", str(folder / "crop.png"), "--output", str(output)]
    assert main(arguments) == 2
    assert output.read_text() == "precious"
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert output.read_text() != "precious"


def test_a_failed_write_leaves_the_old_file_and_no_other(folder, tmp_path, monkeypatch):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    assert main(["glcm", str(folder / "crop.png"), "--output", str(output), "--force"]) == 2
    assert output.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.npy"], r"--output must end in .safetensors or .csv"),
        (["--levels", "1"], r"levels must be an integer in 2..256, got 1"),
        (["--scales", "1,x"], "--scales must be integers separated by commas, got '1,x'"),
        (["--scales", "0"], r"scales must be integers >= 1"),
        (["--impl", "magic"], r"impl must be one of"),
        (["--quantizer", "companded"], r"quantizer='companded' is for source='laplacian'"),
        (["--output", "nowhere/x.csv"], r"folder nowhere of x.csv does not exist"),
        (["--plot", "picture"], r"--plot must end in .png or .pdf or .svg, got picture"),
    ],
    ids=["suffix", "levels", "list", "scales", "impl", "quantizer", "folder", "picture"],
)
def test_bad_usage_is_explained(folder, capsys, arguments, message):
    assert main(["glcm", str(folder / "crop.png"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("device", ["toaster", "meta"])
def test_unknown_device_is_bad_usage(folder, capsys, device):
    with pytest.raises(SystemExit) as stopped:
        main(["glcm", str(folder / "crop.png"), "--device", device])
    assert stopped.value.code == 2
    assert "must be cpu, cuda" in capsys.readouterr().err


def test_an_image_too_small_for_a_pair_is_named_and_has_no_features(folder, tmp_path, capsys):
    Image.new("L", (3, 1)).save(folder / "tiny.png")
    output = tmp_path / "features.csv"
    arguments = ["glcm", str(folder / "tiny.png"), str(folder / "crop.png"), "--scales", "9", "--output", str(output)]
    assert main(arguments) == 0
    tiny, crop = csv.DictReader(output.open())
    assert tiny["contrast"] == tiny["correlation"] == "nan"
    assert float(crop["contrast"]) > 0
    assert "tiny.png: 3 x 1 is too small" in capsys.readouterr().err


def test_output_closed_early_is_no_error(folder):
    command = f"{sys.executable} -m bdg_fast.cli glcm {folder / 'crop.png'} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() in ("141", "0")
    assert done.stderr == ""


def test_an_empty_path_is_not_the_current_folder(capsys):
    assert main(["glcm", ""]) == 2
    assert "empty text names no file" in capsys.readouterr().err


def test_a_link_to_nothing_is_named(folder, capsys):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    assert main(["glcm", str(folder)]) == 1
    assert "gone.png" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["glcm", "probe"])
def test_a_folder_as_output_is_refused_before_any_work(folder, tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr(f"bdg_fast.cli.{command}.list_images", lambda paths: pytest.fail("began to work"))
    output = tmp_path / "out.csv"
    output.mkdir()
    paths = [str(folder)] if command == "glcm" else ["--images", str(folder)]
    assert main([command, *paths, "--output", str(output), "--force"]) == 2
    assert f"--output must name a file, got the folder {output}" in capsys.readouterr().err


def test_missing_path_is_named(capsys):
    assert main(["glcm", "no-such-place/*.png"]) == 2
    assert "no-such-place" in capsys.readouterr().err


def test_demo(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for name in ("clean", "noise", "low light", "fingerprints.png", "compared.png"):
        assert name in printed
    for name in ("fingerprints.png", "degradations.png", "compared.png", "restored.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 50_000


def test_demo_restores_a_photograph_of_ones_own_and_degrades_nothing(tmp_path, capsys):
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    photograph.save(tmp_path / "mine.png")
    assert main(["demo", str(tmp_path / "mine.png"), "--output", str(tmp_path / "demo")]) == 0
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == ["compared.png", "restored.png"]
    with Image.open(tmp_path / "demo" / "restored.png") as restored:
        assert restored.size == (60, 40)
    assert "mine.png, 60 x 40, restored in" in capsys.readouterr().out
    assert main(["demo", str(tmp_path / "none.png"), "--output", str(tmp_path / "demo")]) == 2
    assert "none.png" in capsys.readouterr().err


def test_demo_refuses_a_file_as_folder_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    for output in ("file", "file/below"):
        assert main(["demo", "--output", str(tmp_path / output)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "file" in captured.err
    assert (tmp_path / "file").read_text() == "precious"
