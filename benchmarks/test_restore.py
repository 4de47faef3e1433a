"""Networks and whole restorations of one photograph on the CPU: ours against the published arithmetic, checked equal.

Both sides run in one process, so the allocator is the same; set glibc's thresholds (benchmarks/notes.md) to have it as
`bdg-fast restore` has it. Nothing else may run meanwhile: two threads that wait for each other double the times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from bdg_fast import SIZES, ResidualSampler, Restorer, UNet

from .conftest import photographs
from .published import PublishedUNet

SIDE = 256
ROUNDS = 7


@cache
def images(count: int) -> Tensor:
    """``[count, 3, SIDE, SIDE]`` in [0, 1]."""
    gray = torch.from_numpy(photographs(count, SIDE))[:, None].float() / 255
    return gray.expand(-1, 3, -1, -1).contiguous()


def network(size: str) -> UNet:
    torch.manual_seed(0)
    return UNet(SIZES[size]).eval()


def forward(name: str, size: str) -> Callable[[Tensor], Tensor]:
    """One evaluation at one time, images in [-1, 1]."""
    unet = network(size)
    model = PublishedUNet(unet) if name == "published arithmetic" else unet if "not folded" in name else unet.fold()
    low = torch.bfloat16 if "bfloat16" in name else None

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", low, enabled=low is not None):
            found = model(x, x, torch.tensor([500.0]).expand(len(x))).residual
        assert found is not None
        return found

    return run


def restoration(name: str, size: str) -> Callable[[Tensor], Tensor]:
    """DiffUIR's three steps, pixels in [0, 1]."""
    sampler = ResidualSampler.official(steps=3)
    if name != "published arithmetic":
        restorer = Restorer(network(size), sampler, device="cpu", dtype="bfloat16" if "bfloat16" in name else "float32")
        return restorer.restore
    published = PublishedUNet(network(size))

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
            x_lq = pixels * 2 - 1
            return (sampler(published, x_lq, x_start=sampler.start(x_lq, noise=noise)) + 1) / 2

    return run


BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
NAMES = ["published arithmetic", "bdg_fast", *(["bdg_fast bfloat16"] if BF16 else [])]


@pytest.mark.parametrize("size", ["T", "S", "L"])
@pytest.mark.parametrize("name", [*NAMES, "bdg_fast, not folded"])
def test_forward(benchmark, name, size):  # type: ignore[no-untyped-def]
    benchmark.group = f"network {size}: one evaluation, 1 x 3 x {SIDE} x {SIDE}"
    x, run = images(1) * 2 - 1, forward(name, size)
    expected = forward("published arithmetic", size)(x)
    assert (run(x) - expected).abs().max() < (0.1 if "bfloat16" in name else 1e-4)
    benchmark.pedantic(run, (x,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_restoration(benchmark, name, count):  # type: ignore[no-untyped-def]
    benchmark.group = f"restoration, network T, 3 steps: {count} x 3 x {SIDE} x {SIDE}"
    pixels, run = images(count), restoration(name, "T")
    error = (run(pixels) - restoration("published arithmetic", "T")(pixels)).square().mean()
    assert -10 * torch.log10(error) > (45 if "bfloat16" in name else 60)  # dB
    benchmark.pedantic(run, (pixels,), rounds=ROUNDS, warmup_rounds=1)
