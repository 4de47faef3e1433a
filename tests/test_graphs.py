"""Loops as graphs, without a GPU: which are captured, the same results, memory that runs out; and overlapped copies."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig
from bdg_fast.graphs import Captured, CudaCapture, LoopGraphs
from bdg_fast.memory import free_memory, out_of_memory


class Capture:
    """Stands in for the device's: replays by calling, from inputs and to an output of its own, as a graph does."""

    def __init__(self):
        self.shapes, self.replays, self.error = [], 0, None

    def __call__(self, loop, inputs):
        if self.error is not None:
            raise self.error
        self.shapes.append(tuple(inputs[0].shape))
        own = tuple(tensor.clone() for tensor in inputs)
        output = torch.full_like(loop(*own), torch.nan)

        def replay():
            self.replays += 1
            output.copy_(loop(*own))

        return Captured(own, output, replay)


def doubled(x, y):
    return x + y


def call(graphs, size, value=1.0):
    x = torch.full((size,), value)
    found = graphs(x, x)
    assert torch.equal(found, 2 * x)
    return found


def test_captures_share_a_pool_as_long_as_a_graph_of_it_lives(monkeypatch):
    """With a stand-in for the device; tests/test_gpu_restorer.py has the real one."""
    pools, used, streams, fail, ended = iter(range(9)), [], [], [], []

    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode, pool="the generator's"):
        used.append(pool)
        streams.append(stream)
        yield
        if fail:
            fail.pop()
            raise RuntimeError("operation failed due to a previous error during capture")

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {"replay": lambda self: None}))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *args, name=name: ended.append((name, *args)), raising=False)
    capture, x = CudaCapture(torch.device("cuda")), torch.ones(2)
    first, second = capture(doubled, (x, x)), capture(doubled, (x, 2 * x))
    assert used == [0, 0] and second.output.tolist() == [3.0, 3.0] and second.inputs[1] is not x
    del first
    third = capture(doubled, (x, x))
    assert used == [0, 0, 0]
    fail.append(True)
    with pytest.raises(RuntimeError, match="previous error"):
        capture(doubled, (x, x))
    # what PyTorch leaves undone, and a capture that succeeds, for the generator
    assert ended == [("_cuda_endAllocateToPool", 0, 0), ("_cuda_releasePool", 0, 0)]
    assert used[3:] == [0, "the generator's"]
    fourth = capture(doubled, (x, x))
    assert used[5:] == [1]  # another pool after a failure
    del second, third, fourth
    capture(doubled, (x, x))
    assert used[6:] == [2] and len(set(streams)) == 1  # and where the last graph is gone


def test_what_comes_twice_is_captured():
    capture = Capture()
    graphs = LoopGraphs(doubled, capture)
    for size in (1, 2, 3, 1, 2, 1):
        call(graphs, size)
    assert capture.shapes == [(1,), (2,)] and capture.replays == 3
    assert torch.equal(graphs(torch.ones(1, dtype=torch.float64), torch.ones(1)), torch.full((1,), 2.0).double())
    assert capture.shapes == [(1,), (2,)]  # another type is another kind


def test_results_are_no_longer_the_graphs():
    graphs = LoopGraphs(doubled, Capture())
    results = [call(graphs, 4, value) for value in (1.0, 2.0, 3.0, 4.0)]
    assert [float(result[0]) for result in results] == [2.0, 4.0, 6.0, 8.0]


def test_the_least_recently_used_makes_room_and_must_come_more_often():
    capture = Capture()
    graphs = LoopGraphs(doubled, capture, keep=2)
    for size in (1, 1, 2, 2, 1, 3, 3):
        call(graphs, size)
    assert capture.shapes == [(1,), (2,), (3,)]  # in place of 2
    for _ in range(3):
        call(graphs, 2)
    assert len(capture.shapes) == 3
    call(graphs, 2)
    assert capture.shapes[3:] == [(2,)]


def test_many_sizes_in_turn_are_seldom_captured():
    capture = Capture()
    graphs = LoopGraphs(doubled, capture, keep=4)
    for turn in range(400):
        call(graphs, 1 + turn % 5)
    assert len(capture.shapes) < 40
    graphs._wanted.clear()
    for turn in range(2000):
        call(graphs, 10 + turn)
    assert len(graphs._wanted) <= 256 and len(capture.shapes) < 40


def test_what_cannot_be_captured_runs_without():
    capture = Capture()
    graphs = LoopGraphs(doubled, capture)
    capture.error = torch.OutOfMemoryError("CUDA out of memory")
    for _ in range(3):
        call(graphs, 1)
    capture.error = RuntimeError("operation not permitted when stream is capturing")
    call(graphs, 2)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph and runs without: operation not permitted"):
        call(graphs, 2)
    capture.error = None
    for size in (1, 2, 3, 3):
        call(graphs, size)
    assert capture.shapes == [(3,)]
    graphs.clear()
    call(graphs, 3)
    assert capture.shapes == [(3,), (3,)]


def test_errors_of_the_loop_are_its_callers():
    def broken(x):
        raise ValueError("not this one")

    graphs = LoopGraphs(broken, lambda loop, inputs: Captured(inputs, loop(*inputs), lambda: None))
    for _ in range(3):
        with pytest.raises(ValueError, match="not this one"):
            graphs(torch.ones(1))


def test_out_of_memory_is_told_through_what_followed():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    except RuntimeError as error:
        assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("something else"))


def test_memory_that_pytorch_keeps_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory(torch.device("cuda")) == 600


def small(method, eta=None, **options):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method=method, eta=eta)
    return Restorer(unet, sampler, device="cpu", dtype="float32", backend="eager", **options)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "special_eta_1"])
def test_a_restorer_with_graphs_restores_the_same(method):
    plain, graphed = small(method), small(method, tile=144)
    capture = Capture()
    graphed._graphs = LoopGraphs(lambda *inputs: graphed._loop(None, *inputs), capture)
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 2, 1, 2, 1):
        pixels = torch.rand(batch, 3, 24, 20, generator=generator)
        assert torch.equal(graphed.restore(pixels), plain.restore(pixels))
    assert capture.shapes == [(2, 3, 24, 20), (1, 3, 24, 20)]
    drawing = small("use_pred_noise", eta=1.0)  # draws images step by step: as it is
    drawing._graphs = LoopGraphs(doubled, None)
    expected = [small("use_pred_noise", eta=1.0).restore(one[None]) for one in pixels.repeat(2, 1, 1, 1)]
    assert torch.equal(drawing.restore(pixels.repeat(2, 1, 1, 1)), torch.cat(expected))
    for _ in range(2):  # in tiles: as it is
        graphed.restore(torch.rand(1, 3, 8, 180))
    assert len(capture.shapes) == 2


def test_out_of_memory_gives_back_the_graphs(monkeypatch):
    restorer, failed = small("ddim"), []

    def sample(self, pixels, tile, keep):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels

    restorer._graphs = LoopGraphs(doubled, Capture())
    call(restorer._graphs, 1), call(restorer._graphs, 1)
    monkeypatch.setattr(Restorer, "_sample", sample)
    restorer.restore(torch.zeros(2, 3, 8, 8))
    assert not restorer._graphs._graphs


def test_what_a_network_is_told_is_a_graph_of_its_own(monkeypatch):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1), condition=8))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    plain, graphed = (Restorer(unet, device="cpu", dtype="float32", backend="eager") for _ in range(2))
    capture = Capture()
    graphed._readings = LoopGraphs(graphed._read, capture)
    generator = torch.Generator().manual_seed(0)
    for height in (24, 24, 70, 24, 70):
        eight = torch.randint(256, (2, 3, height, 40), generator=generator).to(torch.uint8)
        for pixels in (eight, eight.contiguous(memory_format=torch.channels_last), eight / 255):
            assert torch.equal(graphed.restore(pixels), plain.restore(pixels))
            assert torch.equal(graphed.told(pixels), plain.told(pixels))
    assert capture.shapes == [(2, 3, 24, 40)] * 2 + [(2, 3, 70, 40)] * 2  # 8 bits, and floats
    monkeypatch.setattr("bdg_fast.restorer.LARGEST_TILE", 64)
    for pixels in (torch.zeros(0, 3, 24, 40), torch.zeros(1, 3, 64, 65, dtype=torch.uint8)):  # none, and large
        for _ in range(3):
            assert torch.equal(graphed.told(pixels), plain.told(pixels))
    assert len(capture.shapes) == 4
    capture.error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        for _ in range(3):
            assert torch.equal(graphed.told(eight[:1]), plain.told(eight[:1]))


class Late:
    """Stands in for a GPU's transfers: results are there when another batch was begun, or a picture was asked for."""

    def __init__(self):
        self.begun, self.waited, self.threads = [], {}, ThreadPoolExecutor(2)

    def beside(self, function):
        return self.threads.submit(function).result

    def to_device(self, pixels):
        self.begun.append(threading.Event())
        if len(self.begun) > 1:
            self.begun[-2].set()
        return pixels

    def to_host(self, restored):
        mine = len(self.begun) - 1

        def wait():
            self.waited[mine] = self.begun[mine].wait(timeout=0 if mine else 5)
            if bool((restored == 0.5).all()):
                raise RuntimeError("gray")
            return restored

        return wait


def test_a_gpu_begins_the_next_batch_before_the_last_is_finished(monkeypatch):
    restorer, late = small("ddim"), Late()
    restorer._transfers = late
    monkeypatch.setattr(Restorer, "_restore", lambda self, pixels: pixels)

    def images():
        for i in range(4):
            yield torch.full((3, 8, 8), i / 8)
        yield torch.full((3, 8, 9), 0.25)
        yield "missing.png"
        raise RuntimeError("the disk is gone")

    found = []
    with pytest.raises(RuntimeError, match="the disk is gone"):
        for one in restorer.stream(images(), batch=2):
            found.append(one)
    assert late.waited[0] is True
    assert sorted(one.number for one in found) == list(range(6))
    assert [one.number for one in found if one.error is not None] == [5]
    for one in found:
        if one.number < 4:
            assert torch.equal(one.image, torch.full((3, 8, 8), one.number / 8))


def test_an_error_that_comes_late_stays_with_its_picture(monkeypatch):
    restorer = small("ddim")
    restorer._transfers = Late()
    monkeypatch.setattr(Restorer, "_restore", lambda self, pixels: pixels)
    images = [torch.full((3, 8, 8), value) for value in (0.5, 0.5, 0.5, 0.25)]  # the first two fail together, and alone
    found = {one.number: one for one in restorer.stream(images, batch=2)}
    assert [number for number in range(4) if found[number].error is not None] == [0, 1]
    assert str(found[0].error) == "gray" and torch.equal(found[3].image, images[3])
