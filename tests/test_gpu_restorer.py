"""The restorer where only a GPU can show it: compiled, as graphs of whole loops, with copies beside the work."""

from pathlib import Path

import pytest
import torch

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig

pytestmark = pytest.mark.gpu

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"


def small(backend="compiled", dtype="bfloat16", method="ddim", condition=0):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=16, multipliers=(1, 1), condition=condition))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method=method)
    return Restorer(unet, sampler, device="cuda", dtype=dtype, backend=backend)


def pixels(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def decibel(found, expected):
    return -10 * float((found - expected).square().mean().log10())


def test_auto_compiles_in_bfloat16():
    restorer = Restorer(small().unet, backend="auto")
    assert restorer.device.type == "cuda" and restorer.backend == "compiled" and restorer._graphs is not None
    assert restorer.dtype == torch.bfloat16 or not torch.cuda.is_bf16_supported(including_emulation=False)


@pytest.mark.parametrize(("method", "condition"), [("ddim", 0), ("ddpm", 0), ("ddim", 8)])
def test_graphs_change_no_bit(method, condition):
    graphed, plain = (small(method=method, condition=condition) for _ in range(2))
    plain._graphs = plain._readings = None
    shapes = [(1, 3, 64, 64), (2, 3, 40, 56), (1, 3, 65, 133)]
    for turn in range(4):
        for i, shape in enumerate(shapes):
            images = (pixels(*shape, seed=10 * turn + i) * 255).to(torch.uint8)
            assert torch.equal(graphed.restore(images), plain.restore(images)), (turn, shape)
    assert len(graphed._graphs._graphs) == len(shapes)
    assert (graphed._readings is not None and len(graphed._readings._graphs) == len(shapes)) is bool(condition)


def test_graphs_make_room():
    graphed, plain = small(), small()
    plain._graphs = None
    shapes = [(1, 3, 32, 32 + 16 * i) for i in range(6)]
    for shape in (*shapes, *shapes, *reversed(shapes)):
        images = pixels(*shape)
        assert torch.equal(graphed.restore(images), plain.restore(images))
    assert len(graphed._graphs._graphs) == graphed._graphs.keep


def test_graphs_come_again_after_all_were_given_back():
    graphed = small()
    images = pixels(1, 3, 64, 64)
    expected = [graphed.restore(images) for _ in range(2)][1]
    for _ in range(2):
        graphed._graphs.clear()
        for _ in range(2):
            assert torch.equal(graphed.restore(images), expected)
        assert len(graphed._graphs._graphs) == 1


def test_no_room_for_a_graph_runs_without(monkeypatch):
    graphed, plain = small(), small()
    plain._graphs = None
    images = pixels(1, 3, 64, 64)
    expected = plain.restore(images)
    assert torch.equal(graphed.restore(images), expected)

    def full(loop, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphed._graphs, "capture", full)
    for _ in range(2):
        assert torch.equal(graphed.restore(images), expected)


def test_a_failed_capture_leaves_the_device_usable():
    restorer = small()
    images = pixels(1, 3, 48, 48)
    expected = restorer.restore(images)
    loop = restorer._graphs.loop

    def waits(*inputs):
        found = loop(*inputs)
        float(found.sum())  # which no graph can hold
        return found

    restorer._graphs.loop = waits
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        found = restorer.restore(images)
    assert torch.equal(found, expected) and torch.equal(restorer.restore(images), expected)
    assert torch.cuda.current_stream() == stream
    torch.rand(1, device="cuda")  # the generator is not in a capture any more
    held = []
    for _ in range(6):  # nor does the allocator keep what another stream has used
        restorer._begin_restore(images)()
        held.append(torch.cuda.memory_allocated())
    assert len(set(held[2:])) == 1


@pytest.mark.parametrize(("dtype", "least"), [("float32", 60), ("bfloat16", 45)])
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_three_steps_stay_close_to_the_cpu(dtype, least, backend, photographs):
    path = FIXTURES / "T_state.safetensors"
    exact = Restorer.from_pretrained(path, device="cpu", dtype="float32", backend="eager")
    restorer = Restorer.from_pretrained(path, device="cuda", dtype=dtype, backend=backend)
    for images in (photographs, photographs[:1, :, :200, :120]):
        images = images.float() / 255
        expected = exact.restore(images)
        for _ in range(2):  # without a graph and with
            for found, wanted in zip(restorer.restore(images), expected, strict=True):
                assert decibel(found, wanted) > least


def test_no_compiling_again():
    restorer = small()
    for batch in (1, 2):
        restorer.restore(pixels(batch, 3, 64, 64))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((1, 3, 33, 80), (5, 3, 96, 40), (3, 3, 64, 64), (1, 3, 1, 1), (1, 3, 500, 300)):
            restorer.restore(pixels(*shape))


@pytest.mark.parametrize("condition", [0, 8])
def test_nothing_waits_for_the_device_before_its_results(condition):
    """Of sizes that came before, as graphs, and of more new ones than there are graphs."""
    restorer, other = (small(condition=condition) for _ in range(2))
    images = (pixels(2, 3, 64, 64) * 255).to(torch.uint8)
    new = [(pixels(2, 3, 72, 64 + 8 * i, seed=i) * 255).to(torch.uint8) for i in range(6)]
    for _ in range(3):
        expected = restorer.restore(images)
    expected = [expected] * 3 + [other.restore(each) for each in new]
    torch.cuda.set_sync_debug_mode("error")
    try:
        waits = [restorer._begin_restore(each) for each in (images, images, images, *new)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for wait, wanted in zip(waits, expected, strict=True):
        found = wait()
        assert torch.equal(found, wanted) and not found.is_pinned()


def test_noise_is_whole_on_every_stream():
    restorer, size = small(), torch.Size((1024, 1000))
    expected = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # drawn, and kept
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                noise = restorer._noises(size)[0] + 0
            stream.synchronize()
            assert torch.equal(noise.cpu(), expected)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_stream_gives_what_single_calls_give(backend):
    restorer = small(backend, dtype="float32")
    images = [pixels(3, *size, seed=i) for i, size in enumerate([(64, 48), (33, 80), (64, 48)] * 6)]
    alone = [restorer(image) for image in images]
    for batch in (1, 4):
        found = list(restorer.stream(iter(images), batch=batch))
        assert sorted(one.number for one in found) == list(range(len(images)))
        if batch == 1:
            assert [one.number for one in found] == list(range(len(images)))
        for one in found:
            assert one.error is None and one.image.device.type == "cpu"
            torch.testing.assert_close(one.image, alone[one.number], rtol=0, atol=2e-3)  # TF32, and other batches
