"""Means and their intervals: what they say of known numbers."""

import math

import pytest
import torch

from bdg_fast.evaluation.statistics import Value, summarize


def made(kind, values, *, set="s", pool="p", counted=True):
    return [Value(kind, set, pool, f"{scene}", counted, value) for scene, value in enumerate(values)]


def find(found, level, kind="", set=""):
    return next(one for one in found if (one.level, one.kind, one.set) == (level, kind, set))


def test_sets_count_alike_in_a_degradation_and_degradations_in_the_mean():
    values = made("rain", [10.0] * 9, set="a") + made("rain", [20.0], set="b") + made("haze", [30.0, 32.0], set="c")
    values += made("clean", [99.0, 99.0], set="d", counted=False)
    found = summarize(values, draws=50)
    assert (find(found, "set", "rain", "a").mean, find(found, "set", "rain", "a").images) == (10, 9)
    assert (find(found, "degradation", "rain").mean, find(found, "degradation", "rain").images) == (15, 10)
    assert find(found, "degradation", "clean").mean == 99
    assert (find(found, "mean").mean, find(found, "mean").images) == (23, 12)


def test_intervals_are_those_of_the_mean_and_the_same_every_time():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = find(summarize(made("x", values.tolist())), "set", "x", "s")
    mean, error = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(200)
    assert (one.low, one.high) == (pytest.approx(mean - error, abs=0.02), pytest.approx(mean + error, abs=0.02))
    assert find(summarize(made("x", values.tolist())), "set", "x", "s") == one
    assert find(summarize(made("x", values.tolist()), seed=1), "set", "x", "s") != one


def test_versions_of_one_clean_image_are_drawn_together():
    """Ten versions of each image tell no more than one, and opposite degradations of the same images cancel."""
    base = [float(x) for x in range(20)]
    alone = find(summarize(made("x", base)), "set", "x", "s")
    ten = find(summarize(made("x", base) * 10), "set", "x", "s")
    assert (ten.low, ten.high, ten.images) == (pytest.approx(alone.low), pytest.approx(alone.high), 200)
    opposite = made("a", base, set="a") + made("b", [-x for x in base], set="b")
    mean = find(summarize(opposite), "mean")
    assert mean.low == pytest.approx(0, abs=1e-9) and mean.high == pytest.approx(0, abs=1e-9)
    apart = find(summarize(opposite[:20] + made("b", [-x for x in base], set="b", pool="q")), "mean")
    # two independent means: their sum's deviation is the root of 2, the half of that as wide
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / math.sqrt(2), rel=0.1)


def test_one_clean_image_has_no_interval_and_what_is_not_finite_does_not_count():
    found = summarize([*made("x", [3.0]), *made("y", [math.nan, 1.0, 2.0])])
    assert math.isnan(find(found, "set", "x", "s").low) and math.isnan(find(found, "mean").high)
    assert (find(found, "set", "y", "s").images, find(found, "set", "y", "s").mean) == (2, 1.5)
    assert summarize([]) == [] and summarize(made("x", [math.inf])) == []
