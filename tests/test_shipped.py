"""The checkpoint that comes along does what its card says."""

import json
import math
import statistics
from pathlib import Path

import pytest

from bdg_fast import Restorer
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, hazy_photograph, read_image
from bdg_fast.evaluation.restoration import CLEAN, KINDS, SHARES, Score, means, score
from bdg_fast.models import SHIPPED, checkpoint_at

CARD = json.loads((Path(__file__).parent.parent / "benchmarks" / "results" / "card.json").read_text())


def read(rows):
    """Scores of the card; no PSNR stands for an infinite one."""
    return [Score(**{name: math.inf if value is None else value for name, value in one.items()}) for one in rows]


SETS = {name: read(each["scores"]) for name, each in CARD["sets"].items()}
MILD = {name: read(each["mild"]) for name, each in CARD["sets"].items()}


@pytest.fixture(scope="module")
def restorer():
    return Restorer.from_pretrained(device="cpu")


def test_it_is_small_and_documented():
    assert sum(file.stat().st_size for file in SHIPPED.glob("*.safetensors")) <= 7_000_000
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for told in ("licence", "seed", "cannot", "photographs", *KINDS):
        assert told in card


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
        assert statistics.median(one.change for one in MILD[name] if one.kind == kind) < noise


def test_fixed_inputs_are_restored_as_the_card_says(restorer):
    (file, *_) = bundled_photographs()
    photographs = [(file.name, as_unit_rgb(read_image(file)))]
    told = [one for one in SETS["photographs that come along"] if one.photograph == file.name]
    found = score(restorer.restore, photographs, shares=SHARES)
    assert len(found) == 1 + 3 * len(KINDS)
    for one, expected in zip(found, told, strict=True):
        assert (one.kind, one.level) == (expected.kind, pytest.approx(expected.level, abs=1e-3))
        assert one.kind == CLEAN or one.psnr_degraded == pytest.approx(expected.psnr_degraded, abs=0.01)
        assert one.psnr == pytest.approx(expected.psnr, abs=0.05), one


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
