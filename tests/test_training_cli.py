"""``bdg-fast train``: from the demo's settings to a restored picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs
from bdg_fast.training.log import read_log

ROOT = Path(__file__).resolve().parents[1]
DEMO = ("train", "--config", str(ROOT / "configs/demo.yaml"))
TINY = [
    "network.multipliers=[1,1]", "encoder.angles=2", "encoder.scales=[1]", "validation.steps=1", "validation.crop=32",
    *(f"stages.{name}.{key}" for name in ("generation", "bridging", "restoration") for key in ("steps=2", "crop=16")),
    *(f"stages.{name}.{key}" for name in ("generation", "bridging", "restoration") for key in ("warmup=0", "batch=4")),
]  # fmt: skip


def test_a_folder_of_photographs_goes_through_all_stages_to_a_restored_picture(tmp_path, capsys):
    photographs, output = tmp_path / "photographs", tmp_path / "run"
    photographs.mkdir()
    for path in bundled_photographs()[:4]:
        Image.open(path).crop((60, 60, 124, 124)).save(photographs / f"{path.stem}.png")
    settings = [*TINY, "data.source=folder", f"data.root={photographs}", "data.held_out=1", f"output={output}"]
    assert main([*DEMO, *settings]) == 0
    said = capsys.readouterr().out
    assert f"bdg-fast restore --checkpoint {output / 'network'}" in said
    stages = [line["stage"] for line in read_log(output) if "loss" in line]
    assert stages == ["generation", "bridging", "restoration"]  # the last step of each
    assert json.loads((output / "config.json").read_text())["data"]["root"] == str(photographs)
    picture = next(photographs.iterdir())
    restored = tmp_path / "restored.png"
    options = ["--checkpoint", str(output / "network"), "--device", "cpu", "--steps", "1", "--backend", "eager"]
    assert main(["restore", str(picture), str(restored), *options]) == 0
    assert Image.open(restored).size == (64, 64)
    capsys.readouterr()
    assert main([*DEMO, *settings]) == 0  # done already
    assert "was finished after step 6" in capsys.readouterr().out


def test_settings_are_checked_before_anything_is_written(tmp_path, capsys):
    output = tmp_path / "run"
    assert main([*DEMO, "--check", f"output={output}", "seed=5"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 5
    assert main([*DEMO, f"output={output}", "stages.bridging.stepz=5"]) == 2
    assert "stages.bridging.stepz is no setting; did you mean steps?" in capsys.readouterr().err
    assert main([*DEMO, f"output={output}", "data.source=folder", f"data.root={tmp_path}"]) == 2
    assert "no image in folder" in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert not output.exists()


def test_help_shows_what_to_type(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert "torchrun --nproc-per-node 8 -m bdg_fast.cli train" in said
