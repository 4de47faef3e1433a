"""`bdg-fast glcm` on inputs that a long run may meet: interruption, odd file names, mixed kinds of image."""

import csv
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import cli, graycoprops, mas_glcm
from bdg_fast.data.images import bundled_photographs, read_image

DEEP = np.random.default_rng(0).integers(0, 65536, (40, 50), np.uint16)


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    output = tmp_path / "out.safetensors"
    assert cli.main(["glcm", str(bundled_photographs()[0]), "--output", str(output)]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_file_names_that_are_not_utf8_are_kept(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.fromarray(DEEP).save(os.fsdecode(name))
    output = tmp_path / "features.csv"
    assert cli.main(["glcm", os.fsdecode(name), "--output", str(output)]) == 0
    assert name in output.read_bytes()


def test_sizes_and_kinds_may_mix(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, pixels in (("a", DEEP), ("b", DEEP[::-1]), ("c", DEEP[:1, :1]), ("d", DEEP.astype(np.uint8))):
        Image.fromarray(pixels).save(images / f"{name}.png")
    Image.fromarray(np.stack([DEEP.astype(np.uint8)] * 3, -1)).save(images / "e.png")
    output = tmp_path / "features.csv"
    assert cli.main(["glcm", str(images), "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [os.path.basename(row["name"]) for row in rows] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for row in rows:
        matrix = mas_glcm(read_image(row["name"])[None]).to(torch.float64)
        expected = graycoprops(matrix, "entropy").item() if matrix.any() else float("nan")
        assert float(row["entropy"]) == pytest.approx(expected, rel=1e-8, nan_ok=True)
