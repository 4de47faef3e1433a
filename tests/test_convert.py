"""Pictures of any kind to pixels and back: every type comes back as it was, with what belongs to it."""

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bdg_fast import Restorer
from bdg_fast.data.convert import as_picture
from bdg_fast.data.images import ImageReadError

RNG = np.random.default_rng(0)


class Identity(Restorer):
    """Everything but the network."""

    def __init__(self):
        pass

    def restore(self, pixels, keep):
        return keep(pixels / 255 if pixels.dtype == torch.uint8 else pixels.clone())


def picture(mode, size=(31, 20)):
    if mode == "I;16":
        return Image.fromarray(RNG.integers(0, 65536, size[::-1], np.uint16))
    colour = Image.fromarray(RNG.integers(0, 256, (*size[::-1], 4), np.uint8))
    if mode in ("1", "La"):
        return colour.convert("LA" if mode == "La" else "L").convert(mode)
    return colour.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "I;16"])
def test_pictures_keep_mode_pixels_and_alpha(mode):
    image = picture(mode)
    same = Identity()(image)
    assert same.mode == image.mode
    assert np.array_equal(np.array(same), np.array(image))


@pytest.mark.parametrize(
    ("mode", "becomes"), [("P", "RGB"), ("1", "L"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("RGBa", "RGBA"), ("La", "LA")]
)
def test_other_modes_become_rgb(mode, becomes):
    image = picture(mode)
    same = Identity()(image)
    assert same.mode == becomes
    assert np.array_equal(np.array(same), np.array(image.convert(becomes)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_profile_and_exif_are_kept(orientation, tmp_path):
    image = picture("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif, icc_profile=b"profile", dpi=(300, 300))
    same = Identity()(tmp_path / "a.png")
    assert np.array_equal(np.array(same), np.array(image))  # stored as it was
    assert same.info["icc_profile"] == b"profile"
    same.save(tmp_path / "b.png", **same.info)
    assert Image.open(tmp_path / "b.png").getexif()[0x0112] == orientation
    # the network sees it upright
    from PIL import ImageOps

    upright = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    seen = as_picture(tmp_path / "a.png").pixels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(seen, upright)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4), (1, 1, 3)], ids=str)
def test_arrays_keep_values_type_and_shape(dtype, shape):
    image = RNG.random(shape)
    image = (image * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else image.astype(dtype)
    same = Identity()(image)
    assert same.dtype == image.dtype and same.shape == image.shape
    np.testing.assert_allclose(same, image, rtol=0, atol=1e-6 if image.dtype.kind == "f" else 0)


def test_orientation_outside_of_exif_comes_back_upright(tmp_path):
    image = picture("RGB")
    image.save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    same = Identity()(tmp_path / "a.tif")
    assert same.size == image.size[::-1]
    assert np.array_equal(np.array(same), np.array(image.transpose(Image.Transpose.ROTATE_270)))


def test_one_clear_colour_becomes_alpha(tmp_path):
    for mode, clear, becomes in (("RGB", (1, 2, 3), "RGBA"), ("L", 7, "LA")):
        image = Image.new(mode, (6, 5), clear)
        image.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else 9)
        image.save(tmp_path / "clear.png", transparency=clear)
        same = Identity()(tmp_path / "clear.png")
        assert same.mode == becomes
        alpha = np.array(same)[:, :, -1]
        assert alpha[0, 0] == 255 and alpha.sum() == 255


def test_metadata_behind_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture("RGB")
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4], "big")
    (tmp_path / "a.png").write_bytes(content[:at] + content[end:-12] + content[at:end] + content[-12:])  # before IEND
    same = Identity()(Image.open(tmp_path / "a.png"))  # not loaded yet
    assert np.array_equal(np.array(same), np.array(image)) and "exif" in same.info


@pytest.mark.parametrize("name", ["exif", "icc_profile", "dpi"])
def test_texts_of_a_png_file_that_are_called_like_data_change_nothing(name, tmp_path):
    texts = PngInfo()
    texts.add_text(name, "a text")
    image = picture("RGB")
    image.save(tmp_path / "a.png", pnginfo=texts)
    same = Identity()(tmp_path / "a.png")
    assert np.array_equal(np.array(same), np.array(image)) and not isinstance(same.info.get(name), str)
    same.save(tmp_path / "b.png", **same.info)


def test_floating_images_may_overshoot_a_little():
    image = RNG.random((9, 7, 3))
    image[0, 0], image[0, 1] = -0.3, 1.3
    assert np.array_equal(Identity()(image), Identity()(image.clip(0, 1)))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([1, 2], TypeError, "image must be a PIL image, an array, a tensor or a path, got list"),
        (np.zeros((4, 4), np.int32), TypeError, "image must be uint8, uint16 or floating, got int32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"image must have shape \[H, W\] or .*got \[4, 4, 2\]"),
        (torch.zeros(2, 4, 4), ValueError, r"image must have shape \[C, H, W\].*got \[2, 4, 4\]"),
        (torch.zeros(3, 0, 4), ValueError, r"image must have shape .*got \[3, 0, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "image must be uint8, uint16 or floating, got int64"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "image must be finite"),
        (np.full((4, 4), 255.0), ValueError, r"image must be in \[0, 1\] where it is floating, got 255 to 255"),
        (torch.full((3, 4, 4), -1.0), ValueError, r"image must be in \[0, 1\] where it is floating, got -1 to -1"),
        (Image.new("F", (4, 4)), ValueError, "floating-point pixels"),
        ("nowhere.png", ImageReadError, "nowhere.png"),
    ],
)
def test_bad_images_are_named(image, error, message):
    with pytest.raises(error, match=message):
        Identity()(image)
