"""Published collections by name: trees as their authors describe them, and errors that show them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data.datasets import ImageFolder, PairedFolder
from bdg_fast.data.degrade import CDD11
from bdg_fast.data.layouts import LAYOUTS, find_parts, open_layout
from bdg_fast.data.pairing import RULES


def plant(root, *files, side=8):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), number + 1, np.uint8)).save(path)


def kinds_of(dataset, crop=8):
    return Counter(dataset.kinds[dataset.read(number, 0, crop).kind] for number in range(len(dataset)))


def test_plain_folders(tmp_path):
    plant(tmp_path, "a/1.png", "a/2.jpg")
    assert isinstance(open_layout("folder", tmp_path), ImageFolder)
    assert len(open_layout("folder", tmp_path)) == 2


def test_paired_folders_alone_or_one_a_degradation(tmp_path):
    plant(tmp_path / "one", "input/1.png", "target/1.png")
    assert isinstance(open_layout("paired", tmp_path / "one"), PairedFolder)
    plant(
        tmp_path / "many", "rain/input/rain-1.png", "rain/target/norain-1.png", "blur/input/a.png", "blur/target/a.png"
    )
    many = open_layout("paired", tmp_path / "many")
    assert many.kinds == ("blur", "rain")
    assert kinds_of(many) == {"blur": 1, "rain": 1}


def test_diffuir_takes_as_much_of_each(tmp_path):
    plant(
        tmp_path,
        *("RESIDE/OTS_ALPHA/haze/OTS/0001_0.8_0.04.jpg", "RESIDE/OTS_ALPHA/haze/OTS/0001_0.8_0.06.jpg"),
        *("RESIDE/OTS_ALPHA/clear/clear_images/0001.jpg", "LOL/train/low/2.png", "LOL/train/high/2.png"),
        *("syn_rain/train/input/1.jpg", "syn_rain/train/target/1.jpg", "Snow100K/train/synthetic/a.jpg"),
        *("Snow100K/train/gt/a.jpg", "Deblur/train/input/b.png", "Deblur/train/target/b.png"),
    )
    found = open_layout("diffuir-5", tmp_path)
    assert found.kinds == ("haze", "lowlight", "rain", "snow", "blur")
    assert kinds_of(found) == dict.fromkeys(found.kinds, 2)


AIRNET = (
    *("Denoise/00001.bmp", "Denoise/5096.jpg", "Derain/rainy/rain-1.png", "Derain/gt/norain-1.png"),
    *("Dehaze/original/0025.png", "Dehaze/synthetic/part1/0025_0.8_0.1.jpg", "Dehaze/synthetic/part2/0025_0.8_0.2.jpg"),
)
PROMPTIR = (*AIRNET, "Deblur/blur/G.png", "Deblur/sharp/G.png", "Enhance/low/2.png", "Enhance/gt/2.png")
NOISY = {"noise15": 6, "noise25": 6, "noise50": 6}


@pytest.mark.parametrize("below", ["", "Train", "data/Train"])
def test_airnet_repeats_what_its_authors_repeat(tmp_path, below):
    plant(tmp_path / below, *AIRNET)
    found = open_layout("airnet-3", tmp_path)
    assert found.paired
    assert kinds_of(found) == {**NOISY, "rain": 120, "haze": 2}


def test_promptir_adds_blur_and_low_light(tmp_path):
    plant(tmp_path, *PROMPTIR)
    found = open_layout("promptir-5", tmp_path)
    assert found.kinds == ("noise15", "noise25", "noise50", "rain", "haze", "blur", "lowlight")
    assert kinds_of(found) == {**NOISY, "rain": 120, "haze": 2, "blur": 5, "lowlight": 20}


@pytest.mark.parametrize("top", ["{}", "CDD-11_{}"])
def test_cdd11_has_kinds_as_degradations_are_called(tmp_path, top):
    folders = ["haze", "haze_rain", "haze_snow", "low", "low_haze", "low_haze_rain", "low_haze_snow", "low_rain"]
    for split, names in (("train", ["00001.png", "00002.png"]), ("test", ["00003.png"])):
        for folder in ["clear", *folders, "low_snow", "rain", "snow"]:
            plant(tmp_path / top.format(split), *(f"{folder}/{name}" for name in names))
    found = open_layout("cdd11", tmp_path)
    assert found.kinds == CDD11
    assert kinds_of(found) == dict.fromkeys(CDD11, 2)
    assert kinds_of(open_layout("cdd11", tmp_path, split="test")) == dict.fromkeys(CDD11, 1)


def test_test_splits_have_each_image_once(tmp_path):
    plant(tmp_path / "test", "denoise/bsd68/1.jpg", "denoise/bsd68/2.jpg", "derain/Rain100L/input/1.png")
    plant(tmp_path / "test", "derain/Rain100L/target/1.png", "dehaze/input/0001_0.8_0.2.jpg", "dehaze/target/0001.png")
    noise = {"noise15": 2, "noise25": 2, "noise50": 2}
    assert kinds_of(open_layout("airnet-3", tmp_path, split="test")) == {**noise, "rain": 1, "haze": 1}
    for folder in ("deblur/gopro", "enhance/lol"):
        plant(tmp_path / "test" / folder, "input/1.png", "target/1.png")
    found = kinds_of(open_layout("promptir-5", tmp_path, split="test"))
    assert found == {**noise, "rain": 1, "haze": 1, "blur": 1, "lowlight": 1}


def test_stablesr_has_a_test_split_alone(tmp_path):
    for name in ("RealSRVal_crop128/test_{}R", "DrealSRVal_crop128/test_{}R"):
        plant(tmp_path / "StableSR_testsets", f"{name.format('H')}/1.png", f"{name.format('L')}/1.png")
    plant(tmp_path / "StableSR_testsets", "DIV2K_V2_val/gt/1.png", "DIV2K_V2_val/lq/1.png")
    found = open_layout("stablesr", tmp_path, split="test")
    assert kinds_of(found) == {"realsr": 1, "drealsr": 1, "div2k": 1}
    with pytest.raises(ValueError, match="split of 'stablesr' must be one of test, got 'train'"):
        open_layout("stablesr", tmp_path)


def test_parts_of_a_collection_need_their_own_folders_alone(tmp_path):
    plant(tmp_path, "LOL/test/low/1.png", "LOL/test/high/1.png")
    base, parts = find_parts("diffuir-5", tmp_path, "test", kinds=["lowlight"])
    assert base == tmp_path and [(part.kind, part.set) for part in parts] == [("lowlight", "LOL")]
    with pytest.raises(ValueError, match=r"kinds of 'diffuir-5' must be among rain, lowlight, .*, got 'fog'"):
        find_parts("diffuir-5", tmp_path, "test", kinds=["fog"])
    with pytest.raises(FileNotFoundError, match=r"Snow100K/test/Snow100K-L/gt/ .*<- missing"):
        find_parts("diffuir-5", tmp_path, "test")


def test_div2k_clean_or_reduced(tmp_path):
    plant(tmp_path / "DIV2K", "DIV2K_train_HR/0001.png", "DIV2K_valid_HR/0801.png")
    plant(tmp_path / "DIV2K", "DIV2K_train_LR_bicubic/X4/0001x4.png", side=2)
    assert not open_layout("div2k", tmp_path).paired
    assert len(open_layout("div2k", tmp_path, split="test")) == 1
    sample = open_layout("div2k", tmp_path, factor=4).read(0, 0, 8)
    assert sample.degraded.shape == (3, 8, 8)


def test_realsr_and_drealsr(tmp_path):
    for camera in ("Canon", "Nikon"):
        names = [f"{camera}_00{i}_{which}.png" for i in (1, 2) for which in ("LR4", "HR")]
        plant(tmp_path / "RealSR(V3)", *(f"{camera}/Train/4/{name}" for name in names))
    found = open_layout("realsr", tmp_path)
    assert (len(found), found.kinds) == (4, ("x4",))
    assert [int(found.read(number, 0, 4).degraded.max()) for number in range(4)] == [1, 3, 1, 3]
    assert [int(found.read(number, 0, 4).clean.max()) for number in range(4)] == [2, 4, 2, 4]
    plant(tmp_path, "Train_x4/train_HR/DSC_1_x4_2.png", "Test_x2/test_HR/P_x2.png")
    plant(tmp_path, "Train_x4/train_LR/DSC_1_x1_2.png", "Test_x2/test_LR/P_x1.png", side=4)
    assert torch.equal(open_layout("drealsr", tmp_path).read(0, 0, 8).degraded, torch.ones(3, 8, 8, dtype=torch.uint8))
    assert len(open_layout("drealsr", tmp_path, split="test", factor=2)) == 1


def test_a_wrong_root_shows_what_is_expected_and_what_is_there(tmp_path):
    plant(tmp_path, *PROMPTIR[:-2])
    plant(tmp_path, *(f"other{i}/a.png" for i in range(20)))
    with pytest.raises(FileNotFoundError) as raised:
        open_layout("promptir-5", tmp_path)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{str(tmp_path)!r} is not laid out as 'promptir-5', which has"
    assert [line.split()[0] for line in lines if line.endswith("<- missing")] == ["Enhance/gt/", "Enhance/low/"]
    assert "  Derain/rainy/      degraded: rain-1.png" in lines
    assert lines[-1].startswith(f"in {str(tmp_path)!r} there is: Deblur/, Dehaze/, Denoise/, Derain/, other0/")
    assert lines[-1].endswith(" and 12 more")
    with pytest.raises(FileNotFoundError, match=r"train' is not laid out as 'cdd11'[\s\S]*low_haze_snow/ .*<- missing"):
        open_layout("cdd11", tmp_path)


def test_errors_name_the_argument(tmp_path):
    for call, kind, words in [
        (
            lambda: open_layout("imagenet", tmp_path),
            ValueError,
            r"name must be one of folder, paired, diffuir-5, .*'imag",
        ),
        (
            lambda: open_layout("cdd11", tmp_path, split="val"),
            ValueError,
            r"split of 'cdd11' must be one of train, test",
        ),
        (
            lambda: open_layout("folder", tmp_path, split="test"),
            ValueError,
            r"split of 'folder' must be one of train, g",
        ),
        (
            lambda: open_layout("realsr", tmp_path, factor=8),
            ValueError,
            r"factor of 'realsr' must be None or 4 or 2 or 3",
        ),
        (lambda: open_layout("cdd11", tmp_path, factor=2), ValueError, r"factor of 'cdd11' must be None, got 2"),
        (lambda: open_layout("cdd11", tmp_path / "no"), FileNotFoundError, r"no' does not exist"),
        (lambda: open_layout("paired", tmp_path), FileNotFoundError, r"input/ .*missing[\s\S]*there is: nothing"),
    ]:
        with pytest.raises(kind, match=words):
            call()
    plant(tmp_path, "input/1.png", "input/2.png", "target/1.png")
    with pytest.raises(ValueError, match=r"1 of 2 files .* 2\.png; .*partial=True"):
        open_layout("paired", tmp_path)
    assert len(open_layout("paired", tmp_path, partial=True)) == 1


def test_the_page_of_the_docs_tells_all_of_them():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in ("folder", "paired", *LAYOUTS, *RULES):
        assert f"| `{name}` |" in page
    for name in ("diffuir-5", "airnet-3", "promptir-5", "realsr", "drealsr"):
        for part in LAYOUTS[name].parts("train", LAYOUTS[name].factors[0]):
            assert f"`{part.target}`" in page
            assert part.input is None or f"`{part.input}`" in page
