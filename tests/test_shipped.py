"""The checkpoint that comes along does what its card says."""

import json
import math
import statistics
from pathlib import Path

import pytest

from bdg_fast import Restorer
from bdg_fast.data.degrade import CLEAN
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, hazy_photograph, read_image
from bdg_fast.evaluation.restoration import KINDS, SHARES, Score, means, score, table
from bdg_fast.files import sha256_of
from bdg_fast.models import SHIPPED, checkpoint_at

ROOT = Path(__file__).parent.parent
CARD = json.loads((ROOT / "benchmarks" / "results" / "card.json").read_text())


def read(rows):
    """Scores of the card; no PSNR stands for an infinite one."""
    return [Score(**{name: math.inf if value is None else value for name, value in one.items()}) for one in rows]


SETS = {name: read(each["scores"]) for name, each in CARD["sets"].items()}
MILD = {name: read(each["mild"]) for name, each in CARD["sets"].items()}
BUNDLED, HELD_OUT = "photographs that come along", "held-out photographs"


def text(*path):
    """Of a page, whatever its lines."""
    return " ".join(ROOT.joinpath(*path).read_text(encoding="utf-8").split())


def of_kind(scores, kind):
    """Those of a kind, of all sets."""
    return [one for each in scores.values() for one in each if one.kind == kind]


def losses(scores):
    """In dB, of those that lose, the least first."""
    return sorted(one.psnr_degraded - one.psnr for one in scores if one.psnr < one.psnr_degraded)


@pytest.fixture(scope="module")
def restorer():
    return Restorer.from_pretrained(device="cpu")


def test_it_is_small_and_documented():
    assert sum(file.stat().st_size for file in SHIPPED.glob("*.safetensors")) <= 7_000_000
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for told in ("licence", "seed", "cannot", "photographs", *KINDS):
        assert told in card


@pytest.mark.parametrize("name", SETS)
def test_the_card_has_the_measured_tables(name):
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert f"{means(SETS[name])[CLEAN].images} {name}:\n\n{table(SETS[name])}\n" in card
    changed = ", ".join(f"{kind} {one.change:.2f}" for kind, one in means(MILD[name]).items() if kind != "all")
    assert f"Changed (root mean square, in 1/255): {changed}\n" in card
    now = " and ".join(f"{means(each)['all'].gain:.1f}" for each in SETS.values())
    assert f"(now {now})" in card


def test_the_card_has_the_measured_readout():
    card = text("bdg_fast", "models", "small", "README.md")
    assert len(CARD["readout"]) == 2
    for name, one in CARD["readout"].items():
        each = ", ".join(f"{kind} {share:.0%}" for kind, share in one["by_kind"].items())
        told = f"kind told {one['accuracy']:.1%} ({each}), level off by {one['level_error']:.1%} of its range"
        assert f"Features of {name}: {told}" in card
        assert f"nearest of versions of {one['train']} of" in card


def test_the_card_counts_what_is_changed_too_much():
    card, limits = text("bdg_fast", "models", "small", "README.md"), text("docs", "limits.md")
    noise, jpeg, clean = of_kind(MILD, "noise"), of_kind(MILD, "jpeg"), of_kind(SETS, CLEAN)
    first, second = (statistics.median(one.change for one in each if one.kind == "noise") for each in MILD.values())
    less = sum(one.change < one.level for one in noise)
    other, brightened = losses(noise)
    assert (
        f"Mild noise of sigma {noise[0].level:.0f} is changed by less than {noise[0].level:.0f} in {less} of the "
        f"{len(noise)} photographs ({first:.1f} and {second:.1f} in the median), and gains in {len(noise) - 2}. "
        f"One is taken for a dark scene and brightened (it loses {brightened:.1f} dB), one loses {other:.1f} dB. "
    ) in card
    assert all((one.change > one.level) == (one.psnr < one.psnr_degraded) for one in noise)
    assert f"Of {len(noise)} photographs of sources" in limits
    assert f"is brightened and loses {brightened:.1f} dB, and another loses {other:.1f} dB" in limits
    (changed,) = (one for one in noise if one.change > 2 * one.level)
    assert changed.photograph in card and f"which is brightened, changed by {changed.change:.1f} of 255" in card
    assert all(one.change < 255 * 10 ** (-one.psnr_degraded / 20) for one in jpeg)
    assert (
        f"Mild JPEG, of quality {100 - jpeg[0].level:.0f}, is changed by less than what it lost in all {len(jpeg)}; "
        f"{len(losses(jpeg))} of them lose, by {losses(jpeg)[-1]:.2f} dB at most. "
        f"All clean ones come back at {min(one.psnr for one in clean):.1f} dB or more. "
    ) in card
    (shown,) = losses(one for one in MILD[BUNDLED] if one.kind == "noise")
    assert f"so not the {shown:.1f} dB of one of its photographs" in card  # docs/images/worst.jpg
    assert f"so not the mild noise that loses {brightened:.1f} dB" in card


def test_the_card_counts_what_loses():
    degraded = [one for each in SETS.values() for one in each if one.kind != CLEAN]
    lost = losses(degraded)
    assert {one.kind for one in degraded if one.psnr < one.psnr_degraded} == {"blur", "jpeg", "lowlight"}
    card = text("bdg_fast", "models", "small", "README.md")
    assert (
        f"Of the {len(degraded)} degraded versions above {len(lost)} lose, by {lost[0]:.2f} to {lost[-1]:.2f} dB: "
        "blurs, JPEGs and low light."
    ) in card
    assert "above alone, none of which loses" in card
    assert not losses(one for one in SETS[BUNDLED] if one.kind != CLEAN)


def test_the_card_has_the_command_and_the_weights_that_were_measured():
    told = CARD["arguments"]
    patterns = " ".join(f"'{each}'" for each in told["pattern"])
    command = f"--pattern {patterns} --count {told['count']} "
    assert command in text("bdg_fast", "models", "small", "README.md")
    assert len({one.photograph for one in SETS[HELD_OUT]}) == told["count"]
    assert sha256_of(SHIPPED / "model.safetensors") == told["weights"]


def test_the_projects_table_is_the_cards():
    found = means(SETS[HELD_OUT])
    cells = [f"{found[kind].psnr_degraded:.1f}, {found[kind].psnr:.1f}" for kind in KINDS]
    page = text("README.md")
    assert f"| {' | '.join(cells)} | {found[CLEAN].psnr:.1f} |" in page


@pytest.mark.parametrize("name", SETS)
def test_the_card_tells_no_degradation_that_it_makes_worse(name):
    found = means(SETS[name])
    assert found["all"].gain >= 2
    assert all(found[kind].gain >= 0 for kind in KINDS)
    assert found[CLEAN].psnr >= 36


@pytest.mark.parametrize("name", MILD)
def test_the_card_tells_that_what_is_nearly_clean_is_changed_less_than_its_own_noise(name):
    noise = next(one.level for one in MILD[name] if one.kind == "noise")
    for kind in (CLEAN, "noise", "jpeg"):
        changes = [one.change for one in MILD[name] if one.kind == kind]
        assert statistics.mean(changes) < noise and statistics.median(changes) < noise


def test_fixed_inputs_are_restored_as_the_card_says(restorer):
    (file, *_) = bundled_photographs()
    photographs = [(file.name, as_unit_rgb(read_image(file)))]
    told = [one for one in SETS[BUNDLED] if one.photograph == file.name]
    found = score(restorer.restore, photographs, shares=SHARES)
    assert len(found) == 1 + 3 * len(KINDS)
    for one, expected in zip(found, told, strict=True):
        assert (one.kind, one.level) == (expected.kind, pytest.approx(expected.level, abs=1e-3))
        assert one.kind == CLEAN or one.psnr_degraded == pytest.approx(expected.psnr_degraded, abs=0.01)
        assert one.psnr == pytest.approx(expected.psnr, abs=0.05), one


def test_what_is_nearly_clean_is_changed_as_the_card_says(restorer):
    told = {(one.photograph, one.kind): one for one in MILD[BUNDLED]}
    photographs = [(file.name, as_unit_rgb(read_image(file))) for file in bundled_photographs()]
    found = score(restorer.restore, photographs, ("noise",), (0.0,))
    assert len(found) == 2 * len(photographs) == 2 * len({name for name, _ in told})
    for one in found:
        expected = told[one.photograph, one.kind]
        assert one.level == expected.level
        assert one.psnr == pytest.approx(expected.psnr, abs=0.05), one
        assert one.change == pytest.approx(expected.change, abs=0.05), one


def test_a_photograph_hazy_as_it_was_taken_gains_contrast(restorer):
    before = as_unit_rgb(read_image(hazy_photograph()))
    after = restorer.restore(before[None])[0]
    assert after.std() > 1.05 * before.std()
    assert (after - before).abs().mean() < 0.15  # it is still that photograph


def test_it_has_a_name(tmp_path, monkeypatch):
    assert checkpoint_at(None) == checkpoint_at("small") == SHIPPED
    assert checkpoint_at(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert checkpoint_at("small").resolve() == tmp_path / "small"  # what lies there comes first
