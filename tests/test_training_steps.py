"""What a step does: gradients, accumulation, averages, rates, decay, and numbers that are not finite."""

import functools
import itertools
import json
import math

import pytest
import torch

from bdg_fast.sampler import ResidualSampler
from bdg_fast.training import NonFiniteError, TrainConfig, Trainer, checkpoint, load_config
from bdg_fast.training.config import Optimizer
from bdg_fast.training.config_stage import TERMS, Stage
from bdg_fast.training.data import degraded_pair
from bdg_fast.training.optim import Average, decays, learning_rate, load_moments, make_optimizer, moments
from bdg_fast.training.settings import build
from bdg_fast.training.stages import Parts, StageModule
from training_setup import batches, config, losses, pictures, settings, trainer

CPU = torch.device("cpu")


def build_one(output, name, values, **changes):
    """Settings of a run of one stage."""
    plain = settings(output, **changes)
    return build(TrainConfig, {**plain, "stages": {name: values}})


VARIANTS = ("plain", "published")


@pytest.mark.parametrize(
    ("name", "heads", "variant"),
    [
        case
        for case in itertools.product(("generation", "bridging", "restoration"), ("residual", "both"), VARIANTS)
        if case != ("restoration", "residual", "published")  # has no term of (5)
    ],
)
def test_a_stage_trains_all_that_its_loss_reaches(tmp_path, name, heads, variant):
    weights = {"generation": 1.0} if heads == "both" else {}
    run = build_one(
        tmp_path, name, {"coefficients": name, "steps": 1, "variant": variant, "losses": weights},
        network={"width": 16, "multipliers": [1], "heads": heads},
    )  # fmt: skip
    stage = run.stages[name]
    parts = Parts(run, 3)
    module = StageModule(parts, run, stage, CPU)
    (batch,) = batches(pictures(), 1, 4, crop=16)
    pair = degraded_pair(batch, batch.seeds, CPU, run.data.degradations)
    found = module(*pair, batch.seeds, 0)
    assert tuple(found) == module.names
    found["loss"].backward()
    for full, parameter in parts.trained(stage).items():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), full
    reached = {full for full, parameter in parts.named_parameters() if parameter.grad is not None}
    assert reached == set(parts.trained(stage))
    head = parts.unet.head.weight.grad
    assert head is not None and bool(head.any())


def test_published_loss_of_one_head_is_that_of_both_told_by_the_other(tmp_path):
    """With the residual right the completed noise is right, and the loss 0."""
    run = build_one(tmp_path, "bridging", {"coefficients": "bridging", "steps": 1, "variant": "published"})
    module = StageModule(Parts(run, 3), run, run.stages["bridging"], CPU)
    generator = torch.Generator().manual_seed(0)
    x_0, x_lq, eps = torch.randn(3, 2, 3, 4, 4, generator=generator).unbind(0)
    t = torch.tensor([10, 900])
    a, b, _ = (column.view(-1, 1, 1, 1) for column in module.forward_table[t].unbind(1))
    x_t = x_0 + a * (x_lq - x_0) + b * eps
    torch.testing.assert_close(module._completed(x_t, x_lq, x_lq - x_0, t), eps, atol=1e-4, rtol=1e-4)


def test_generation_sees_nothing_of_a_degraded_image(tmp_path):
    run = build_one(tmp_path, "generation", {"coefficients": "generation", "steps": 1})
    parts = Parts(run, 3)
    torch.nn.init.ones_(parts.unet.head.weight)  # that of a new network is 0
    module = StageModule(parts, run, run.stages["generation"], CPU)
    (batch,) = batches(pictures(), 1, 2, crop=16)
    clean = batch.clean / 127.5 - 1
    first, second = (module(clean, other, batch.kinds, batch.seeds, 0)["loss"] for other in (clean, -clean))
    assert torch.equal(first, second)
    assert not torch.equal(
        first, module(clean, clean, batch.kinds, batch.seeds, 1)["loss"]
    )  # another step, other noise


def test_an_untrained_network_gives_back_what_it_was_given(tmp_path):
    for shape in ({}, {"heads": "both", "shared_encoder": True}):
        stage = {"coefficients": "restoration", "steps": 1, "losses": {"generation": 1.0}}
        run = build_one(tmp_path, "restoration", stage, network={"width": 16, "multipliers": [1], **shape})
        x_lq = torch.rand(1, 3, 9, 7) * 2 - 1
        restored = ResidualSampler.of(run.network)(Parts(run, 3).unet, x_lq)
        assert shape or torch.equal(restored, x_lq)  # with a noise head some noise is left
        assert Parts(run, 3).unet(x_lq, x_lq, torch.tensor([9.0])).residual.abs().max() == 0


@pytest.mark.parametrize("steps", [3, 0])
def test_only_the_sampler_s_times_are_trained_where_a_stage_says_so(tmp_path, steps):
    run = build_one(tmp_path, "restoration", {"coefficients": "restoration", "steps": 1, "sampler_steps": steps})
    module = StageModule(Parts(run, 3), run, run.stages["restoration"], CPU)
    evaluate, seen = module.evaluate, []
    module.evaluate = lambda x, time, condition: (seen.extend(time.tolist()), evaluate(x, time, condition))[1]
    (batch,) = batches(pictures(), 1, 64, crop=8)
    clean = batch.clean / 127.5 - 1
    module(clean, clean, batch.kinds, batch.seeds, 0)
    sampled = set(ResidualSampler.of(run.network, 3).network_times().tolist())
    assert set(seen) == sampled if steps else len(set(seen)) > 40


def test_accumulated_parts_add_up_to_the_step(tmp_path):
    found = []
    for parts in (1, 2):
        values = {"coefficients": "restoration", "steps": 3, "batch": 4, "crop": 16, "accumulate": parts}
        values["losses"] = {"bridging": 0, "negative": 0}  # what compares images compares those of a part
        run = build_one(tmp_path / str(parts), "restoration", values)
        Trainer(run, source=pictures(), quiet=True).run()
        found.append([line["loss"] for line in losses(run.output)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_learning_rates():
    stage = Stage(coefficients="generation", steps=10, lr=1.0, warmup=3, lr_end=0.2)
    rates = [learning_rate(stage, step) for step in range(10)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[3:])) and rates[-1] > 0.2
    assert rates[5] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 2 / 7)))
    constant = Stage(coefficients="generation", steps=10, lr=1.0, schedule="constant")
    assert {learning_rate(constant, step) for step in range(10)} == {1.0}


def test_weight_decay_leaves_gains_biases_and_the_temperature_out(tmp_path):
    run = config(tmp_path)
    parameters = dict(Parts(run, 3).named_parameters())
    kept = {name for name, p in parameters.items() if not decays(name, p)}
    assert "temperature.logit" in kept and "unet.middle_attention.norm.gain" in kept and "unet.stem.bias" in kept
    assert "unet.encoder.0.block1.norm1.weight" in kept and "of_matrix.norm.weight" in kept
    assert "unet.stem.weight" not in kept and "encoder.out.weight" not in kept
    optimizer = make_optimizer(parameters, Optimizer(weight_decay=0.5), 1.0)
    with_decay, without = optimizer.param_groups
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.5, 0)
    assert {id(p) for p in without["params"]} == {id(parameters[name]) for name in kept}
    assert len(with_decay["params"]) + len(without["params"]) == len(parameters)


def test_moments_come_back_by_name():
    def one():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, make_optimizer(dict(layer.named_parameters()), Optimizer(), 0.1)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    (first, opt1), (second, opt2) = one(), one()
    step(first, opt1)
    saved = {name: value.clone() for name, value in moments(opt1, *[dict(first.named_parameters())] * 2).items()}
    assert set(saved) == {f"{p}/{m}" for p in ("weight", "bias") for m in ("step", "exp_avg", "exp_avg_sq")}
    second.load_state_dict(first.state_dict())
    load_moments(opt2, *[dict(second.named_parameters())] * 2, saved)
    step(first, opt1)
    step(second, opt2)
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(ValueError, match=r"the optimizer's other/exp_avg \[2, 3\] fits no parameter"):
        load_moments(opt2, *[dict(second.named_parameters())] * 2, {"other/exp_avg": saved["weight/exp_avg"]})


def test_averages_follow_the_weights(tmp_path):
    unet = Parts(config(tmp_path), 3).unet
    average = Average(unet, 0.5)
    first = unet.stem.weight.detach().clone()
    expected = first
    for updates in range(8):
        with torch.no_grad():
            unet.stem.weight += 1
        average.update(unet, updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * unet.stem.weight.detach()
    torch.testing.assert_close(average.unet.stem.weight, expected)
    assert not any(p.requires_grad for p in average.unet.parameters())


def breaking(monkeypatch, at, how):
    """Have the loss, or its gradient, be not finite at the steps `at`, from 0."""
    forward = StageModule.forward

    def broken(self, clean, degraded, classes, seeds, step):
        found = forward(self, clean, degraded, classes, seeds, step)
        if step in at and how == "loss":
            found["loss"] = found["loss"] * math.nan
            found["reconstruction"] = found["reconstruction"] * math.nan
        elif step in at:
            self.parts.unet.stem.bias.register_hook(lambda gradient: gradient * math.inf)
        return found

    monkeypatch.setattr(StageModule, "forward", broken)


def one_stage(output, **changes):
    values = {"coefficients": "restoration", "steps": 6, "batch": 4, "crop": 16}
    return Trainer(build_one(output, "restoration", values, **changes), source=pictures(), quiet=True)


def test_a_loss_that_is_not_finite_stops_and_says_where(monkeypatch, tmp_path):
    breaking(monkeypatch, {4}, "loss")
    with pytest.raises(
        NonFiniteError,
        match=r"^step 5 of stage restoration: loss, reconstruction, gradient not finite; "
        r"on process 0: loss, reconstruction of the images image \d, image \d",
    ):
        one_stage(tmp_path).run()
    saved, _ = checkpoint.load(tmp_path / "checkpoints")
    assert saved is not None and saved.state["step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in saved.parts.values())


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(monkeypatch, tmp_path):
    breaking(monkeypatch, {2}, "gradient")
    with pytest.raises(NonFiniteError, match=r"^step 3 .*: gradient not finite; of unet.stem.bias, with the images"):
        one_stage(tmp_path).run()


def test_steps_that_are_not_finite_can_be_skipped(monkeypatch, tmp_path):
    breaking(monkeypatch, {1, 4}, "loss")
    result = one_stage(tmp_path, non_finite="skip", most_skipped=1).run()
    assert result.finished and result.skipped == 2
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert "loss" in json.loads(line, parse_constant=pytest.fail)  # strict readers know no NaN
    saved, _ = checkpoint.load(tmp_path / "checkpoints")
    assert saved is not None and saved.state["updates"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in (saved.parts | saved.optimizer | saved.network).values())


def test_too_many_in_a_row_stop_all_the_same(monkeypatch, tmp_path):
    breaking(monkeypatch, {2, 3, 4}, "loss")
    with pytest.raises(NonFiniteError, match=r"^step 5 .*; 2 steps before it were skipped"):
        one_stage(tmp_path, non_finite="skip", most_skipped=2).run()


def test_gradients_are_limited(monkeypatch, tmp_path):
    norms = []
    step = torch.optim.AdamW.step

    def recorded(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    one_stage(tmp_path, optimizer={"clip": 0.25}).run(until=2)
    assert norms == pytest.approx([0.25, 0.25], rel=1e-4)
    assert all(line["gradient"] > 0.25 for line in losses(tmp_path))


ABLATIONS = {
    "without bridging": {"stages.bridging.losses.bridging": 0, "stages.restoration.losses.bridging": 0},
    "without classification": {"stages.bridging.losses.classification": 0},
    "without negatives": {"stages.restoration.losses.negative": 0},
    "without fingerprint": {
        "stages.bridging.losses": {"bridging": 0, "classification": 0},
        "stages.restoration.losses": {"bridging": 0, "negative": 0},
    },
    "residual only": {
        "stages.generation.steps": 0,
        "stages.bridging.steps": 0,
        "stages.restoration.losses": {"bridging": 0, "negative": 0},
    },
    "one stage": {"stages.generation.steps": 0, "stages.bridging.steps": 0},
    "published (5)": {"stages.generation.variant": "published", "stages.bridging.variant": "published"},
    "chain": {"data.degradations": ["chain"]},
    "noise too": {"network.heads": "both", "stages.restoration.losses.generation": 1},
    "both fingerprints": {"encoder.residual": True},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_settings_alone(tmp_path, name):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings(tmp_path / "run", stages={"steps": 1})))
    run = load_config(file, [f"{key}={json.dumps(value)}" for key, value in ABLATIONS[name].items()])
    result = Trainer(run, source=pictures(), quiet=True).run()
    assert result.finished and result.step == len(run.active)
    lines = {line["stage"]: line for line in losses(run.output)}
    for stage, settings_of_stage in run.active.items():
        terms = set(settings_of_stage.losses.weights)
        assert terms == lines[stage].keys() & set(TERMS)
    saved, _ = checkpoint.load(tmp_path / "run/checkpoints")
    assert saved is not None
    has_encoder = any(full.startswith("encoder.") for full in saved.parts)
    assert has_encoder == (name not in ("without fingerprint", "residual only"))


def test_one_launch_of_the_optimizer_goes_on_exactly(tmp_path):
    for folder, stops in (("whole", []), ("stopped", [3])):
        for until in [*stops, None]:
            one_stage(tmp_path / folder, optimizer={"fused": True}).run(until)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_compiled_network_has_the_same_losses(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    one_stage(tmp_path / "plain").run(until=1)
    one_stage(tmp_path / "compiled", compile=True).run(until=1)
    (expected,), (found,) = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert found.pop("stage") == expected.pop("stage")
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_cannot_be_shared_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    with pytest.raises(ValueError, match=r"stages.generation.batch must be a multiple of 3 .*, got 4"):
        trainer(tmp_path).run()
