"""`bdg-fast evaluate` as a user meets it: protocols, reports, comparisons, what fails and what goes on."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import UNet
from bdg_fast.cli import main
from bdg_fast.evaluation import cases as cases_of
from bdg_fast.evaluation.cases import Preparation, collection_cases, cut, equalized, paired_cases, photograph_cases
from bdg_fast.evaluation.measures import Measure
from bdg_fast.evaluation.protocols import PROTOCOLS
from bdg_fast.evaluation.published import PUBLISHED
from bdg_fast.evaluation.restoration import versions

SIDE = 24


def plant(root, *names, side=SIDE, noise=0.0, seed=0):
    """Image files: smooth, of different colours, with noise where it is asked for."""
    draw = np.random.default_rng(seed)
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (side, side + 3) if isinstance(side, int) else side
        ramp = np.linspace(40, 200, height * width * 3).reshape(height, width, 3) + 7 * number
        Image.fromarray(np.clip(ramp + noise * draw.standard_normal(ramp.shape), 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def pairs(tmp_path):
    """Five noisy images with their clean ones, and results of another: less noise in all but one."""
    names = [f"{number}.png" for number in range(5)]
    plant(tmp_path / "clean", *names)
    plant(tmp_path / "noisy", *names, noise=20)
    plant(tmp_path / "theirs", *names, noise=5, seed=1)
    plant(tmp_path / "worse", names[0], noise=60)
    (tmp_path / "worse" / "0.png").rename(tmp_path / "theirs" / "0.png")
    return tmp_path


def run(*arguments):
    return main(["evaluate", *map(str, arguments), "--device", "cpu"])


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pairs_without_a_checkpoint_score_the_degraded_images(pairs, capsys):
    assert run("--input", pairs / "noisy", "--target", pairs / "clean") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| images | 5"))
    mean, low, high = (
        float(part.strip("() |to")) for part in row.split("|")[3].replace("to", "").replace("(", "").split()
    )
    assert low < mean < high and 20 < mean < 24
    assert "published" not in out and not (pairs / "scores").exists()


def test_two_methods_are_compared_image_by_image(pairs, checkpoint, capsys):
    out = pairs / "report"
    arguments = ("--input", pairs / "noisy", "--target", pairs / "clean", "--output", out)
    arguments += ("--checkpoint", f"ours={checkpoint}", "--results", pairs / "theirs", "--batch", 2)
    assert run(*arguments, "--pictured", 1) == 0
    assert {file.name for file in out.iterdir()} >= {"report.md", "report.json", "images.csv", "means.csv"}
    images = {(row["method"], row["image"]): float(row["psnr"]) for row in table(out / "images.csv")}
    assert len(images) == 15
    found = [row for row in table(out / "differences.csv") if (row["before"], row["after"]) == ("input", "theirs")]
    assert len(found) == 5
    for row in found:
        gain = images["theirs", row["image"]] - images["input", row["image"]]
        assert float(row["psnr"]) == pytest.approx(gain, abs=1e-3) and (gain < 0) == (row["image"] == "0")
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(content["metrics"]) == ["psnr", "ssim"] and not content["failed"] and not content["unavailable"]
    one = next(
        each
        for each in content["differences"]
        if (each["before"], each["after"], each["metric"], each["level"]) == ("input", "theirs", "psnr", "degradation")
    )
    assert one["mean"] == pytest.approx(sum(float(row["psnr"]) for row in found) / 5, abs=1e-3)
    assert one["low"] < one["mean"] < one["high"]
    picture = Image.open(out / "theirs_minus_ours.png")
    assert picture.width >= 4 * (SIDE + 3) and picture.height >= 2 * SIDE
    # worst below best: the second row's result is the noisy one
    rows = np.array(Image.open(out / "theirs_minus_input.png").convert("L"), dtype=float)
    result = [rows[top : top + SIDE, SIDE + 9 : 2 * SIDE + 12] for top in (36, 36 + SIDE + 24)]
    assert np.abs(np.diff(result[0])).mean() < np.abs(np.diff(result[1])).mean() / 2
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "## theirs minus ours, on the same images" in text and "+" in text


def test_networks_take_as_many_steps_as_they_were_trained_for(pairs, checkpoint):
    once = pairs / "once"
    unet = UNet.from_pretrained(checkpoint)
    unet.config = replace(unet.config, sampler_steps=1)
    unet.save_pretrained(once)
    data = ("--input", pairs / "noisy", "--target", pairs / "clean", "--pictured", 0)
    assert run(*data, "--checkpoint", f"a={checkpoint}", "--checkpoint", f"b={once}", "--output", pairs / "own") == 0
    assert run(*data, "--checkpoint", f"b={checkpoint}", "--steps", 1, "--output", pairs / "one") == 0
    means = [
        {row["method"]: row["mean"] for row in table(pairs / name / "means.csv") if row["metric"] == "psnr"}
        for name in ("own", "one")
    ]
    assert means[0]["b"] == means[1]["b"] != means[0]["a"]
    assert "steps as trained" in (pairs / "own" / "report.md").read_text()


def test_a_second_run_measures_what_is_missing(pairs, checkpoint, capsys):
    arguments = ("--input", pairs / "noisy", "--target", pairs / "clean", "--output", pairs / "report")
    arguments += ("--checkpoint", f"ours={checkpoint}", "--pictured", 0)
    assert run(*arguments, "--limit", 3) == 0
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "ours: 3 of 5 are there already" in capsys.readouterr().out
    first = (pairs / "report" / "images.csv").read_text()
    assert run(*arguments, "--force") == 0
    assert "already" not in capsys.readouterr().out
    assert (pairs / "report" / "images.csv").read_text() == first
    assert run(*arguments, "--crop", 2) == 0  # other settings, other scores
    assert "already" not in capsys.readouterr().out
    assert (pairs / "report" / "images.csv").read_text() != first
    (pairs / "report" / "scores" / "ours.json").write_text("{")
    assert run(*arguments, "--crop", 2) == 0
    captured = capsys.readouterr().out
    assert "input: 5 of 5" in captured and "ours:" not in captured


def test_measuring_a_part_forgets_nothing_of_the_whole(pairs, capsys):
    arguments = ("--input", pairs / "noisy", "--target", pairs / "clean", "--output", pairs / "report")
    assert run(*arguments) == run(*arguments, "--limit", 2) == 0
    assert "input: 2 of 2 are there already" in capsys.readouterr().out
    assert run(*arguments) == 0
    assert "input: 5 of 5 are there already" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(pairs, monkeypatch, capsys):
    measured = []

    def slow(restored, clean):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(
        "bdg_fast.cli.evaluate.open_measures", lambda *names, **device: ([Measure("psnr", False, slow)], {})
    )
    arguments = ("--input", pairs / "noisy", "--target", pairs / "clean", "--output", pairs / "report")
    assert run(*arguments) == 130
    assert run(*arguments) == 0
    assert "input: 2 of 5 are there already" in capsys.readouterr().out and len(measured) == 3 + 3


def test_what_fails_is_named_and_the_rest_is_done(pairs, checkpoint, capsys):
    (pairs / "noisy" / "1.png").write_bytes(b"no picture")
    plant(pairs / "noisy", "alone.png")
    (pairs / "theirs" / "2.png").unlink()
    plant(pairs / "theirs", "3.png", side=10)
    (pairs / "broken.pt").write_bytes(b"no weights")
    code = run(
        *("--input", pairs / "noisy", "--target", pairs / "clean", "--match", "same", "--results", pairs / "theirs"),
        *("--checkpoint", f"ours={checkpoint}", "--checkpoint", pairs / "broken.pt", "--output", pairs / "report"),
    )
    assert code == 1
    told = capsys.readouterr().err.splitlines()
    for method, words in [
        ("", "alone.png: no clean image in"),
        ("input: ", "noisy/1.png"),
        ("ours: ", "noisy/1.png"),
        ("theirs: ", "no result for it in"),
        ("theirs: ", "3.png: has 10 x 13 but 24 x 27 pixels are due"),
        ("broken: ", ""),
    ]:
        assert any(line.startswith(f"bdg-fast: not evaluated: {method}") and words in line for line in told), words
    count = {}
    for row in table(pairs / "report" / "images.csv"):
        count[row["method"]] = count.get(row["method"], 0) + 1
    assert count == {"input": 4, "ours": 4, "theirs": 2}
    assert "## Failed" in (pairs / "report" / "report.md").read_text(encoding="utf-8")


def test_metrics_that_cannot_be_had_are_reported_and_folders_compared(pairs, monkeypatch, capsys):
    compared = []

    def open_some(names, settings, *, device):
        assert names == ["psnr", "lpips", "fid"] and device == "cpu"

        def fid(restored, clean):
            compared.append((restored, clean))
            if len(compared) == 3:
                raise ValueError("no covariance")
            files = [sorted(file.name for file in place.iterdir()) for place in (restored, clean)]
            assert files[0] == files[1] == [f"{number}.png" for number in range(5)]
            return 12.5

        psnr = Measure("psnr", False, lambda x, y: float((x - y).abs().mean()))
        return [psnr, Measure("fid", True, None, fid)], {"lpips": "OSError: no network"}

    monkeypatch.setattr("bdg_fast.cli.evaluate.open_measures", open_some)
    arguments = ("--input", pairs / "noisy", "--target", pairs / "clean", "--metrics", "psnr", "lpips", "fid")
    plant(pairs / "report/images/input/images/images", "of-before.png")  # is none of this run's
    assert run(*arguments, "--output", pairs / "report") == 1
    assert not [file for file in (pairs / "report").iterdir() if file.name.startswith(".")]
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert "bdg-fast: lpips is not available: OSError: no network" in captured.err
    assert run(*arguments) == 1
    assert "bdg-fast: not evaluated: input: fid: no covariance" in capsys.readouterr().err
    assert "| images | 5 | 12.50 |" in captured.out and "- lpips: OSError: no network" in captured.out


def test_without_any_metric_nothing_is_restored(pairs, monkeypatch, capsys):
    monkeypatch.setattr("bdg_fast.cli.evaluate.open_measures", lambda *names, **device: ([], {"niqe": "no network"}))
    assert run("--input", pairs / "noisy", "--target", pairs / "clean", "--metrics", "niqe") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "niqe is not available: no network" in captured.err


def test_photographs_are_degraded_and_the_clean_ones_not_in_the_mean(pairs, tmp_path, capsys):
    assert run("--images", pairs / "clean", "--kinds", "noise", "jpeg", "--limit", 2, "--output", tmp_path / "o") == 0
    images = table(tmp_path / "o" / "images.csv")
    assert len(images) == 2 + 2 * 2 * 3 and {row["clean"] for row in images} == {"0", "2"}
    means = {
        row["kind"] or "mean": float(row["mean"])
        for row in table(tmp_path / "o" / "means.csv")
        if row["metric"] == "psnr" and row["level"] != "set"
    }
    assert means["clean"] == pytest.approx(80) and means["mean"] == pytest.approx(
        (means["noise"] + means["jpeg"]) / 2, abs=1e-3
    )
    clean, degraded = (each.float() / 255 for each in photograph_cases(pairs / "clean", kinds=["jpeg"])[7].read()[::-1])
    assert any(torch.equal(degraded, image[0]) for _, _, image in versions(clean, ["jpeg"]))


CDD11 = ("low", "haze", "rain", "snow", "low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow")
CDD11 += ("low_haze_rain", "low_haze_snow")


def test_a_protocol_needs_a_root_alone_and_shows_published_numbers(tmp_path, capsys):
    for folder in ("clear", *CDD11):
        plant(tmp_path / "CDD-11_test" / folder, "00001.png", "00002.png", noise=0 if folder == "clear" else 20)
    assert run("--protocol", "cdd11", "--root", tmp_path) == 0
    out = capsys.readouterr().out
    assert "SSIM of skimage" in out and "cal_psnr_ssim.py" in out
    line = next(line for line in out.splitlines() if line.startswith("| OneRestore"))
    assert line.split("|")[-3].strip() == "28.47" and line.split("|")[-2].strip() == "[1]"
    assert "[1] https://github.com/gy65896/OneRestore, README.md, CDD-11" in out
    assert "| mean | 22 |" in out and "| lowlight+haze+rain | 2 |" in out
    assert run("--protocol", "cdd11", "--root", tmp_path, "--kinds", "rain", "--crop", 1) == 0
    out = capsys.readouterr().out
    assert "OneRestore" not in out.partition("## psnr")[2] and "- published numbers: left out" in out
    assert run("--protocol", "cdd11", "--root", tmp_path, "--kinds", "rain", "fog") == 2
    assert "kinds of 'cdd11' must be among" in capsys.readouterr().err


def test_a_wrong_root_shows_the_tree(tmp_path, capsys):
    plant(tmp_path, "denoise/bsd68/1.jpg", "derain/Rain100L/input/1.png", "dehaze/input/0001_0.8_0.2.jpg")
    assert run("--protocol", "airnet-3", "--root", tmp_path) == 2
    told = capsys.readouterr().err
    assert "is not laid out as 'airnet-3'" in told and "dehaze/target/" in told and "<- missing" in told


def test_promptir_cuts_to_sixteen_and_adds_the_noise_itself(tmp_path):
    plant(tmp_path / "test" / "denoise/bsd68", "1.jpg", "2.jpg", side=(37, 50))
    plant(tmp_path / "test", "derain/Rain100L/input/1.png", "derain/Rain100L/target/1.png")
    plant(tmp_path / "test", "dehaze/input/0001_0.8_0.2.jpg", "dehaze/target/0001.png")
    protocol = PROTOCOLS["airnet-3"]
    found, lost = collection_cases(protocol.layout, tmp_path, preparation=protocol.preparation)
    assert not lost
    assert [(case.kind, case.set) for case in found] == [
        *(("noise15", "BSD68"),) * 2, *(("noise25", "BSD68"),) * 2, *(("noise50", "BSD68"),) * 2,
        ("rain", "Rain100L"), ("haze", "SOTS"),
    ]  # fmt: skip
    noisy, clean = found[4].read()
    assert noisy.shape == clean.shape == (3, 32, 48)
    inside = (clean > 130) & (clean < 150)
    assert (noisy.double() - clean)[inside].std() == pytest.approx(50, rel=0.1)
    assert torch.equal(found[4].read()[0], noisy) and not torch.equal(found[5].read()[0], noisy)
    assert found[-1].scene == "0001.png" and found[0].pool == found[2].pool


def test_diffuir_equalizes_low_light_and_fits_hazy_targets(tmp_path):
    sets = [f"syn_rain/test/{name}" for name in ("Rain100H", "Rain100L", "Test100", "Test1200", "Test2800")]
    for place in (*sets, "Deblur/test/GoPro"):
        plant(tmp_path / place, "input/1.png", "target/1.png")
    for name in ("Snow100K-S", "Snow100K-L"):
        plant(tmp_path / "Snow100K/test" / name, "synthetic/1.jpg", "gt/1.jpg")
    plant(tmp_path / "LOL/test", "low/1.png", "high/1.png")
    plant(tmp_path / "RESIDE/SOTS/outdoor", "hazy/0001_0.8_0.2.jpg")
    plant(tmp_path / "RESIDE/SOTS/outdoor", "gt/0001.png", side=SIDE + 4)
    protocol = PROTOCOLS["diffuir-5"]
    found, _ = collection_cases(protocol.layout, tmp_path, preparation=protocol.preparation)
    assert [case.kind for case in found] == ["rain"] * 5 + ["lowlight", "snow", "snow", "haze", "blur"]
    by_kind = {case.kind: case for case in found}
    hazy, clean = by_kind["haze"].read()
    assert hazy.shape == clean.shape == (3, SIDE, SIDE + 3)
    low = by_kind["lowlight"].read()[0]
    assert int(low.min()) == 0 and int(low.max()) == 255
    with pytest.raises(ValueError, match=r"24 x 27 pixels do not belong to the 28 x 31 of .* by any whole factor"):
        collection_cases(protocol.layout, tmp_path, kinds=["haze"])[0][0].read()


def test_equalized_is_that_of_opencv():
    # counts 2, 1, 1 of 10, 20, 30: the first becomes 0, then 255 / 2 a pixel
    image = torch.tensor([10, 10, 20, 30], dtype=torch.uint8).view(1, 2, 2).expand(3, -1, -1)
    assert equalized(image)[0].flatten().tolist() == [0, 0, 128, 255]
    same = torch.full((3, 2, 2), 9, dtype=torch.uint8)
    assert torch.equal(equalized(same), same)


def test_low_resolution_is_enlarged_and_whole_results_are_cut_like_their_targets(tmp_path):
    plant(tmp_path / "lr", "1.png", side=(6, 7))
    plant(tmp_path / "hr", "1.png", side=(24, 28))
    found, _ = paired_cases(tmp_path / "lr", tmp_path / "hr", preparation=Preparation(multiple=16))
    degraded, clean = found[0].read()
    assert degraded.shape == clean.shape == (3, 16, 16)
    whole = cases_of.pixels(tmp_path / "hr" / "1.png")
    assert torch.equal(clean, cut(whole, 16)) and torch.equal(clean, whole[:, 4:20, 6:22])
    from bdg_fast.evaluation.evaluate import Folder

    outcome = next(Folder("hr", tmp_path / "hr").results(found))
    assert outcome.error is None and torch.equal(outcome.restored, clean)


def test_results_of_others_lie_by_set_by_degradation_or_together(tmp_path):
    from bdg_fast.evaluation.evaluate import Folder

    plant(tmp_path, "in/a.png", "out/a.png")
    case = paired_cases(tmp_path / "in", tmp_path / "out", kind="rain")[0][0]
    for place in ("one/rain", "two/deep/er", "three"):
        plant(tmp_path / place, "a.jpg")
        assert next(Folder("x", tmp_path / place.partition("/")[0]).results([case])).error is None
    plant(tmp_path / "two" / "other", "a.png")
    error = next(Folder("x", tmp_path / "two").results([case])).error
    assert "several results for it" in str(error)


def test_bad_usage_is_told_before_any_work(pairs, checkpoint, capsys):
    both = ("--input", pairs / "noisy", "--target", pairs / "clean")
    for arguments, words in [
        ((), "give one of --protocol and --root, --input and --target, --images"),
        (("--input", pairs / "noisy"), "give one of"),
        ((*both, "--images", pairs), "give one of"),
        ((*both, "--batch", 0), "--batch must be at least 1, got 0"),
        ((*both, "--save-images"), "--save-images needs --output"),
        ((*both, "--crop", -1), "crop must be at least 0"),
        ((*both, "--checkpoint", "no/such/weights.pt"), "--checkpoint must be a file or folder of weights"),
        ((*both, "--checkpoint", checkpoint, "--checkpoint", checkpoint), "methods must have names of their own"),
        ((*both, "--results", f"clean={pairs / 'theirs'}"), "methods must have names of their own"),
        (("--images", pairs / "clean", "--kinds", "fog"), "--kinds must be among"),
    ]:
        assert run(*arguments) == 2
        assert words in capsys.readouterr().err


def test_published_numbers_have_sources_and_means_that_follow():
    for protocol, rows in PUBLISHED.items():
        known = {kind for kind in PROTOCOLS[protocol].kinds or ()}
        for one in rows:
            assert one.source.startswith("https://") and ", " in one.source
            for scores in one.scores.values():
                kinds = [kind for kind in scores if kind != "mean"]
                assert not known or known >= set(kinds)
                assert all(math.isfinite(value) for value in scores.values())
            psnr = dict(one.scores["psnr"])
            if len(psnr) > 3 and "mean" in psnr:
                mean = psnr.pop("mean")
                assert mean == pytest.approx(sum(psnr.values()) / len(psnr), abs=0.02), one


def test_the_page_of_the_docs_tells_protocols_options_and_sources():
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in PROTOCOLS:
        assert f"| `{name}` |" in page
    for rows in PUBLISHED.values():
        for one in rows:
            assert one.source.partition(", ")[0] in page and one.method.replace("degraded input", "Real-ESRGAN") in page
    for option in (
        "--kinds",
        "--limit",
        "--pictured",
        "--force",
        "--save-images",
        "--match",
        "--color",
        "--crop",
        "--ssim",
    ):
        assert f"`{option}" in page
