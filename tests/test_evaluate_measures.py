"""Measures by name: equal to pyiqa's and scikit-image's, and what cannot be had is told with its reason."""

import socket
import sys
from pathlib import Path

import pytest
import torch
from skimage.metrics import structural_similarity

from bdg_fast.evaluation.measures import Settings, open_measures
from bdg_fast.metrics import luma, ssim


@pytest.fixture(scope="module")
def pair(photographs):
    """Two images with noise and blur, where SSIM's structure is negative in places."""
    clean = photographs[:1, :, 40:136, 60:171].float() / 255
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy[:, :, 48:] = clean[:, :, 48:].roll(3, 3)
    return noisy.clamp(0, 1).mul(255).round().div(255), clean


def value(name, pair, **settings):
    found, missing = open_measures([name], Settings(**settings))
    assert not missing
    return found[0].compute(*pair)


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("color", ["rgb", "y"])
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_psnr_and_ssim_are_those_of_pyiqa(pair, name, color, crop):
    pyiqa = pytest.importorskip("pyiqa")
    theirs = pyiqa.create_metric(name, device="cpu", test_y_channel=color == "y", color_space="ycbcr", crop_border=crop)
    ours = value(name, pair, color=color, crop=crop)
    assert ours == pytest.approx(float(theirs(*pair)), abs=2e-5 if name == "psnr" else 1e-6)
    assert 0.1 < ours < 40
    equal = (pair[1], pair[1])
    assert value(name, equal, color=color) == pytest.approx(float(theirs(*equal)), abs=1e-3)


def test_any_metric_of_pyiqa_by_name(pair):
    pyiqa = pytest.importorskip("pyiqa")
    found, missing = open_measures(["GMSD", "entropy"])
    assert not missing and [(one.name, one.lower_better) for one in found] == [("gmsd", True), ("entropy", False)]
    assert found[0].compute(*pair) == pytest.approx(float(pyiqa.create_metric("gmsd", device="cpu")(*pair)))
    assert found[1].compute(pair[0], pair[1]) == found[1].compute(pair[0], 0 * pair[1])  # of the restored alone
    with pytest.raises(ValueError, match=r"metrics must be psnr, ssim or of pyiqa\.list_models\(\), got 'lpipz'"):
        open_measures(["psnr", "lpipz"])


def test_ssim_of_scikit_image_and_the_original_without_its_clamp(pair):
    x, y = (each[0].permute(1, 2, 0).numpy() for each in pair)
    assert value("ssim", pair, ssim="skimage") == pytest.approx(
        structural_similarity(x, y, channel_axis=2, data_range=1), abs=1e-5
    )
    assert value("ssim", pair, ssim="wang") == pytest.approx(float(ssim(*pair)), abs=1e-12)
    assert value("ssim", pair, ssim="wang") < value("ssim", pair, ssim="pyiqa") - 1e-4
    plain = value("ssim", pair, ssim="wang", color="y")
    assert plain == pytest.approx(float(ssim(luma(pair[0]), luma(pair[1]))), abs=1e-12)


def test_luma_is_that_of_matlab():
    black_white_red = torch.tensor([[0.0, 1, 1], [0, 1, 0], [0, 1, 0]]).view(1, 3, 1, 3)
    assert luma(black_white_red).mul(255).flatten().tolist() == pytest.approx([16, 235, 81.481], abs=1e-3)


class Fake:
    """What pyiqa makes, without weights."""

    lower_better, metric_mode = True, "FR"

    def __init__(self, name):
        self.name = name

    def __call__(self, *given, **options):
        return torch.tensor(3.0)


def test_what_has_no_weights_is_told_and_the_rest_computed(pair, capsys):
    def create(name, device):
        print("Downloading weights")
        if name == "lpips":
            raise OSError("<urlopen error [Errno -2] Name or service not known>\nmore")
        assert socket.getdefaulttimeout() is not None  # a silent server ends
        return Fake(name)

    before = socket.getdefaulttimeout()
    found, missing = open_measures(["psnr", "lpips", "dists", "fid"], create=create)
    assert [one.name for one in found] == ["psnr", "dists", "fid"]
    assert missing == {"lpips": "OSError: <urlopen error [Errno -2] Name or service not known>"}
    assert found[1].compute(*pair) == 3 and found[1].lower_better
    assert found[2].compute is None and found[2].folders(Path("a"), Path("b")) == 3
    assert capsys.readouterr().out == "" and socket.getdefaulttimeout() == before


def test_without_pyiqa_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    found, missing = open_measures(["psnr", "niqe"])
    assert [one.name for one in found] == ["psnr"]
    assert "pip install 'bdg-fast[evaluation]'" in missing["niqe"]


def test_errors_name_the_argument(pair):
    for settings, words in [
        ({"color": "yuv"}, "color must be 'rgb' or 'y', got 'yuv'"),
        ({"crop": -1}, "crop must be at least 0, got -1"),
        ({"ssim": "x"}, "ssim must be one of pyiqa, wang, skimage, got 'x'"),
    ]:
        with pytest.raises(ValueError, match=words):
            Settings(**settings)
    for names in ([], ["psnr", "PSNR"]):
        with pytest.raises(ValueError, match="metrics must be at least one name, none twice"):
            open_measures(names)
    with pytest.raises(ValueError, match="a crop of 48 leaves nothing of 96 x 111 pixels"):
        value("psnr", pair, crop=48)
    with pytest.raises(ValueError, match="restored is 95 x 111 pixels, its clean image 96 x 111"):
        value("psnr", (pair[0][:, :, 1:], pair[1]))
    with pytest.raises(ValueError, match="window must be 'gaussian' or 'uniform', got 'box'"):
        ssim(*pair, "box")
