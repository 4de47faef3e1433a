"""The probe: disjoint sources, an honest vote, and a fingerprint that beats the image itself."""

import math

import pytest
import torch
from PIL import Image

from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs
from bdg_fast.evaluation.probe import (
    TASKS,
    interval,
    knn,
    read_sources,
    run_probe,
    split_by_source,
    tune,
)
from bdg_fast.evaluation.representations import REPRESENTATIONS, Fingerprint, fingerprint


@pytest.fixture(scope="module")
def crops(photographs):
    """Twelve 128 x 128 photographs, four of each of three sources."""
    parts = [photographs[s, :, y : y + 128, x : x + 128] for s in range(3) for y in (0, 128) for x in (0, 128)]
    return [part.float() / 255 for part in parts]


def test_sources_come_from_the_manifest_or_the_name(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("crop,source_package,source_file\nphotos/a_s0500_1_2.jpg,camera,roll/7.raw\n")
    paths = [tmp_path / name for name in ("a_s0500_1_2.jpg", "b_s0250_0_0.jpg", "b_s0500_7_9.jpg")]
    assert list(read_sources(paths, manifest).values()) == ["camera:roll/7.raw", "b", "b"]
    assert list(read_sources(paths, manifest, by_package=True).values()) == ["camera:", "b", "b"]


def test_split_keeps_sources_apart_and_repeats(tmp_path):
    source_of = {tmp_path / f"{source}_{i}.jpg": source for source in "abcdefgh" for i in range(10)}
    split = split_by_source(source_of, 30, 20, seed=3)
    assert len(split.train) == 30
    assert len(split.test) == 20
    assert not {source_of[p] for p in split.train} & {source_of[p] for p in split.test}
    assert split.train == split_by_source(dict(reversed(source_of.items())), 30, 20, seed=3).train
    assert split.train != split_by_source(source_of, 30, 20, seed=4).train


def test_one_source_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match="at least 2 sources, got 1: only"):
        split_by_source({tmp_path / "x.jpg": "only"}, 1, 1, seed=0)


def test_knn_votes_and_breaks_ties_by_distance():
    train = torch.tensor([[0.0], [0.2], [5.0], [5.1], [9.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert knn(train, labels, torch.tensor([[0.1], [5.0], [8.9]]), k=2).tolist() == [0, 1, 2]
    assert knn(train, labels, torch.tensor([[4.0]]), k=5).tolist() == [1]


def test_interval_holds_the_accuracy():
    right = torch.rand(30, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    low, high = interval(right, [str(i % 6) for i in range(30)], seed=0)
    assert 0 < low <= right.double().mean().item() <= high < 1


def test_representations_are_one_row_a_sample(crops):
    batch = torch.stack(crops[:3])
    for name, represent in REPRESENTATIONS.items():
        features = represent(batch)
        assert features.ndim == 2, name
        assert features.isfinite().all(), name
        torch.testing.assert_close(features[1:2], represent(batch[1:2]), rtol=1e-4, atol=1e-5)
    assert torch.equal(fingerprint(batch), Fingerprint()(batch))


def test_probe_scores_every_representation_and_the_fingerprint_wins(crops):
    represent = {name: REPRESENTATIONS[name] for name in ("LQ image", "gray + residual")}
    scores = run_probe(crops[:8], crops[8:], ["one", "two", "two", "one"], seed=0, k=3, represent=represent)
    assert [(s.representation, s.task) for s in scores] == [(name, task) for name in represent for task in TASKS]
    by = {(s.representation, s.task): s for s in scores}
    assert all(0 <= s.low <= s.accuracy <= s.high <= 1 for s in scores)
    for task in TASKS:
        assert by["gray + residual", task].accuracy > by["LQ image", task].accuracy
    assert scores == run_probe(crops[:8], crops[8:], ["one", "two", "two", "one"], seed=0, k=3, represent=represent)


def test_tune_ranks_candidates(crops):
    tried = [Fingerprint(levels=4, gray_scales=(1,), power=1.0), Fingerprint(residual_scales=(1, 2))]
    results = tune(crops, ["a"] * 4 + ["b"] * 4 + ["c"] * 4, k=3, folds=3, tried=tried)
    totals = [accuracy["type"] + accuracy["level"] for _, accuracy in results]
    assert totals == sorted(totals, reverse=True)
    assert {candidate for candidate, _ in results} == set(tried)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for path in bundled_photographs()[:6]:
        Image.open(path).crop((0, 0, 96, 96)).save(images / f"{path.stem}_s0500_0_0.png")
    return images


def test_command_writes_table_and_picture(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output, picture = tmp_path / "probe.csv", tmp_path / "probe.png"
    (folder / "broken.png").write_bytes(b"no picture")
    arguments = ["probe", "--images", str(folder), "--train", "4", "--test", "4"]
    assert main([*arguments, "--output", str(output), "--plot", str(picture)]) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert "| gray + residual |" in captured.out
    assert len(output.read_text().splitlines()) == 1 + len(REPRESENTATIONS) * len(TASKS)
    assert Image.open(picture).width > 500
    assert main([*arguments, "--output", str(output)]) == 2  # never overwrites silently


def test_tuning_does_not_read_test_photographs(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bdg_fast.evaluation.probe.candidates", lambda: [Fingerprint(gray_scales=(1,), gray_angles=2)])
    paths = sorted(folder.iterdir())
    split = split_by_source(read_sources(paths, None), 3, 3, seed=0)
    for path in split.test:
        path.write_bytes(b"unreadable")
    output = tmp_path / "tuned.csv"
    arguments = ["probe", "--images", str(folder), "--train", "3", "--test", "3", "--tune", "--output", str(output)]
    assert main(arguments) == 0
    assert "best: Fingerprint" in capsys.readouterr().out
    assert output.read_text().splitlines()[0] == "settings,type,level,all types"
    assert main([*arguments, "--force", "--plot", "x.png"]) == 2


@pytest.mark.parametrize("side", ["train", "test"])
def test_names_the_files_if_none_of_a_side_can_be_read(folder, capsys, side):
    paths = sorted(folder.iterdir())
    split = split_by_source(read_sources(paths, None), 3, 3, seed=0)
    for path in getattr(split, side):
        path.write_bytes(b"unreadable")
    assert main(["probe", "--images", str(folder), "--train", "3", "--test", "3"]) == 1
    printed = capsys.readouterr().err
    assert "photograph could be read" in printed
    assert all(str(path) in printed for path in getattr(split, side))


def test_a_manifest_that_cannot_be_used_is_refused(folder, tmp_path, capsys):
    junk, foreign, picture = tmp_path / "junk.csv", tmp_path / "foreign.csv", tmp_path / "picture.csv"
    junk.write_text("a,b\n1,2\n")
    foreign.write_text("crop,source_package,source_file\nelsewhere.png,p,f\n")
    picture.write_bytes(b"\xff\xd8\xff")
    for manifest, message in (
        (junk, "must have the columns crop or name, source_package and source_file, got a, b"),
        (foreign, "lists none of the 6 photographs"),
        (picture, "must be a CSV file in UTF-8"),
    ):
        assert main(["probe", "--images", str(folder), "--manifest", str(manifest)]) == 2
        assert message in capsys.readouterr().err
    assert main(["probe", "--images", str(folder), "--by-package"]) == 2
    assert "--by-package needs a manifest" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"a,b\n1,2\n", b"crop,source_package,source_file\nx.png,p,f\n", b"\xff\xd8\xff"])
def test_a_manifest_of_something_else_is_ignored_with_a_note(folder, capsys, text):
    (folder / "manifest.csv").write_bytes(text)
    output = folder.parent / "probe.csv"
    assert main(["probe", "--images", str(folder), "--train", "3", "--test", "3", "--output", str(output)]) == 0
    printed = capsys.readouterr().err
    assert "ignored: manifest" in printed
    assert "manifest.csv" in printed
    assert output.exists()
    assert main(["probe", "--images", str(folder), "--manifest", str(folder / "manifest.csv")]) == 2


def test_a_manifest_beside_the_photographs_is_used(folder, capsys):
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},p,{i % 2}" for i, name in enumerate(names)]
    (folder / "manifest.csv").write_text("\n".join(["crop,source_package,source_file", *rows]))
    assert main(["probe", "--images", str(folder), "--train", "3", "--test", "3"]) == 0
    captured = capsys.readouterr()
    assert "of 1 sources; test: 3 of 1 other sources" in captured.out
    assert "ignored" not in captured.err


def test_one_test_source_has_no_interval():
    low, high = interval(torch.tensor([[True, False]]), ["a"], 0)
    assert math.isnan(low) and math.isnan(high)


def test_bad_usage_is_explained(folder, capsys):
    assert main(["probe", "--images", str(folder), "--train", "0"]) == 2
    assert "--train must be at least 1, got 0" in capsys.readouterr().err
