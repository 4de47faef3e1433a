"""The throughput benchmark runs from end to end, with few and small photographs."""

import json

import pytest
import torch
from PIL import Image

from bdg_fast import UNet, UNetConfig
from benchmarks import throughput


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    unet.save_pretrained(folder)
    return str(folder)


def run(capsys, *arguments):
    code = throughput.main([*map(str, arguments), "--device", "cpu", "--backend", "eager"])
    return code, json.loads(capsys.readouterr().out)


def test_measures_the_command_and_its_network(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "throughput.json"
    code, found = run(
        capsys, "--checkpoint", checkpoint, "--count", 7, "--sizes", "24x16", "16x24", "--batch", 2, "--out", out
    )
    assert code == 0 and json.loads(out.read_text()) == found
    assert found["end_to_end"]["images"] == found["network_only"]["images"] == 7 and 4 <= found["batches"] <= 7
    assert found["ratio"] == found["end_to_end"]["images_per_second"] / found["network_only"]["images_per_second"]
    assert found["backend"] == "eager" and found["batch"] == 2 and found["count"] == 7


def test_photographs_are_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        throughput.make_photographs(tmp_path / name, 4, ("40x30", "30x50"))
    ones = sorted((tmp_path / "one").iterdir())
    assert [path.suffix for path in ones] == [".png", ".jpg", ".jpg", ".png"]
    assert [Image.open(path).size for path in ones] == [(40, 30), (30, 50)] * 2
    assert all(path.read_bytes() == (tmp_path / "two" / path.name).read_bytes() for path in ones)


def test_growth_of_time_and_memory(checkpoint, tmp_path, capsys, monkeypatch):
    code, row = run(capsys, "--checkpoint", checkpoint, "--growth-of", 0.03, "--tile", 144)
    assert code == 0 and row["width"] * row["height"] == pytest.approx(0.03e6, rel=0.02)
    assert row["peak_bytes"] >= row["peak_bytes_before"] > 0 and row["seconds"] > 0

    class Done:
        returncode, stdout, stderr = 0, json.dumps(row), ""

    monkeypatch.setattr(throughput.subprocess, "run", lambda *_, **__: Done)
    code, found = run(capsys, "--growth", "--megapixels", 0.03, 0.06, "--out", tmp_path / "growth.json")
    assert code == 0 and found == {"growth": [row, row]} == json.loads((tmp_path / "growth.json").read_text())
    Done.returncode, Done.stderr = 1, "Traceback\nMemoryError: no more"
    code, found = run(capsys, "--growth", "--megapixels", 64)
    assert code == 1 and found["growth"][0]["error"] == "MemoryError: no more"


def test_bad_options_are_told(capsys):
    for arguments, message in (
        (["--count", "0"], "--count must be"),
        (["--sizes", "256"], "--sizes must be WxH"),
        (["--batches", "0"], "--batches must be"),
    ):
        with pytest.raises(SystemExit):
            throughput.main(arguments)
        assert message in capsys.readouterr().err


def test_growth_with_the_batch(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "images", lambda count: torch.rand(count, 3, 16, 24))
    out = tmp_path / "batches.json"
    code, found = run(capsys, "--checkpoint", checkpoint, "--batches", 4, 1, "--out", out)
    assert code == 0 and found == json.loads(out.read_text())
    one, four = found["growth"]
    assert (one["batch"], four["batch"]) == (1, 4)
    assert four["images_per_second"] == 4 / four["seconds"] and one["peak_bytes"] <= four["peak_bytes"]


def test_a_batch_that_fails_ends_growth(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "images", lambda count: torch.rand(count, 3, 16, 24))

    def restore(self, pixels):
        if len(pixels) > 1:
            raise MemoryError("no more")
        return pixels

    monkeypatch.setattr(throughput.Restorer, "restore", restore)
    code, found = run(capsys, "--checkpoint", checkpoint, "--batches", 1, 2, 4)
    assert code == 1 and [row.get("error") for row in found["growth"]] == [None, "MemoryError: no more"]
