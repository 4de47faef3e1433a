"""Training images: crops of files and of pairs, each a function of its number and seed."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data.crops import View, reflected
from bdg_fast.data.datasets import ImageFolder, Mixture, NoisyFolder, PairedFolder, SampleError
from bdg_fast.data.pairing import RULES

HEIGHT, WIDTH = 13, 17


def picture(tag, height=HEIGHT, width=WIDTH):
    """Every pixel tells its row, column and image."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, tag)], -1)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    for tag in range(5):
        write(tmp_path / "clean" / f"deep{tag % 2}" / f"{tag}.png", picture(tag))
    return tmp_path / "clean"


def test_a_folder_gives_crops_of_its_files(folder):
    images = ImageFolder(folder, flip=False, rotate=False)
    assert (len(images), images.paired, images.kinds) == (5, False, ())
    assert [path.stem for path in images.files] == ["0", "2", "4", "1", "3"]
    tops = set()
    for seed in range(40):
        sample = images.read(2, seed, 8)
        assert sample.clean.dtype == torch.uint8
        rows, columns, tag = sample.clean
        top, left = int(rows[0, 0]), int(columns[0, 0])
        assert torch.equal(sample.clean, torch.from_numpy(picture(4))[top : top + 8, left : left + 8].permute(2, 0, 1))
        assert (int(tag[0, 0]), sample.degraded, sample.kind, sample.number, sample.seed) == (4, None, -1, 2, seed)
        tops.add((top, left))
        assert torch.equal(images.read(2, seed, 8).clean, sample.clean)
    assert {top for top, _ in tops} == set(range(HEIGHT - 8 + 1))
    assert {left for _, left in tops} == set(range(WIDTH - 8 + 1))


def test_mirrored_and_turned_all_eight_ways(folder):
    whole = torch.from_numpy(picture(0, 9, 9)).permute(2, 0, 1)
    wanted = {side.rot90(turn, (1, 2)).numpy().tobytes() for side in (whole, whole.flip(2)) for turn in range(4)}
    write(folder.parent / "one" / "a.png", picture(0, 9, 9))
    seen = [ImageFolder(folder.parent / "one").read(0, seed, 9).clean for seed in range(80)]
    assert {image.numpy().tobytes() for image in seen} == wanted
    assert all(image.is_contiguous() for image in seen)
    mirrored = [ImageFolder(folder.parent / "one", rotate=False).read(0, seed, 9).clean for seed in range(20)]
    assert {image.numpy().tobytes() for image in mirrored} == {x.numpy().tobytes() for x in (whole, whole.flip(2))}


@pytest.mark.parametrize("crop", [20, 60])
def test_small_images_are_continued_by_reflection(folder, crop):
    found = ImageFolder(folder, flip=False, rotate=False).read(0, 1, crop).clean
    wanted = np.pad(picture(0), ((0, crop - HEIGHT), (0, crop - WIDTH), (0, 0)), "reflect")
    assert np.array_equal(found.numpy(), wanted.transpose(2, 0, 1))


def test_reflection_of_one_pixel():
    assert reflected(1, 4).tolist() == [0, 0, 0, 0]
    assert reflected(2, 5).tolist() == [0, 1, 0, 1, 0]


def test_gray_and_deep_files_become_rgb_of_8_bits(tmp_path):
    values = np.array([[0, 128, 129, 385], [386, 65535, 65407, 65406]], np.uint16)
    write(tmp_path / "deep.png", values)
    found = ImageFolder(tmp_path, flip=False, rotate=False).read(0, 0, 2)
    assert found.clean.shape == (3, 2, 2)
    at = View.drawn(0, 2, 4, 2, flip=False, rotate=False).left
    wanted = np.rint(values / 257).astype(np.uint8)[:, at : at + 2]
    for channel in found.clean:
        assert np.array_equal(channel.numpy(), wanted)


def test_pairs_are_cropped_and_turned_alike(tmp_path):
    for tag in range(3):
        write(tmp_path / "target" / f"{tag}.png", picture(tag))
        write(tmp_path / "input" / f"{tag}.bmp", picture(100 + tag))
    pairs = PairedFolder(tmp_path / "input", tmp_path / "target", kind="rain")
    assert (len(pairs), pairs.kinds, pairs.unmatched) == (3, ("rain",), ())
    for seed in range(12):
        sample = pairs.read(seed % 3, seed, 15)
        assert torch.equal(sample.clean[:2], sample.degraded[:2])
        assert (sample.degraded[2] == 100 + sample.clean[2]).all()
        assert sample.kind == 0
    assert pairs.name(1) == str(tmp_path / "input" / "1.bmp")


@pytest.mark.parametrize(
    ("rule", "input", "target"),
    [
        ("same", "12", "12"),
        ("scale", "0801x4", "0801"),
        ("scale", "0801_x2", "0801"),
        ("rain100", "rain-001", "norain-001"),
        ("reside", "0001_0.8_0.04", "0001"),
        ("realsr", "Canon_001_LR4", "Canon_001_HR"),
        ("drealsr", "DSC_01_x1_3", "DSC_01_x4_3"),
        ("drealsr", "DSC_01_x1", "DSC_01_x3"),
    ],
)
def test_names_that_belong_together(tmp_path, rule, input, target):
    write(tmp_path / "in" / f"{input}.png", picture(1))
    write(tmp_path / "out" / f"{target}.png", picture(2))
    write(tmp_path / "out" / "other.png", picture(3))
    for match in (rule, "auto"):
        pairs = PairedFolder(tmp_path / "in", tmp_path / "out", match=match)
        assert [(one.stem, other.stem) for one, other in pairs.pairs] == [(input, target)]
        assert [path.name for path in pairs.unmatched] == ["other.png"]
    assert rule in RULES


def test_pairs_in_one_folder(tmp_path):
    for name in ("a_LR4", "a_HR", "b_LR4", "b_HR", "c_HR"):
        write(tmp_path / f"{name}.png", picture(1))
    pairs = PairedFolder(tmp_path, tmp_path, match="realsr")
    assert [(one.stem, other.stem) for one, other in pairs.pairs] == [("a_LR4", "a_HR"), ("b_LR4", "b_HR")]
    assert [path.stem for path in pairs.unmatched] == ["c_HR"]


def test_files_without_a_clean_one_are_named(tmp_path):
    for tag in range(9):
        write(tmp_path / "in" / f"{tag}.png", picture(tag))
    write(tmp_path / "out" / "3.png", picture(3))
    with pytest.raises(ValueError, match=r"8 of 9 files .* by the rule 'same': 0\.png, 1\.png, .* and 3 more"):
        PairedFolder(tmp_path / "in", tmp_path / "out")
    pairs = PairedFolder(tmp_path / "in", tmp_path / "out", partial=True)
    assert len(pairs) == 1
    assert len(pairs.unmatched) == 8
    write(tmp_path / "out" / "3.bmp", picture(3))
    with pytest.raises(ValueError, match=r"3\.png' belongs to several clean files .*3\.bmp.*3\.png"):
        PairedFolder(tmp_path / "in", tmp_path / "out", partial=True)


def test_folders_of_the_same_name_go_first(tmp_path):
    for scene in ("one", "two"):
        write(tmp_path / "in" / scene / "1.png", picture(1))
        write(tmp_path / "out" / scene / "1.png", picture(1))
    pairs = PairedFolder(tmp_path / "in", tmp_path / "out").pairs
    assert [(one.parent.name, other.parent.name) for one, other in pairs] == [("one", "one"), ("two", "two")]


def test_smaller_degraded_images_are_enlarged(tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8)
    small = np.array(Image.fromarray(large).resize((12, 9), Image.Resampling.BICUBIC))
    write(tmp_path / "hr" / "a.png", large)
    write(tmp_path / "lr" / "ax4.png", small)
    pairs = PairedFolder(tmp_path / "lr", tmp_path / "hr", match="scale")
    wanted = np.array(Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    for seed in range(8):
        view = View.drawn(seed, 36, 48, 20, flip=True, rotate=True)
        sample = pairs.read(0, seed, 20)
        assert torch.equal(sample.clean, view.of(large.transpose(2, 0, 1)))
        assert (sample.degraded.int() - view.of(wanted).int()).abs().max() <= 1


def test_unusable_files_are_named(tmp_path):
    write(tmp_path / "in" / "a.png", picture(1, 6, 6))
    write(tmp_path / "out" / "a.png", picture(1, 13, 12))
    with pytest.raises(SampleError, match=r"in/a\.png: 6 x 6 pixels do not belong to the 13 x 12 of .*out/a\.png"):
        PairedFolder(tmp_path / "in", tmp_path / "out").read(0, 0, 4)
    (tmp_path / "out" / "a.png").write_text("no image")
    with pytest.raises(SampleError, match=r"^\S+out/a\.png: cannot identify") as raised:
        PairedFolder(tmp_path / "in", tmp_path / "out").read(0, 0, 4)
    assert raised.value.file == str(tmp_path / "out" / "a.png")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_noise_is_drawn_from_the_sample(tmp_path):
    write(tmp_path / "a.png", np.full((64, 64, 3), 120, np.uint8))
    noisy = NoisyFolder(tmp_path, 15)
    assert (noisy.paired, noisy.kinds) == (True, ("noise15",))
    one, again, other = (noisy.read(0, seed, 64) for seed in (1, 1, 2))
    assert torch.equal(one.degraded, again.degraded)
    assert not torch.equal(one.degraded, other.degraded)
    difference = one.degraded.double() - one.clean.double()
    assert abs(difference.mean()) < 0.5
    assert abs(difference.std() - 15) < 0.5


def test_a_mixture_holds_to_its_weights(folder):
    small = ImageFolder(sorted(folder.rglob("*.png"))[:2], kind="snow")
    large = ImageFolder(folder, kind="rain")
    mixture = Mixture([small, large, small], weights=[2, 1, 1])
    assert mixture.kinds == ("snow", "rain")
    assert len(mixture) == 10 + 5 + 5
    samples = [mixture.read(number, 0, 4) for number in range(len(mixture))]
    assert [sample.kind for sample in samples] == [0] * 10 + [1] * 5 + [0] * 5
    assert [sample.number for sample in samples] == list(range(20))
    assert [int(sample.clean[2, 0, 0]) for sample in samples[:5]] == [0, 2, 0, 2, 0]
    assert [int(sample.clean[2, 0, 0]) for sample in samples[10:15]] == [0, 2, 4, 1, 3]
    assert [mixture.name(number) for number in (1, 12, 19)] == [small.name(1), large.name(2), small.name(0)]
    assert small.name(1).endswith("deep0/2.png")
    assert len(Mixture([small, large])) == 7
    assert Mixture([ImageFolder(folder)]).read(3, 0, 4).kind == -1


def test_errors_name_the_argument(folder, tmp_path):
    images = ImageFolder(folder)
    (tmp_path / "empty").mkdir()
    for call, kind, words in [
        (lambda: ImageFolder(tmp_path / "nowhere"), FileNotFoundError, r"nowhere' does not exist: a folder"),
        (lambda: ImageFolder(folder / "deep0" / "0.png"), FileNotFoundError, r"0\.png' is no folder"),
        (lambda: ImageFolder(tmp_path / "empty"), FileNotFoundError, r"no image in folder"),
        (lambda: ImageFolder([]), ValueError, r"root must be .* empty sequence"),
        (lambda: images.read(5, 0, 4), IndexError, r"number must be in 0\.\.4, got 5"),
        (lambda: images.read(0, 0, 0), ValueError, r"crop must be at least 1, got 0"),
        (lambda: NoisyFolder(folder, 0), ValueError, r"sigma must be above 0"),
        (lambda: PairedFolder(folder, folder, match="odd"), ValueError, r"match must be 'auto' or one of same"),
        (lambda: Mixture([]), ValueError, r"parts must be data sets"),
        (lambda: Mixture([images, NoisyFolder(folder, 9)]), ValueError, r"ImageFolder without.*NoisyFolder with"),
        (lambda: Mixture([images], [0]), ValueError, r"weights must be 1 positive numbers"),
        (lambda: Mixture([images], [1, 2]), ValueError, r"weights must be 1 positive numbers"),
    ]:
        with pytest.raises(kind, match=words):
            call()
