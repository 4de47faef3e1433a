"""The sampler: every step of the official codes' runs, and what holds for exact predictions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bdg_fast import ResidualSampler, ResidualSchedule, UNet, UNetConfig, UNetOutput
from bdg_fast.sampler import METHODS, OFFICIAL

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
RUNS = ["official_eta0_3"]
RUNS += [
    f"{kind}_eta{eta}_4"
    for kind in ("use_pred_noise", "use_x_start", "special_eta_0", "special_eta_1")
    for eta in (0, 1)
]


@pytest.fixture(scope="module")
def unet():
    return UNet.from_pretrained(FIXTURES / "T_state.safetensors").fold()


@pytest.mark.parametrize("run", RUNS)
def test_every_step_of_diffuir(unet, run):
    recorded = {
        key.removeprefix(run + "."): tensor
        for key, tensor in load_file(FIXTURES / "T_ddim.safetensors").items()
        if key.startswith(run + ".")
    }
    sampler = ResidualSampler.official(steps=3)
    if "official" not in run:
        kind, eta, steps = run.rsplit("_", 2)
        sampler = ResidualSampler(
            schedule=sampler.schedule,
            steps=int(steps),
            method=kind,
            eta=float(eta[3:]),
            start_noise=0.1,
            clamp_residual=True,
        )
    steps = sampler.trajectory(unet, recorded["x_input"], generator=torch.Generator().manual_seed(5))
    assert torch.equal(steps[0].x_t, recorded["img0"])  # the same draw
    for index, step in enumerate(steps):
        torch.testing.assert_close(step.x_s, recorded[f"img{index + 1}"], rtol=0, atol=1e-5)


def test_every_step_of_rddm():
    unet = UNet.from_pretrained(FIXTURES / "rddm_shared_state.safetensors").fold()
    recorded = load_file(FIXTURES / "rddm_shared_io_ddim5.safetensors")
    sampler = ResidualSampler(
        schedule=ResidualSchedule.rddm(), steps=5, start_noise=1.0, clamp_residual=True, time=unet.config.time
    )
    generator = torch.Generator().manual_seed(8)
    x_lq = 2 * recorded["lq01"] - 1
    steps = sampler.trajectory(unet, x_lq, generator=generator)
    for index, step in enumerate(steps):
        torch.testing.assert_close(step.x_t, recorded[f"step{index}.x_t"], rtol=0, atol=1e-5)
        torch.testing.assert_close(step.noise, recorded[f"step{index}.pred_noise"], rtol=0, atol=1e-5)
        # the official residual is 2.4e-5 off in float32 (test_unet), so it is compared on the very same input
        with torch.no_grad():
            found = unet(recorded[f"step{index}.x_t"], x_lq, torch.tensor([float(step.t)])).residual.clamp(-1, 1)
        torch.testing.assert_close(found, recorded[f"step{index}.pred_res"], rtol=0, atol=3e-5)
    torch.testing.assert_close((steps[-1].x_s + 1) / 2, recorded["out5_01"], rtol=0, atol=1e-5)


def oracle(x_0, schedule, heads):
    """A network that knows the answer."""

    def network(x_t, x_lq, time):
        residual = x_lq - x_0
        t = int((schedule.alpha.float() * 1000 - time[0]).abs().argmin())
        a, b, d = schedule.at(t)
        noise = (x_t - (1 - d) * x_lq - (a - 1) * residual) / b
        return UNetOutput(residual if heads != "noise" else None, noise if heads != "residual" else None, x_t)

    return network


@pytest.mark.parametrize("heads", ["residual", "noise", "both"])
@pytest.mark.parametrize("options", [{}, {"eta": 0.5}, {"method": "ddpm"}, {"method": "paper"}], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_exact_predictions_restore_the_image(heads, options, steps):
    generator = torch.Generator().manual_seed(0)
    x_0, x_lq = (torch.rand(2, 3, 6, 7, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    schedule = ResidualSchedule.linear()
    sampler = ResidualSampler(schedule=schedule, steps=steps, **options)
    found = sampler(oracle(x_0, schedule, heads), x_lq, generator=generator)
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-4)


def test_methods_differ_and_seeds_repeat(unet):
    x_lq = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def run(seed, **options):
        sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=3, **options)
        return sampler(unet, x_lq, generator=torch.Generator().manual_seed(seed))

    results = [run(0), run(0, method="ddpm"), run(0, method="paper"), run(0, eta=0.5), run(1)]
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not torch.equal(first, second)
    assert torch.equal(run(0, method="ddpm"), results[1])
    assert all(result.abs().max() <= 1 for result in results)


def test_callbacks_and_own_start(unet):
    x_lq = torch.zeros(1, 3, 16, 16)
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=4)
    start = torch.ones(1, 3, 16, 16)
    seen = []
    result = sampler(unet, x_lq, x_start=start, callback=seen.append)
    assert [(step.index, step.t, step.s) for step in seen] == [
        (0, 999, 749),
        (1, 749, 499),
        (2, 499, 249),
        (3, 249, -1),
    ]
    assert torch.equal(seen[0].x_t, start) and torch.equal(seen[-1].x_s, result)
    assert torch.equal(seen[1].x_t, seen[0].x_s)
    assert not result.requires_grad


@pytest.mark.parametrize("method", [*METHODS, *OFFICIAL])
@pytest.mark.parametrize("heads", ["residual", "noise", "both"])
def test_looking_changes_nothing(method, heads):
    """With a callback and without, the same bits; and each step is what the schedule's formulas say."""
    eta = {} if method in ("ddpm", "paper") else {"eta": 0.4}
    schedule = ResidualSchedule.linear()
    sampler = ResidualSampler(schedule=schedule, steps=4, method=method, clamp_residual=True, **eta)
    x_0, x_lq = (torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    network = oracle(x_0, schedule, heads)
    steps = sampler.trajectory(network, x_lq, generator=torch.Generator().manual_seed(2))
    alone = sampler(network, x_lq, generator=torch.Generator().manual_seed(2))
    assert torch.equal(steps[-1].x_s, alone)
    for step in steps:
        a, b, d = schedule.at(step.t)
        rest = step.x_t - (1 - d) * x_lq
        if heads == "residual":
            torch.testing.assert_close(step.noise, (rest - (a - 1) * step.residual) / b, rtol=1e-5, atol=1e-5)
        if heads == "noise":
            torch.testing.assert_close(step.residual, (rest - b * step.noise) / (a - 1), rtol=1e-4, atol=1e-4)
        if step.s >= 0 and (method == "paper" or (method == "special_eta_0")):
            c = schedule.coefficients(step.t, step.s, 1.0 if method == "paper" else 0.4)
            x_s = step.x_t - c.residual * step.residual
            if method == "paper":
                x_s = x_s - c.noise * step.noise + c.degraded * x_lq
            else:
                x_s = x_s - (b - schedule.at(step.s)[1]) * step.noise
            torch.testing.assert_close(step.x_s, x_s, rtol=1e-5, atol=1e-5)
    assert torch.equal(steps[-1].x_s, steps[-1].x_0)


def test_fresh_noise_has_the_variance_of_the_schedule():
    schedule = ResidualSchedule.linear()
    sampler = ResidualSampler(schedule=schedule, steps=2, method="ddpm")
    x_lq = torch.zeros(2, 3, 64, 64)
    network = oracle(x_lq, schedule, "both")
    first, second = (
        sampler.trajectory(network, x_lq, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 1)
    )
    c = schedule.coefficients(first.t, first.s, 1.0)
    drawn = [(s.x_s - (s.x_t - c.residual * s.residual - c.noise * s.noise)) / c.sigma for s in (first, second)]
    for z in drawn:
        assert (z.var() - 1).abs() < 4 * (2 / z.numel()) ** 0.5
    assert (drawn[0] * drawn[1]).mean().abs() < 4 / drawn[0].numel() ** 0.5
    assert (drawn[0][0] * drawn[0][1]).mean().abs() < 4 / drawn[0][0].numel() ** 0.5  # a seed an image


def test_a_step_without_noise_in_it():
    """Where ``B_t = 0`` there is no noise to tell, and none is needed."""
    schedule = ResidualSchedule(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.0, 0.0, 0.5]), torch.zeros(3))
    x_0, x_lq = (torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    sampler = ResidualSampler(schedule=schedule, steps=3)
    found = sampler(lambda x, lq, time: UNetOutput(lq - x_0, None, x), x_lq)
    torch.testing.assert_close(found, x_0)


def test_tables_are_kept():
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=5)
    table = sampler.table("both")
    assert table.shape == (5, 16) and table.dtype == torch.float32 and sampler.table("both") is table
    assert sampler.table("both", dtype=torch.float64).dtype == torch.float64
    assert not torch.equal(sampler.table("residual"), table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be in 1..1000, got 0"),
        ({"method": "euler"}, "method must be one of 'ddim', 'ddpm', 'paper', .*got 'euler'"),
        ({"eta": 2.0}, r"eta must be in \[0, 1\].*got 2.0"),
        ({"eta": 0.5, "method": "ddpm"}, "eta must be in .* goes with 'ddim'"),
        ({"start_noise": -1.0}, "start_noise must not be negative"),
        ({"time": "bogus"}, "time must be 'scaled' or 'index', got 'bogus'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ResidualSampler(schedule=ResidualSchedule.linear(), **options)


def test_a_network_without_a_head_is_named():
    sampler = ResidualSampler(schedule=ResidualSchedule.linear())
    with pytest.raises(ValueError, match="network must predict a residual, noise, or both"):
        sampler(lambda x, lq, time: UNetOutput(None, None, x), torch.zeros(1, 3, 4, 4))
    for schedule in (ResidualSchedule.rddm(), ResidualSchedule.cosine()):  # A_T = 1, and 1 - 1e-16
        with pytest.raises(ValueError, match="cannot be told from noise alone at t = 999"):
            ResidualSampler(schedule=schedule)(lambda x, lq, time: UNetOutput(None, x, x), torch.zeros(1, 3, 4, 4))


def test_a_network_gets_the_time_that_it_was_trained_with():
    for family in ("bdg", "rddm"):
        for time in ("scaled", "index"):
            assert ResidualSampler.of(UNetConfig(family=family, time=time), 4).time == time
    assert ResidualSampler.of(UNetConfig(family="diffuir"), 4).method == "use_pred_noise"


def test_given_seeds_are_what_a_generator_would_draw():
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method="ddpm")
    x_lq = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def network(x_t, x_lq, time):
        return UNetOutput(0.3 * (x_t - x_lq) * time.view(-1, 1, 1, 1) / 1000, None, x_t)

    expected = sampler(network, x_lq, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    x_start = sampler.start(x_lq, generator)
    assert torch.equal(sampler(network, x_lq, x_start=x_start, seed=sampler.seeds(2, "cpu", generator)), expected)
    with pytest.raises(ValueError, match="seed must not be given for method='use_pred_noise'"):
        ResidualSampler.official()(network, x_lq, seed=sampler.seeds(2))


def test_times_of_the_network_are_those_of_the_steps():
    for time in ("scaled", "index"):
        sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=3, time=time)
        expected = [sampler.schedule.network_time(t, time) for t in (999, 665, 332)]
        assert torch.equal(sampler.network_times(), torch.stack(expected))
        assert sampler.network_times() is sampler.network_times("cpu")
