"""Losses: their minima, invariances and gradients, plain loops as the oracle, and two ranks equal to one."""

import functools
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from bdg_fast import ResidualSchedule, losses

SCHEDULES = {"linear": ResidualSchedule.linear(steps=50), "rddm": ResidualSchedule.rddm(steps=20)}


def features(batch=5, width=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, width, generator=generator, dtype=dtype).unbind(0)


def images(batch=2, seed=0, dtype=torch.float64):
    """`residual, noise, x_0, x_lq, eps`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, batch, 3, 4, 3, generator=generator, dtype=dtype).unbind(0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_increments_are_those_of_the_published_step(schedule):
    table = schedule.increment_table(dtype=torch.float64)
    for t in range(len(schedule)):
        step = schedule.coefficients(t, t - 1, eta=1.0)
        assert table[t].tolist() == pytest.approx([step.residual, step.noise, step.degraded], abs=1e-12)


def test_increments_before_any_noise_are_zero():
    schedule = ResidualSchedule(torch.tensor([0.1, 0.2]), torch.tensor([0.0, 0.5]), torch.zeros(2))
    assert schedule.increment_table()[:, 1].tolist() == pytest.approx([0, math.sqrt(0.5)])


def test_generation_loss_equals_a_loop_over_pixels():
    residual, noise, x_0, x_lq, eps = images()
    schedule, t = SCHEDULES["linear"], torch.tensor([3, 49])
    total = 0.0
    for b in range(2):
        (a, b_t, _), (a_s, b_s, _) = schedule.at(int(t[b])), schedule.at(int(t[b]) - 1)
        for c, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(3)).tolist():
            at = b, c, y, x
            error = (a - a_s) * (residual[at] - (x_lq[at] - x_0[at])) + (b_t**2 - b_s**2) / b_t * (noise[at] - eps[at])
            total += float(error) ** 2
    table = schedule.increment_table(dtype=torch.float64)
    found = losses.generation_loss(residual, noise, x_0, x_lq, eps, t, table)
    assert found.item() == pytest.approx(total / x_0.numel(), rel=1e-12)


def test_generation_losses_vanish_at_the_targets_alone():
    _, _, x_0, x_lq, eps = images()
    t, table = torch.tensor([3, 40]), SCHEDULES["linear"].increment_table(dtype=torch.float64)
    weighted = functools.partial(losses.generation_loss, t=t, table=table)
    for loss in (weighted, losses.plain_generation_loss):
        assert loss(x_lq - x_0, eps, x_0, x_lq, eps).item() == 0
        assert loss(x_lq - x_0, None, x_0, x_lq, eps).item() == 0
        assert loss(None, eps, x_0, x_lq, eps).item() == 0
        assert loss(x_0 - x_lq, eps, x_0, x_lq, eps).item() > 0
        assert loss(None, -eps, x_0, x_lq, eps).item() > 0


def test_generation_has_no_residual_to_learn():
    residual, noise, x_0, x_lq, eps = images()
    table = SCHEDULES["linear"].stage("generation").increment_table()
    residual.requires_grad_()
    losses.generation_loss(residual, noise, x_0, x_lq, eps, torch.tensor([3, 4]), table).backward()
    assert not residual.grad.any()


def test_an_exact_step_is_what_the_weighted_loss_measures():
    """Its root is the distance between the published step of predictions and that of the truth."""
    residual, noise, x_0, x_lq, eps = images()
    schedule, t = SCHEDULES["linear"], torch.tensor([20, 20])
    step = schedule.coefficients(20, 19, eta=1.0)
    distance = step.residual * (residual - (x_lq - x_0)) + step.noise * (noise - eps)
    table = schedule.increment_table(dtype=torch.float64)
    found = losses.generation_loss(residual, noise, x_0, x_lq, eps, t, table)
    torch.testing.assert_close(found, distance.square().mean())


def naive_bridging(mas, diff, scale):
    total = 0.0
    for i in range(len(mas)):
        for one, other in ((mas, diff), (diff, mas)):
            similarity = [scale * float(F.cosine_similarity(one[i], other[j], dim=0)) for j in range(len(mas))]
            total += math.log(sum(math.exp(s) for s in similarity)) - similarity[i]
    return total / (2 * len(mas))


def naive_negative(mas):
    pairs = [(i, j) for i in range(len(mas)) for j in range(len(mas)) if i != j]
    return sum(1 + float(F.cosine_similarity(mas[i], mas[j], dim=0)) for i, j in pairs) / len(pairs)


def test_contrastive_losses_equal_plain_loops():
    mas, diff = features()
    assert losses.bridging_loss(mas, diff, 3.0).item() == pytest.approx(naive_bridging(mas, diff, 3.0), rel=1e-9)
    assert losses.negative_loss(mas).item() == pytest.approx(naive_negative(mas), rel=1e-9)


def test_contrastive_losses_do_not_see_length_or_order():
    mas, diff = features()
    order, length = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1e-3, 1, 2, 30, 1e4], dtype=torch.float64)[:, None]
    for loss in (lambda m, d: losses.bridging_loss(m, d, 5.0), lambda m, d: losses.negative_loss(m)):
        expected = loss(mas, diff)
        torch.testing.assert_close(loss(mas[order], diff[order]), expected)
        torch.testing.assert_close(loss(mas * length, diff / length), expected)
    assert not torch.isclose(losses.bridging_loss(mas[order], diff, 5.0), losses.bridging_loss(mas, diff, 5.0))


def test_bridging_loss_is_symmetric_and_bounded_by_its_extremes():
    mas, diff = features()
    torch.testing.assert_close(losses.bridging_loss(mas, diff, 5.0), losses.bridging_loss(diff, mas, 5.0))
    same = torch.ones(5, 7, dtype=torch.float64)
    assert losses.bridging_loss(same, same, 9.0).item() == pytest.approx(math.log(5))
    distinct = torch.eye(5, dtype=torch.float64)
    assert losses.bridging_loss(distinct, distinct, 100.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("number", [2, 3, 4, 9])
def test_least_negative_loss_is_that_of_vectors_that_cancel(number):
    simplex = torch.eye(number, dtype=torch.float64) - 1 / number  # a regular simplex around 0
    assert losses.negative_loss(simplex).item() == pytest.approx((number - 2) / (number - 1))
    for seed in range(3):
        assert losses.negative_loss(features(number, seed=seed)[0]).item() >= (number - 2) / (number - 1)
    assert losses.negative_loss(torch.ones(number, 3)).item() == pytest.approx(2)


def test_descent_reaches_the_minima():
    mas, diff = (x.clone().requires_grad_() for x in features(4, 6))
    optimizer = torch.optim.Adam((mas, diff), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (losses.bridging_loss(mas, diff, 20.0) + losses.negative_loss(mas)).backward()
        optimizer.step()
    assert losses.bridging_loss(mas, diff, 20.0).item() < 1e-3
    assert losses.negative_loss(mas).item() == pytest.approx(2 / 3, abs=1e-3)


def test_batch_of_one_has_no_contrast():
    mas, diff = (x.clone().requires_grad_() for x in features(1))
    loss = losses.bridging_loss(mas, diff, 5.0) + losses.negative_loss(mas)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert mas.grad.abs().max() < 1e-12


def test_features_of_zeros_have_bounded_gradients():
    mas = torch.zeros(3, 4, requires_grad=True)
    losses.negative_loss(torch.cat((mas, torch.ones(1, 4)))).backward()
    assert mas.grad.isfinite().all()


def test_gradients():
    mas, diff = (x.requires_grad_() for x in features(4, 3))
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert gradcheck(losses.bridging_loss, (mas, diff, scale))
    assert gradcheck(losses.negative_loss, (mas,))
    logits, classes = features(4, 3, seed=1)[0].requires_grad_(), torch.tensor([2, 0, 1, 1])
    assert gradcheck(lambda x: losses.classification_loss(x, classes), (logits,))
    residual, noise, x_0, x_lq, eps = images(1)
    t, table = torch.tensor([30]), SCHEDULES["rddm"].increment_table(dtype=torch.float64)[:1].expand(31, 3)
    inputs = residual.requires_grad_(), noise.requires_grad_()
    assert gradcheck(lambda r, n: losses.generation_loss(r, n, x_0, x_lq, eps, t, table), inputs)
    assert gradcheck(lambda r, n: losses.plain_generation_loss(r, n, x_0, x_lq, eps), inputs)
    zero = torch.zeros((), dtype=torch.float64)
    assert gradcheck(lambda x: losses.restoration_loss(x, x_0, zero, zero), (residual,))


def test_classification_loss_is_the_log_of_the_right_class():
    logits, classes = features(4, 3)[0], torch.tensor([2, 0, 1, 1])
    expected = -sum(math.log(float(logits[i].softmax(0)[c])) for i, c in enumerate(classes.tolist())) / 4
    assert losses.classification_loss(logits, classes).item() == pytest.approx(expected)
    assert losses.classification_loss(torch.eye(3) * 50, torch.arange(3)).item() == pytest.approx(0, abs=1e-6)


def test_sums_of_the_stages():
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    assert losses.bridging_stage_loss(one, two, three).item() == pytest.approx(1.5)
    assert losses.bridging_stage_loss(one, two, three, weight=0).item() == 1
    x_0 = images()[2]
    assert losses.restoration_loss(x_0 + 0.25, x_0, two, three).item() == pytest.approx(0.25 + 0.2 + 3)
    assert losses.restoration_loss(x_0 - 0.5, x_0, two, three, weight=1).item() == pytest.approx(0.5 + 2 + 3)


def test_temperature_begins_where_told_and_stays_within_its_limit():
    temperature = losses.Temperature(0.1)
    assert temperature().item() == pytest.approx(10)
    with torch.no_grad():
        temperature.logit.fill_(8)
    assert temperature().item() < losses.LARGEST_SCALE
    temperature().backward()
    assert temperature.logit.grad > 0  # and can come back
    mas, diff = features(dtype=torch.float32)
    loss = losses.bridging_loss(mas, diff, temperature())
    assert torch.autograd.grad(loss, temperature.logit)[0].abs() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_computed_in_float32(dtype):
    mas, diff = (x.to(dtype) for x in features(6, 40))
    logits, classes = mas[:, :5], torch.tensor([0, 1, 2, 3, 4, 0])
    low, table, t = [x.to(dtype) for x in images()], SCHEDULES["linear"].increment_table(), torch.tensor([1, 30])

    def all_losses(convert):
        m, d, x, pictures = convert(mas), convert(diff), convert(logits), [convert(p) for p in low]
        yield losses.bridging_loss(m, d, 14.0)
        yield losses.negative_loss(m)
        yield losses.classification_loss(x, classes)
        yield losses.generation_loss(*pictures, t, table)
        yield losses.plain_generation_loss(*pictures)
        yield losses.restoration_loss(*pictures[:2], torch.zeros(()), torch.zeros(()))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = list(all_losses(lambda x: x))
    for one, expected in zip(found, all_losses(torch.Tensor.float), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, expected)


def test_a_training_loss_compiles_in_one_graph():
    (mas, diff), (residual, noise, x_0, x_lq, eps) = features(), images()
    t, table = torch.tensor([3, 40]), SCHEDULES["linear"].increment_table()

    def loss(f_mas, res):
        generation = losses.generation_loss(res, noise, x_0, x_lq, eps, t, table)
        classes = losses.classification_loss(f_mas, torch.arange(5))
        stage = losses.bridging_stage_loss(generation, losses.bridging_loss(f_mas, diff, 5.0), classes)
        return stage + losses.restoration_loss(res, x_0, stage, losses.negative_loss(f_mas))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for function in (loss, compiled):
        inputs = mas.clone().requires_grad_(), residual.clone().requires_grad_()
        value = function(*inputs)
        found.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(found[1], found[0])


def test_bad_arguments_are_named():
    mas, diff = features()
    residual, noise, x_0, x_lq, eps = images()
    t, table = torch.tensor([1, 2]), SCHEDULES["linear"].increment_table()
    for match, call in {
        r"f_mas must be floating \[B, D\]": lambda: losses.bridging_loss(mas[0], diff, 1.0),
        r"f_diff must be floating .*, got torch.int64": lambda: losses.bridging_loss(mas, diff.long(), 1.0),
        r"f_diff must have the shape of f_mas, \[5, 7\]": lambda: losses.bridging_loss(mas, diff[1:], 1.0),
        r"scale must be one number": lambda: losses.bridging_loss(mas, diff, torch.ones(2)),
        r"f_mas must be .* not empty": lambda: losses.negative_loss(mas[:0]),
        r"logits must be floating": lambda: losses.classification_loss(mas[0], torch.zeros(7).long()),
        r"classes must be int64 \[5\], got torch.float32": lambda: losses.classification_loss(mas, torch.zeros(5)),
        r"residual or noise must be given": lambda: losses.plain_generation_loss(None, None, x_0, x_lq, eps),
        r"noise must have the shape of x_0": lambda: losses.plain_generation_loss(None, noise[:1], x_0, x_lq, eps),
        r"x_0 must be floating": lambda: losses.plain_generation_loss(None, noise, x_0[0], x_lq, eps),
        r"t must be int64 \[2\]": lambda: losses.generation_loss(residual, None, x_0, x_lq, eps, t[:1], table),
        r"table must be floating \[T, 3\]": lambda: losses.generation_loss(None, noise, x_0, x_lq, eps, t, table[0]),
        r"bridging must be a scalar": lambda: losses.bridging_stage_loss(t.sum(), table, t.sum()),
        r"weight must not be negative": lambda: losses.bridging_stage_loss(t.sum(), t.sum(), t.sum(), weight=-1),
        r"restored must have the shape": lambda: losses.restoration_loss(x_0[:1], x_0, t.sum(), t.sum()),
        r"initial must be above 0.01": lambda: losses.Temperature(0.0),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    for times in (torch.tensor([0, 50]), torch.tensor([-1, 0])):
        with pytest.raises(IndexError):
            losses.generation_loss(residual, None, x_0, x_lq, eps, times, table)
    with pytest.raises(IndexError):
        losses.classification_loss(mas, torch.tensor([0, 1, 2, 3, -100]))


class Contrast(nn.Module):
    """All losses that compare images, and one that does not, of features with learned weights and temperature."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 4, dtype=torch.float64)
        self.temperature = losses.Temperature(0.3).double()
        with torch.no_grad():
            self.linear.weight.copy_(features(4, 7, seed=3)[0])
            self.linear.bias.fill_(0.1)

    def forward(self, mas, diff, classes):
        mas, diff = self.linear(mas), self.linear(diff)
        contrast = losses.bridging_loss(mas, diff, self.temperature()) + losses.negative_loss(mas)
        return contrast, losses.classification_loss(mas, classes)


def values_and_gradients(module, *inputs):
    contrast, own = module(*inputs)
    (contrast + own).backward()
    return contrast.detach(), own.detach(), [p.grad for p in module.parameters()]


def rank_main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    inputs = torch.load(folder / "inputs.pt")
    rows = slice(3 * rank, 3 * rank + 3)
    found = values_and_gradients(Contrast(), *(x[rows] for x in inputs))
    for gradient in found[2]:  # as DistributedDataParallel averages them
        dist.all_reduce(gradient)
        gradient /= 2
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_with_the_joined_batch(tmp_path):
    inputs = [*features(6, 7), torch.tensor([0, 1, 2, 3, 0, 1])]
    torch.save(inputs, tmp_path / "inputs.pt")
    mp.spawn(rank_main, (tmp_path,), nprocs=2)
    contrast, own, gradients = values_and_gradients(Contrast(), *inputs)
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for on_rank in found:
        torch.testing.assert_close(on_rank[0], contrast)
        torch.testing.assert_close(on_rank[2], gradients)
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, own)  # a mean over a rank's own images
