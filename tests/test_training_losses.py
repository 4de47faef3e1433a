"""What a stage's loss is: every term, their sum and its gradients, by the paper's formulas in float64."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bdg_fast import ResidualSchedule
from bdg_fast.models import Fingerprint, UNetOutput
from bdg_fast.training import TrainConfig
from bdg_fast.training.settings import build
from bdg_fast.training.stages import Parts, StageModule
from training_setup import on_two_ranks, settings, two_ranks

CPU = torch.device("cpu")
HEIGHT, WIDTH = 13, 11  # which the network pads
SCHEDULE = ResidualSchedule.linear()
PAPER = {
    "generation": {"generation": 1.0},
    "bridging": {"generation": 1.0, "bridging": 0.1, "classification": 0.1},  # (8)
    "restoration": {"reconstruction": 1.0, "bridging": 0.1, "negative": 1.0},  # (9) and (10)
}
OWN = {
    "generation": 0.7, "reconstruction": 1.3, "bridging": 0.31, "classification": 0.23, "negative": 0.17,
    "frequency": 0.43,
}  # fmt: skip
UNKNOWN = OWN.keys() - {"generation", "reconstruction"}
"""Terms of degraded images, which generation has none of."""
CONDITIONAL = {"width": 16, "multipliers": [1], "condition": 8}


class Network:
    """In place of the network that a stage evaluates: keeps what it is given, and gives what it draws."""

    def __init__(self, parts, seed=0):
        self.both, self.channels = parts.unet.config.heads == "both", parts.unet.feature_channels
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x, time, condition):
        self.given = x, time, condition
        image, features = (len(x), 3, *x.shape[2:]), (len(x), self.channels, 3, 2)
        residual, noise, inner = (
            torch.randn(shape, generator=self.generator, requires_grad=True) for shape in (image, image, features)
        )
        self.gave = UNetOutput(residual, noise if self.both else None, inner)
        return self.gave


def module_of(name, weights, variant="plain", heads="residual", network=None):
    """A stage whose network is a :class:`Network`; its weights are the default ones if None are given."""
    stage = {"coefficients": name, "steps": 1, "variant": variant, "losses": weights or {}}
    values = settings("nowhere", network=network or {"width": 16, "multipliers": [1], "heads": heads})
    run = build(TrainConfig, {**values, "stages": {name: stage}})
    parts = Parts(run, 3)
    module = StageModule(parts, run, run.stages[name], CPU)
    module.evaluate = Network(parts)
    return module


def images(batch=4, seed=1):
    """Clean and degraded ones, others to read fingerprints of, classes and seeds."""
    generator = torch.Generator().manual_seed(seed)
    clean, degraded, seen = torch.rand(3, batch, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1
    classes = torch.arange(batch) * 2 % 3
    return clean, degraded, classes, torch.arange(batch) * 1000 + 17, seen


def recomputed(module, network, x_0, degraded, classes, seen):
    """Every term, float64, of what a network was given and gave; with what it gave and all else that is trained."""
    stage, parts = module.stage, copy.deepcopy(module.parts).double()
    name = stage.coefficients
    x, time, condition = network.given
    given = [None if part is None else part.detach().double().requires_grad_() for part in network.gave]
    x_t, x_lq = x.double()[:, :, :HEIGHT, :WIDTH].split(3, 1)
    assert torch.equal(x_lq, torch.zeros_like(x_lq) if name == "generation" else degraded.double())
    residual, noise = (None if part is None else part[:, :, :HEIGHT, :WIDTH] for part in given[:2])
    x_0 = x_0.double()
    x_res = x_lq - x_0

    t = (SCHEDULE.alpha * 1000 - time.double()[:, None]).abs().argmin(1)  # the network's time is 1000 A_t
    # A, B^2 and D before and at t, 0 before the first
    (a_before, a), (b2_before, b2), (_, d) = (
        [F.pad(table, (1, 0))[t + place].view(-1, 1, 1, 1) for place in (0, 1)]
        for table in (SCHEDULE.alpha, SCHEDULE.beta2, SCHEDULE.delta)
    )
    if name == "generation":  # alpha = delta = 0
        a = a_before = torch.zeros_like(a)
    if name != "restoration":  # delta = 0
        d = torch.zeros_like(d)
    eps = (x_t - x_0 - a * x_res + d * x_lq) / b2.sqrt()
    assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1
    terms = {}
    if stage.variant == "plain":
        terms["generation"] = ((residual - x_res) ** 2).mean()
        if noise is not None:
            terms["generation"] = terms["generation"] + ((noise - eps) ** 2).mean()
    else:
        if noise is None:  # what is in x_t if the residual is right
            noise = (x_t - (x_lq - residual) - a * residual + d * x_lq) / b2.sqrt()
        step = (a - a_before) * (residual - x_res) + (b2 - b2_before) / b2.sqrt() * (noise - eps)  # (5)
        terms["generation"] = (step**2).mean()
    wrong = x_lq - residual - x_0
    terms["reconstruction"] = wrong.abs().mean()  # the first of (9)
    spectrum = torch.fft.rfft2(wrong, norm="ortho")
    terms["frequency"] = (spectrum.real.abs().mean() + spectrum.imag.abs().mean()) / 2

    if name == "generation":
        return terms, given, parts
    if parts.encoder is None:  # a conditional network has its own, and is told what that reads
        features = parts.unet.told(seen)
        torch.testing.assert_close(condition.double(), features, atol=1e-5, rtol=1e-5)
    else:
        assert condition is None
        features = parts.encoder(Fingerprint(2, [1], 8)(seen))
    mas, diff = parts.of_matrix(features), parts.of_features(given[2])
    mas, diff = (vectors / vectors.norm(dim=1, keepdim=True) for vectors in (mas, diff))
    alike = 100 * torch.sigmoid(parts.temperature.logit) * mas @ diff.T
    m2d, d2m = alike.log_softmax(1).diagonal(), alike.log_softmax(0).diagonal()
    terms["bridging"] = -(m2d.mean() + d2m.mean()) / 2  # (6)
    logits = parts.classifier(features)
    terms["classification"] = -logits.log_softmax(1)[torch.arange(len(classes)), classes].mean()  # (7)
    pairs = ~torch.eye(len(mas), dtype=torch.bool)
    terms["negative"] = (1 + mas @ mas.T)[pairs].mean()  # (10)
    terms["accuracy"] = (logits.argmax(1) == classes).double().mean()
    return terms, given, parts


def check(name, weights, *, apart=False, **options):
    """Terms, loss and gradients of a stage against the formulas; `apart`: fingerprints are read of other images."""
    module = module_of(name, weights, **options)
    weights = weights or PAPER[name]
    clean, degraded, classes, seeds, other = images()
    found = module(clean, degraded, classes, seeds, 5, *([other] if apart else []))
    terms, given, parts = recomputed(module, module.evaluate, clean, degraded, classes, other if apart else degraded)
    names = {"loss", *weights} | ({"accuracy"} if "classification" in weights else set())
    assert found.keys() == names == set(module.names)
    for term in names - {"loss"}:
        assert found[term].item() == pytest.approx(terms[term].item(), rel=2e-5), term
    total = sum(weight * terms[term] for term, weight in weights.items())
    assert found["loss"].item() == pytest.approx(total.item(), rel=2e-5)
    found["loss"].backward()
    total.backward()
    own = dict(parts.named_parameters())
    pairs = {full: (parameter, own[full]) for full, parameter in module.parts.trained(module.stage).items()}
    outputs = zip(module.evaluate.gave, given, strict=True)
    pairs |= {f"the network's {place}": pair for place, pair in enumerate(outputs)}
    for full, (mine, expected) in pairs.items():
        if expected is not None and expected.grad is not None:
            assert mine.grad is not None, full
            assert (mine.grad - expected.grad).norm() <= 1e-4 * expected.grad.norm() + 1e-9, full
        elif mine is not None:
            assert mine.grad is None, full


@pytest.mark.parametrize("name", PAPER)
def test_a_stage_has_the_paper_s_loss_unless_told_otherwise(name):
    check(name, None)


@pytest.mark.parametrize("variant", ["plain", "published"])
@pytest.mark.parametrize("heads", ["residual", "both"])
@pytest.mark.parametrize("name", PAPER)
def test_every_term_counts_as_much_as_its_weight_says(name, heads, variant):
    weights = {term: weight for term, weight in OWN.items() if name != "generation" or term not in UNKNOWN}
    check(name, weights, heads=heads, variant=variant, apart=name != "generation")


@pytest.mark.parametrize("name", ["bridging", "restoration"])
def test_a_conditional_network_is_told_what_the_losses_compare(name):
    check(name, OWN, network=CONDITIONAL, apart=True)


def test_a_stage_that_reads_fingerprints_alone_has_7_alone():
    others = dict.fromkeys(OWN.keys() - {"classification"}, 0.0)
    module = module_of("restoration", {**others, "classification": 0.3})
    clean, degraded, classes, seeds, _ = images()
    found = module(clean, degraded, classes, seeds, 5)
    logits = module.parts.classifier(module.parts.encoder(Fingerprint(2, [1], 8)(degraded))).double()
    expected = -logits.log_softmax(1)[torch.arange(len(classes)), classes].mean()
    assert {term: value.item() for term, value in found.items()} == pytest.approx(
        {
            "loss": 0.3 * expected.item(),
            "classification": expected.item(),
            "accuracy": (logits.argmax(1) == classes).double().mean().item(),
        }
    )


def rank_main(rank, folder):
    module = module_of("restoration", OWN, heads="both")
    module.evaluate = network = Network(module.parts, rank)
    found = module(*(x[4 * rank : 4 * rank + 4] for x in images(8)[:4]), 5)
    kept = {"found": found, "given": network.given[:2], "gave": tuple(network.gave)}
    torch.save({name: detached(value) for name, value in kept.items()}, folder / f"rank{rank}.pt")


def detached(values):
    keys = values.keys() if isinstance(values, dict) else range(len(values))
    return {key: values[key].detach() for key in keys}


def test_two_processes_compare_the_images_of_both(tmp_path):
    on_two_ranks(__file__, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    given, gave = (
        [torch.cat(parts) for parts in zip(*(rank[name].values() for rank in ranks), strict=True)]
        for name in ("given", "gave")
    )
    clean, degraded, classes, *_ = images(8)
    module = module_of("restoration", OWN, heads="both")
    joined = SimpleNamespace(given=(*given, None), gave=gave)
    terms, *_ = recomputed(module, joined, clean, degraded, classes, degraded)
    for term in OWN:
        mine, theirs = (rank["found"][term].item() for rank in ranks)
        if term in ("bridging", "negative"):
            assert mine == pytest.approx(theirs, rel=1e-6), term
        assert (mine + theirs) / 2 == pytest.approx(terms[term].item(), rel=2e-5), term
    total = sum(weight * terms[term].item() for term, weight in OWN.items())
    assert sum(rank["found"]["loss"].item() for rank in ranks) / 2 == pytest.approx(total, rel=2e-5)


if __name__ == "__main__":
    sys.exit(two_ranks(rank_main, sys.argv[1]))
