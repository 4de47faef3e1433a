"""The fused step and the forward process where only a GPU can show it; `make gpu-report` runs these."""

import pytest
import torch

from bdg_fast import ResidualSampler, ResidualSchedule, UNetOutput
from bdg_fast.kernels.forward_process import forward_process
from bdg_fast.kernels.sampler_step import sampler_step

pytestmark = pytest.mark.gpu

SCHEDULE = ResidualSchedule.linear()
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    """x_t, x_lq and both predictions in one tensor, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((shape[0], n, *shape[2:]), generator=generator).to("cuda", dtype, memory_format=memory_format)
        for n in (3, 3, 6)
    ]


def seeds(batch):
    return torch.arange(batch, device="cuda") * 2**40 - 3


def on_cpu(*tensors):
    return [tensor.cpu() for tensor in tensors]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 63, 65), (3, 3, 256, 256)], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_same_picture_as_on_the_cpu(shape, memory_format, dtype):
    x, q, p = images(shape, dtype, memory_format)
    sampler = ResidualSampler(schedule=SCHEDULE, steps=3, method="ddpm")
    table = sampler.table("both", "cuda")
    fresh = images(shape)[0]
    for step in range(3):
        found = sampler_step(x, q, p, table, step, heads="both", fresh=fresh)
        expected = sampler_step(*on_cpu(x, q, p, table), step, heads="both", fresh=fresh.cpu())
        assert torch.equal(found.cpu(), expected)  # nothing is fused, so to the bit
        found = sampler_step(x, q, p, table, step, heads="both", seed=seeds(shape[0]))
        expected = sampler_step(*on_cpu(x, q, p, table), step, heads="both", seed=seeds(shape[0]).cpu())
        torch.testing.assert_close(found.cpu(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    t = torch.tensor([999, 500, 0], device="cuda")[: shape[0]]
    arguments = (x, q, t, SCHEDULE.forward_table("cuda"))
    found, noise = forward_process(*arguments, seed=seeds(shape[0]))
    expected, drawn = forward_process(*on_cpu(*arguments), seed=seeds(shape[0]).cpu())
    torch.testing.assert_close(noise.cpu(), drawn, rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(found.cpu(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
    again, _ = forward_process(*arguments, noise=noise)
    assert torch.equal(again, found)


def test_one_graph_serves_every_step():
    x, q, p = images((2, 3, 48, 40))
    sampler = ResidualSampler(schedule=SCHEDULE, steps=6, method="ddpm")
    table = sampler.table("both", "cuda")
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    state = x.clone()
    sampler_step(state, q, p, table, step, heads="both", seed=seeds(2), out=state)  # compiles
    graph = torch.cuda.CUDAGraph()
    given = seeds(2)
    with torch.cuda.graph(graph):
        sampler_step(state, q, p, table, step, heads="both", seed=given, out=state)
        step += 1
    state.copy_(x)
    step.zero_()
    expected = x
    for index in range(6):
        graph.replay()
        expected = sampler_step(expected, q, p, table, index, heads="both", seed=given)
        assert torch.equal(state, expected)


def test_no_host_synchronisation():
    x, q, p = images((2, 3, 64, 64))
    table = ResidualSampler(schedule=SCHEDULE, method="ddpm").table("both", "cuda")
    forward_table, step, t, given = SCHEDULE.forward_table("cuda"), seeds(1) * 0, seeds(2) * 0, seeds(2)

    def run():
        sampler_step(x, q, p, table, step, heads="both", seed=given)
        sampler_step(x, q, p, table, 1, heads="both", fresh=x, out=torch.empty_like(x))
        forward_process(x, q, t, forward_table, seed=given)
        sampler_step(x, q, p, table, step, heads="both", seed=given, impl="reference")

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["ddim", "ddpm", "paper"])
def test_sampler_gives_the_same_picture_as_on_the_cpu(method):
    sampler = ResidualSampler(schedule=SCHEDULE, steps=4, method=method)
    x_lq, x_start = images((1, 3, 33, 47))[:2]

    def network(x_t, x_lq, time):
        return UNetOutput((x_t - x_lq) * 0.3, None, x_t)

    def run(device, sample):
        generator = torch.Generator(device).manual_seed(0)
        return sample(network, x_lq.to(device), x_start=x_start.to(device), generator=generator)

    looked = run("cuda", sampler.trajectory)
    assert torch.equal(run("cuda", sampler), looked[-1].x_s)
    if method != "ddpm":  # generators of different devices draw different seeds
        for gpu, cpu in zip(looked, run("cpu", sampler.trajectory), strict=True):
            torch.testing.assert_close(gpu.x_s.cpu(), cpu.x_s, rtol=0, atol=1e-5)


VIEWS = {
    "cropped": lambda x: torch.nn.functional.pad(x, (0, 3, 0, 2), value=9.0)[:, :, :40, :48],
    "sliced": lambda x: x.repeat_interleave(3, 3)[:, :, :, 1::3],
    "expanded": lambda x: x[:1, :1, :1].expand(x.shape),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_any_strides_and_types_in_place(name, memory_format):
    x, q, p = images((2, 3, 40, 48), memory_format=memory_format)
    q, p = VIEWS[name](q.half()), VIEWS[name](p.bfloat16())
    table = ResidualSampler(schedule=SCHEDULE, steps=3, method="ddpm").table("both", "cuda")
    expected = sampler_step(*on_cpu(x, q, p, table), 1, heads="both", seed=seeds(2).cpu())
    found = sampler_step(x, q, p, table, 1, heads="both", seed=seeds(2))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)
    assert sampler_step(x, q, p, table, 1, heads="both", seed=seeds(2), out=x) is x
    assert torch.equal(x, found)


def test_what_is_not_in_a_table_is_nan():
    x, q, p = images((2, 3, 8, 8))
    table = ResidualSampler(schedule=SCHEDULE, steps=3, method="ddpm").table("both", "cuda")
    for impl in ("triton", "reference"):
        for step in (-1, 3):
            number = torch.tensor(step, device="cuda")
            assert sampler_step(x, q, p, table, number, heads="both", seed=seeds(2), impl=impl).isnan().all()
        assert sampler_step(x, q, p, table, 0, heads="both", impl=impl).isnan().all()  # noise is due
        t = torch.tensor([1000, 5], device="cuda")
        x_t, _ = forward_process(x, q, t, SCHEDULE.forward_table("cuda"), seed=seeds(2), impl=impl)
        assert x_t[0].isnan().all() and not x_t[1].isnan().any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_compiled_into_cuda_graphs(memory_format):
    table = ResidualSampler(schedule=SCHEDULE, steps=3, method="ddpm").table("both", "cuda")

    def function(x, q, p, step, seed):
        return sampler_step(x * 0.5, q, p, table, step, heads="both", seed=seed) + 1

    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    for index in (0, 1, 2, 0, 1):
        arguments = (*images((2, 3, 48, 40), memory_format=memory_format), seeds(1) * 0 + index, seeds(2))
        torch.testing.assert_close(compiled(*arguments).clone(), function(*arguments), rtol=0, atol=1e-6)


def test_more_than_2_31_elements():
    side = 26800  # 3 side^2 > 2^31
    x = torch.zeros(1, 3, side, side, dtype=torch.float16, device="cuda")
    x[0, :, -1, -1] = torch.tensor([0.25, 0.5, 0.75])
    table = torch.tensor([[0.0] * 7 + [2.0] + [0.0] * 8], device="cuda")
    sampler_step(x, x, x, table, 0, heads="residual", out=x)
    assert x[0, :, -1, -1].tolist() == [0.5, 1.0, 1.5] and x.count_nonzero() == 3
    x_t, noise = forward_process(x, x, seeds(1) * 0, torch.tensor([[0.0, 1.0, 0.0]], device="cuda"), seed=seeds(1))
    assert torch.equal(x_t, x + noise) and noise[0, :, -1].float().std() > 0.9
