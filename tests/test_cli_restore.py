"""`bdg-fast restore` as a user meets it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdg_fast.cli import main

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, size in (("a.png", (20, 31)), ("deep/b.jpg", (33, 18)), ("c.webp", (16, 16))):
        Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    return folder


def run(*arguments):
    return main(["restore", *map(str, arguments), "--device", "cpu"])


def test_a_folder_keeps_its_layout(photos, tmp_path, checkpoint, capsys):
    assert run(photos, tmp_path / "out", "--checkpoint", checkpoint) == 0
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "a.png", "c.webp", "deep/b.jpg",
    ]  # fmt: skip
    assert Image.open(tmp_path / "out" / "deep" / "b.jpg").size == (18, 33)
    assert "3 of 3 images" in capsys.readouterr().out


def test_one_file_to_one_file(photos, tmp_path, checkpoint):
    assert run(photos / "a.png", tmp_path / "x.png", "--checkpoint", checkpoint, "--compare") == 0
    assert Image.open(tmp_path / "x.png").size == (31, 20)
    assert Image.open(tmp_path / "x_compare.png").size == (62, 20)
    assert run(photos / "a.png", photos / "c.webp", tmp_path / "out", "--checkpoint", checkpoint) == 0
    assert (tmp_path / "out" / "a.png").exists() and (tmp_path / "out" / "c.webp").exists()


def test_bad_files_are_named_and_the_rest_is_done(photos, tmp_path, checkpoint, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "empty.jpg").write_bytes(b"")
    assert run(photos, tmp_path / "out", "--checkpoint", checkpoint) == 1
    captured = capsys.readouterr()
    assert "not restored" in captured.err and "broken.png" in captured.err and "empty.jpg" in captured.err
    assert "3 of 5 images" in captured.out


def test_a_second_run_does_what_is_missing(photos, tmp_path, checkpoint, capsys):
    arguments = (photos, tmp_path / "out", "--checkpoint", checkpoint)
    assert run(*arguments) == 0
    (tmp_path / "out" / "a.png").unlink()
    before = (tmp_path / "out" / "c.webp").stat().st_mtime_ns
    assert run(*arguments) == 0
    assert "2 of 3 are there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").exists()
    assert (tmp_path / "out" / "c.webp").stat().st_mtime_ns == before
    assert run(*arguments) == 0
    assert run(*arguments, "--batch", "0") == 2
    assert run(*arguments, "--force") == 0
    assert (tmp_path / "out" / "c.webp").stat().st_mtime_ns > before


def test_results_do_not_depend_on_the_run(photos, tmp_path, checkpoint):
    run(photos, tmp_path / "all", "--checkpoint", checkpoint)
    run(photos / "a.png", tmp_path / "alone.png", "--checkpoint", checkpoint)
    assert np.array_equal(
        np.array(Image.open(tmp_path / "all" / "a.png")), np.array(Image.open(tmp_path / "alone.png"))
    )


def test_inputs_are_never_replaced(photos, tmp_path, checkpoint, capsys):
    content = (photos / "a.png").read_bytes()
    assert run(photos, photos, "--checkpoint", checkpoint, "--force") == 2
    assert "must not replace an input" in capsys.readouterr().err
    assert run(photos / "a.png", photos / "a.png", "--checkpoint", checkpoint, "--force") == 2
    (tmp_path / "link").symlink_to(photos)
    assert run(photos, tmp_path / "link", "--checkpoint", checkpoint, "--force") == 2
    assert (photos / "a.png").read_bytes() == content


def test_a_failed_write_is_named_and_leaves_nothing(photos, tmp_path, checkpoint, capsys, monkeypatch):
    save = Image.Image.save

    def full(self, file, **options):
        if str(file).endswith(".webp"):
            raise OSError("No space left on device")
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(photos, tmp_path / "out", "--checkpoint", checkpoint) == 1
    captured = capsys.readouterr()
    assert "c.webp: not written: No space" in captured.err and "2 of 3 images" in captured.out
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == ["a.png", "b.jpg"]


def test_comparisons_are_added_to_what_is_done_and_replace_nothing(photos, tmp_path, checkpoint, capsys):
    out = tmp_path / "out"
    assert run(photos, out, "--checkpoint", checkpoint) == 0
    assert run(photos, out, "--checkpoint", "not needed", "--compare") == 0
    found = np.array(Image.open(out / "a_compare.png"))
    assert np.array_equal(found[:, 31:], np.array(Image.open(out / "a.png")))
    assert Image.open(out / "deep" / "b_compare.png").size == (36, 33)
    (out / "a_compare.png").write_text("mine")
    (out / "a.png").unlink()
    capsys.readouterr()
    assert run(photos, out, "--checkpoint", checkpoint, "--compare") == 0
    assert "3 of 3 comparisons are there already" in capsys.readouterr().out
    assert (out / "a.png").exists() and (out / "a_compare.png").read_text() == "mine"
    assert run(photos, out, "--checkpoint", checkpoint, "--compare", "--force") == 0
    assert Image.open(out / "a_compare.png").size == (62, 20)


def test_names_of_the_most_bytes(tmp_path, checkpoint):
    name = "n" * 251 + ".png"
    Image.new("RGB", (16, 16)).save(tmp_path / name)
    assert run(tmp_path / name, tmp_path / "out", "--checkpoint", checkpoint) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_lost_transparency_is_told_once(photos, tmp_path, checkpoint, capsys):
    for name in ("x.gif", "y.gif"):
        Image.new("RGBA", (16, 16), (90, 90, 90, 0)).save(photos / name)
    assert run(photos, tmp_path / "out", "--checkpoint", checkpoint) == 0
    assert capsys.readouterr().err.count("transparency lost in 2, as ") == 1


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["a.png"], "x.avif", "OUT must end in / to be a folder, or tell a format by .png"),
        (["bare"], "out", "OUT must tell a format by .*/out/bare"),
        (["a.png", "c.webp"], "file", "OUT must be a folder for several images, got .*/file"),
        (["a.png"], "file", "OUT must be a folder, got .*/file"),
        (["a.png"], "file/deep", "OUT must be a folder, or one that can be made: .*/file"),
    ],
)
def test_outputs_that_cannot_be_are_told_before_any_work(
    photos, tmp_path, checkpoint, capsys, names, out, message, monkeypatch
):
    monkeypatch.setattr("bdg_fast.Restorer.stream", None)
    (tmp_path / "file").touch()
    Image.new("RGB", (9, 9)).save(photos / "bare", format="png")
    assert run(*(photos / name for name in names), tmp_path / out, "--checkpoint", checkpoint) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.avif").exists()


def test_a_single_file_to_a_folder_with_a_dot(photos, tmp_path, checkpoint):
    assert run(photos / "a.png", f"{tmp_path}/out.v2/", "--checkpoint", checkpoint) == 0
    assert (tmp_path / "out.v2" / "a.png").exists()


def test_without_a_checkpoint_it_is_the_one_that_comes_along(photos, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("bdg_fast.models.SHIPPED", Path(checkpoint))
    assert run(photos / "a.png", tmp_path / "shipped.png") == 0
    assert run(photos / "a.png", tmp_path / "named.png", "--checkpoint", checkpoint) == 0
    assert (tmp_path / "shipped.png").read_bytes() == (tmp_path / "named.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere.pt"], "no checkpoint at 'nowhere.pt'"),
        (["--checkpoint", "MODEL", "--steps", "0"], "steps must be in 1..1000, got 0"),
        (["--checkpoint", "MODEL", "--tile", "10"], "tile must be more than twice"),
        (["--checkpoint", "MODEL", "--batch", "0"], "--batch must be at least 1, got 0"),
        (
            ["--checkpoint", "MODEL", "--seed", str(2**64)],
            "seed must be an integer of 64 bits, got 1844674407",
        ),
        (["--checkpoint", "MODEL", "--device", "toaster"], None),
        (
            ["--checkpoint", "MODEL", "--device", "meta", "--backend", "compiled"],
            "got 'compiled': torch.compile is used on",
        ),
    ],
)
def test_bad_usage_is_explained(photos, tmp_path, checkpoint, capsys, arguments, message):
    arguments = [checkpoint if argument == "MODEL" else argument for argument in arguments]
    assert main(["restore", str(photos), str(tmp_path / "out"), "--device", "cpu", *arguments]) == 2
    if message:
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_inputs_need_a_folder(photos, tmp_path, checkpoint, capsys):
    assert run(photos, tmp_path / "x.png", "--checkpoint", checkpoint) == 2
    assert "OUT must be a folder for several images" in capsys.readouterr().err
    twice = photos / "deep" / "a.png"
    Image.new("RGB", (9, 9)).save(twice)
    assert run(photos / "a.png", twice, tmp_path / "out", "--checkpoint", checkpoint) == 2
    assert "OUT would hold" in capsys.readouterr().err


def test_results_inside_the_input_folder_are_no_inputs(photos, checkpoint, capsys):
    for _ in range(2):
        assert run(photos, photos / "restored", "--checkpoint", checkpoint, "--compare") == 0
    assert "3 of 3 are there already" in capsys.readouterr().out
    assert not (photos / "restored" / "restored").exists()


def test_comparisons_replace_no_input_either(photos, tmp_path, checkpoint, capsys):
    (photos / "a.png").rename(photos / "x_compare.png")
    (photos / "c.webp").rename(photos / "x.webp")
    sources = (photos / "x.webp", photos / "x_compare.png")
    content = sources[1].read_bytes()
    assert run(*sources, photos, "--checkpoint", checkpoint, "--compare") == 2
    assert "must not replace an input" in capsys.readouterr().err
    assert sources[1].read_bytes() == content


def test_formats_without_orientation_are_written_upright(tmp_path, checkpoint):
    exif = Image.Exif()
    exif[0x0112] = 6
    dark = np.zeros((20, 30, 3), np.uint8)
    Image.fromarray(dark).save(tmp_path / "a.jpg", exif=exif)
    assert run(tmp_path / "a.jpg", tmp_path / "b.bmp", "--checkpoint", checkpoint, "--compare") == 0
    assert Image.open(tmp_path / "b.bmp").size == (20, 30)
    assert Image.open(tmp_path / "b_compare.png").size == (40, 30)
    assert run(tmp_path / "a.jpg", tmp_path / "c.jpg", "--checkpoint", checkpoint, "--compare") == 0
    assert Image.open(tmp_path / "c.jpg").size == (30, 20)
    assert Image.open(tmp_path / "c_compare.png").size == (40, 30)


def test_batches_of_one_size(photos, tmp_path, checkpoint):
    for i in range(5):
        Image.fromarray(RNG.integers(0, 256, (20, 31, 3), np.uint8)).save(photos / f"{i}.png")
    assert run(photos, tmp_path / "out", "--checkpoint", checkpoint, "--batch", "3") == 0
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 8


def test_metadata_survives(tmp_path, checkpoint):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif, icc_profile=b"icc")
    assert run(tmp_path / "a.jpg", tmp_path / "b.jpg", "--checkpoint", checkpoint) == 0
    restored = Image.open(tmp_path / "b.jpg")
    assert restored.size == (30, 20)
    assert restored.getexif()[0x0112] == 6
    assert restored.info["icc_profile"] == b"icc"


def test_the_output_may_lie_above_the_input(photos, tmp_path, checkpoint, capsys):
    assert run(photos, tmp_path, "--checkpoint", checkpoint) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    assert (tmp_path / "deep" / "b.jpg").exists()


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGBA", "L"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "bmp", "gif"])
def test_every_mode_in_every_format(tmp_path, checkpoint, mode, suffix):
    gray = np.full((16, 16), 0.4)
    picture = Image.fromarray((gray * 65535).astype(np.uint16))
    if mode != "I;16":
        picture = Image.fromarray((gray * 255).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / "deep.png", "--checkpoint", checkpoint) == 0
    assert run(tmp_path / "in.png", tmp_path / f"out.{suffix}", "--checkpoint", checkpoint) == 0
    means = []
    for name in ("deep.png", f"out.{suffix}"):
        file = Image.open(tmp_path / name)
        pixels = np.array(file if file.mode.startswith("I") else file.convert("L"))
        means.append(pixels.mean() / (65535 if file.mode.startswith("I") else 255))
    assert means[0] == pytest.approx(means[1], abs=0.02)
