"""Parts of a training step on four images of 128 x 128, to be seen as shares of the smallest network's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bdg_fast import SIZES, ResidualSchedule, UNet, losses
from bdg_fast.data.degrade import NAMES, RANGES, degrade, two_order_chain
from bdg_fast.models import Fingerprint, GLCMEncoder, Projection

STEP = "training: parts of a step, 4 images 128 x 128"
SEEDS = torch.arange(4)


@pytest.fixture(scope="module")
def images(batch: np.ndarray) -> Tensor:
    """float32 ``[4, 3, 128, 128]`` in [0, 1]."""
    gray = torch.from_numpy(batch[:12, 64:192, 64:192]).float() / 255
    return gray.view(4, 3, 128, 128)


def network(images: Tensor) -> Callable[[], None]:
    """Forward and backward of the network with the generation loss."""
    schedule, unet = ResidualSchedule.linear(), UNet(SIZES["T"])
    table, t = schedule.increment_table(), torch.tensor([100, 400, 700, 999])
    x, noise = images * 2 - 1, torch.randn_like(images)
    time = schedule.network_time(t)

    def step() -> None:
        residual = unet(x, x, time).residual
        losses.generation_loss(residual, None, x, x, noise, t, table).backward()

    return step


def fingerprint(images: Tensor) -> Callable[[], object]:
    """Matrices of gray levels."""
    module, x = Fingerprint(), images * 2 - 1
    return lambda: module(x)


def both_fingerprints(images: Tensor) -> Callable[[], object]:
    """Matrices of gray levels and of the residual."""
    module, x = Fingerprint(residual=True), images * 2 - 1
    return lambda: module(x)


def bridging(images: Tensor) -> Callable[[], None]:
    """Forward and backward of encoder, projections and contrastive losses."""
    encoder, of_matrix, of_features = GLCMEncoder(), Projection(256), Projection(32)
    matrix, features = Fingerprint()(images * 2 - 1), torch.randn(4, 32, 16, 16)

    def step() -> None:
        mas = of_matrix(encoder(matrix))
        (losses.bridging_loss(mas, of_features(features), 14.0) + losses.negative_loss(mas)).backward()

    return step


@pytest.mark.parametrize("part", [network, fingerprint, both_fingerprints, bridging], ids=lambda part: part.__name__)
def test_parts_of_a_step(benchmark, images, part):  # type: ignore[no-untyped-def]
    benchmark.group = STEP
    benchmark.pedantic(part(images), rounds=7, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("name", [*(name for name in NAMES if "+" not in name), "lowlight+haze+rain", "chain"])
def test_degradations(benchmark, images, name):  # type: ignore[no-untyped-def]
    benchmark.group = STEP
    if name == "chain":
        run = lambda: two_order_chain(images, SEEDS)  # noqa: E731
    else:
        level = sum(RANGES[name]) / 2
        run = lambda: degrade(images, name, level, SEEDS)  # noqa: E731
    found = run()
    assert bool(torch.as_tensor(found[0]).isfinite().all())
    benchmark.pedantic(run, rounds=7, iterations=1, warmup_rounds=1)
