"""Finding and reading image files."""

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data.images import ImageReadError, as_unit_rgb, bundled_photographs, list_images, read_image

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_lists_files_folders_and_patterns_once(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.jpg", "deep/c.png"):
        Image.fromarray(GRAY).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path, tmp_path / "b.png"])]
    assert names == ["a.jpg", "b.png", "deep/c.png"]
    assert [path.name for path in list_images([str(tmp_path / "*.png")])] == ["b.png"]


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        list_images([tmp_path / "missing.png"])
    with pytest.raises(FileNotFoundError, match="no image in folder"):
        list_images([tmp_path])


def test_reads_gray_16_bit_palette_and_alpha(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    assert torch.equal(read_image(tmp_path / "gray.png"), torch.from_numpy(GRAY)[None])
    deep = GRAY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png")
    assert read.dtype == torch.uint16
    assert np.array_equal(read[0].numpy(), deep)
    rgb = Image.fromarray(np.stack([GRAY, GRAY // 2, 255 - GRAY], -1))
    rgb.save(tmp_path / "rgb.png")
    rgb.putalpha(7)
    rgb.save(tmp_path / "alpha.png")
    assert torch.equal(read_image(tmp_path / "alpha.png"), read_image(tmp_path / "rgb.png"))
    rgb.convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (3, 3, 4)


def test_applies_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    Image.fromarray(GRAY).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png")[0], torch.from_numpy(np.rot90(GRAY, 3).copy()))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "missing"])
def test_unreadable_files_are_named(tmp_path, damage):
    path = tmp_path / "bad.png"
    if damage == "text":
        path.write_text("hello")
    elif damage == "empty":
        path.touch()
    elif damage == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"bad\.png"):
        read_image(path)


def test_bundled_photographs_are_colour_and_in_range():
    paths = bundled_photographs()
    assert len(paths) == 12
    for path in paths:
        image = as_unit_rgb(read_image(path))
        assert image.shape[0] == 3
        assert 0 <= float(image.min()) < float(image.max()) <= 1
