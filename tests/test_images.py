"""Finding and reading image files."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from bdg_fast.data.images import (
    ImageReadError,
    as_unit_rgb,
    bundled_photographs,
    decode_image,
    list_images,
    read_image,
)

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_lists_files_folders_and_patterns_once(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.jpg", "deep/c.png"):
        Image.fromarray(GRAY).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path, tmp_path / "b.png"])]
    assert names == ["a.jpg", "b.png", "deep/c.png"]
    assert [path.name for path in list_images([str(tmp_path / "*.png")])] == ["b.png"]


def test_hidden_files_of_a_folder_are_left_out(tmp_path):
    (tmp_path / ".previews").mkdir()
    for name in ("a.png", ".b.png", "._a.png", ".previews/c.png"):
        Image.fromarray(GRAY).save(tmp_path / name)
    assert list_images([tmp_path]) == [tmp_path / "a.png"]
    assert list_images([tmp_path / ".b.png"]) == [tmp_path / ".b.png"]  # named


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        list_images([tmp_path / "missing.png"])
    with pytest.raises(FileNotFoundError, match="no image in folder"):
        list_images([tmp_path])


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(FileNotFoundError, match="empty text names no file"):
        list_images([""])


def test_links_to_nothing_are_listed_and_fail_to_be_read(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for argument in (tmp_path, tmp_path / "*.png"):
        assert [path.name for path in list_images([argument])] == ["a.png", "gone.png"]
    assert list_images([tmp_path / "gone.png"]) == [tmp_path / "gone.png"]
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


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


def test_bytes_are_read_as_their_file(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert torch.equal(decode_image(data, "a"), read_image(tmp_path / "a.png"))
    with pytest.raises(ImageReadError, match=r"^member a: "):
        decode_image(data[:40], "member a")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_applies_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(GRAY).save(path, exif=exif)
    with Image.open(path) as file:
        expected = np.array(ImageOps.exif_transpose(file))
    assert orientation == 1 or not np.array_equal(expected, GRAY)
    assert np.array_equal(read_image(path)[0].numpy(), expected)


def test_applies_orientation_told_by_xmp(tmp_path):
    info = PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(GRAY).save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(read_image(tmp_path / "a.png")[0].numpy(), np.rot90(GRAY, -1))


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (20, 20, 20)), ("L", 20), ("P", 1)])
def test_one_clear_colour_is_read_as_any_other(tmp_path, mode, clear):
    image = Image.fromarray(GRAY).convert(mode)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=clear)
    assert "transparency" in Image.open(tmp_path / "clear.png").info
    assert torch.equal(read_image(tmp_path / "clear.png"), read_image(tmp_path / "plain.png"))


def test_ill_typed_exif_does_not_cost_the_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "hello"
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(GRAY).save(path, exif=exif)
    upright = read_image(path)
    assert upright.shape == (1, 4, 3)
    # the text now claims to be an image width, which must be a number
    path.write_bytes(path.read_bytes().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02", 1))
    assert torch.equal(read_image(path), upright)


def test_any_failure_of_a_decoder_is_one_exception_type(tmp_path, monkeypatch):
    def decode(*_args):
        raise struct.error("required argument is not an integer")

    Image.fromarray(GRAY).save(tmp_path / "bad.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", decode)
    with pytest.raises(ImageReadError, match=r"bad\.png: required argument"):
        read_image(tmp_path / "bad.png")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(GRAY).save(tmp_path / "bomb.png")
    for limit in (4, 10):  # beyond twice the limit Pillow raises, below that it warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageReadError, match=r"bomb\.png: .*decompression bomb"):
            read_image(tmp_path / "bomb.png")


def test_float_pixels_are_refused_not_clipped(tmp_path):
    Image.fromarray(GRAY.astype(np.float32) / 255).save(tmp_path / "float.tif")
    with pytest.raises(ImageReadError, match=r"float\.tif: floating-point pixels"):
        read_image(tmp_path / "float.tif")


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
    assert len(paths) == 11
    for path in paths:
        image = as_unit_rgb(read_image(path))
        assert image.shape[0] == 3
        assert 0 <= float(image.min()) < float(image.max()) <= 1
