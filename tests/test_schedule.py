"""The schedule: published tables to the bit, and the laws that tie its formulas together."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bdg_fast import ResidualSchedule

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
SCHEDULES = {
    "linear": ResidualSchedule.linear(),
    "cosine": ResidualSchedule.cosine(),
    "rddm": ResidualSchedule.rddm(),
    "custom": ResidualSchedule(
        torch.linspace(0.1, 0.9, 20), torch.linspace(0.05, 0.7, 20) ** 2, torch.linspace(0, 0.5, 20)
    ),
}
SCHEDULES |= {f"linear {stage}": SCHEDULES["linear"].stage(stage) for stage in ("generation", "bridging")}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("delta_end", [1.8e-3, 1.5e-3])
def test_tables_of_diffuir_to_the_bit(delta_end):
    official = load_file(FIXTURES / "schedule.safetensors")
    schedule = ResidualSchedule.linear(delta_end=delta_end)
    for name, table in (("alphas", schedule.alpha), ("betas2", schedule.beta2), ("delta", schedule.delta)):
        assert torch.equal(table.float(), official[f"diffuir.{delta_end:.4f}.{name}_cumsum"])
    assert torch.equal(schedule.beta2.float().sqrt(), official[f"diffuir.{delta_end:.4f}.betas_cumsum"])


def test_tables_of_rddm_to_the_bit():
    official = load_file(FIXTURES / "schedule.safetensors")
    for name, schedule in (
        ("exp2.sum1", ResidualSchedule.rddm()),
        ("exp2.sum0.01", ResidualSchedule.rddm(sum_scale=0.01)),
        ("exp0.init", ResidualSchedule.linear(delta_end=0)),
    ):
        assert torch.equal(schedule.alpha.float(), official[f"rddm.{name}.alphas_cumsum"])
        assert torch.equal(schedule.beta2.float(), official[f"rddm.{name}.betas2_cumsum"])
        assert schedule.delta.abs().max() == 0


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0, x_lq = (torch.rand(1, 3, 5, 4, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return x_0, x_lq, torch.randn(1, 3, 5, 4, generator=generator, dtype=torch.float64)


@each
def test_closed_form_equals_iterated_steps_in_distribution(schedule):
    """Mean and variance of the iterated forward step are those of the closed form."""
    x_0, x_lq, _ = images()
    mean, variance = x_0.clone(), 0.0
    for t in range(len(schedule)):
        (a, b, d), (a_s, b_s, d_s) = schedule.at(t), schedule.at(t - 1)
        mean = mean + (a - a_s) * (x_lq - x_0) - (d - d_s) * x_lq
        variance += b**2 - b_s**2
        if t % 7 == 0 or t == len(schedule) - 1:
            closed = schedule.diffuse(x_0, x_lq, torch.zeros_like(x_0), torch.tensor([t]))
            torch.testing.assert_close(mean, closed, rtol=0, atol=1e-10)
            assert math.sqrt(variance) == pytest.approx(b, abs=1e-10)


@each
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_exact_predictions_recover_the_image_without_noise(schedule, steps):
    x_0, x_lq, noise = images()
    for start in {len(schedule) - 1, len(schedule) // 2, 0}:
        x = schedule.diffuse(x_0, x_lq, noise, torch.tensor([start]))
        times = [t for t in schedule.times(min(steps, len(schedule))) if t < start]
        for t, s in zip([start, *times], times, strict=False):
            step = schedule.coefficients(t, s, eta=0.0)
            x = x - step.residual * (x_lq - x_0) - step.noise * noise + step.degraded * x_lq
            expected = x_0 if s < 0 else schedule.diffuse(x_0, x_lq, noise, torch.tensor([s]))
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


@each
def test_full_noise_has_the_published_mean_and_keeps_the_marginal(schedule):
    times = schedule.times(5)
    for t, s in itertools.pairwise(times):
        (_, b_t, _), (_, b_s, _) = schedule.at(t), schedule.at(s)
        step = schedule.coefficients(t, s, eta=1.0)
        assert step.noise == pytest.approx((b_t**2 - b_s**2) / b_t, rel=1e-9)
        for eta in (0.0, 0.3, 1.0):  # what is left of the noise, and what is added, make up B_s
            step = schedule.coefficients(t, s, eta)
            assert (b_t - step.noise) ** 2 + step.sigma**2 == pytest.approx(b_s**2, abs=1e-12)


def test_stages():
    schedule = SCHEDULES["linear"]
    generation, bridging = schedule.stage("generation"), schedule.stage("bridging")
    assert generation.alpha.abs().max() == generation.delta.abs().max() == bridging.delta.abs().max() == 0
    assert torch.equal(bridging.alpha, schedule.alpha)
    assert torch.equal(schedule.stage("restoration").delta, schedule.delta)
    x_0, x_lq, noise = images()
    t = torch.tensor([500])
    assert torch.equal(generation.diffuse(x_0, x_lq, noise, t), generation.diffuse(x_0, x_lq * 0, noise, t))


def test_times_are_those_of_the_published_codes():
    schedule = SCHEDULES["linear"]
    assert schedule.times(3) == [999, 665, 332, -1]
    assert schedule.times(4) == [999, 749, 499, 249, -1]
    for steps in (1, 2, 7, 84, 1000):
        times = schedule.times(steps)
        assert len(times) == steps + 1 and times[0] == 999 and times[-1] == -1
        assert all(t > s for t, s in itertools.pairwise(times))


def test_network_time():
    schedule = SCHEDULES["linear"]
    assert schedule.network_time(999).item() == pytest.approx(993.6472, abs=1e-3)
    assert schedule.network_time(torch.tensor([3, 999]), "index").tolist() == [3.0, 999.0]


def test_per_sample_times():
    schedule = SCHEDULES["linear"]
    x_0, x_lq, noise = (image.expand(2, -1, -1, -1) for image in images())
    both = schedule.diffuse(x_0, x_lq, noise, torch.tensor([10, 700]))
    for i, t in enumerate((10, 700)):
        assert torch.equal(both[i : i + 1], schedule.diffuse(x_0[:1], x_lq[:1], noise[:1], torch.tensor([t])))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (([], [], []), "alpha must be a table"),
        (([0.1, 0.05], [0.1, 0.2], [0, 0]), "alpha must be finite, begin at 0 or above and not decrease"),
        (([0.1, 0.2], [0.1, math.nan], [0, 0]), "beta2 must be finite"),
        (([0.1, 0.2], [0.1, 0.2], [0.0]), "must have one length"),
        (([0.1, 0.2], [0.0, 0.0], [0, 0]), "beta2 must not stay 0"),
    ],
)
def test_tables_that_are_no_schedule_are_named(tables, message):
    with pytest.raises(ValueError, match=message):
        ResidualSchedule(*map(torch.tensor, tables))


def test_bad_requests_are_named():
    schedule = SCHEDULES["linear"]
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"steps must be in 1\.\.1000, got {steps}"):
            schedule.times(steps)
    with pytest.raises(ValueError, match="stage must be one of 'generation', 'bridging', 'restoration', got 'warmup'"):
        schedule.stage("warmup")
    for t in (-2, -7, 1000):
        with pytest.raises(ValueError, match=rf"t must be in -1\.\.999, got {t}"):
            schedule.at(t)
    x = torch.zeros(1, 3, 2, 2)
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=rf"t must be in 0\.\.999, got \[{t}\]"):
            schedule.diffuse(x, x, x, torch.tensor([t]))
        with pytest.raises(ValueError, match=rf"t must be in 0\.\.999, got {t}"):
            schedule.network_time(t)
    with pytest.raises(ValueError, match="units must be 'scaled' or 'index', got 'bogus'"):
        schedule.network_time(3, "bogus")
    for arguments, message in (
        ((5, 5, 0.0), "s must be below t = 5, got 5"),
        ((5, 7, 0.0), "s must be below t = 5, got 7"),
        ((7, 5, 1.5), r"eta must be in \[0, 1\], got 1.5"),
        ((7, 5, -0.1), r"eta must be in \[0, 1\], got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule.coefficients(*arguments)
    for make in (ResidualSchedule.linear, ResidualSchedule.cosine):
        with pytest.raises(ValueError, match=r"delta_end must not be negative, got -0\.001"):
            make(delta_end=-1e-3)
