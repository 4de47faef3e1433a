"""How networks are evaluated: which backend is taken, the same results, no compiling again, no precision lost."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig, backends
from bdg_fast.backends import CompiledNetwork, EagerNetwork, keep_compiled, rounded
from bdg_fast.models.blocks import LinearAttention
from benchmarks.published import PublishedUNet

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
CPU = torch.device("cpu")


def trained(seed=0, **options):
    """A small network whose weights are random, but not fresh."""
    torch.manual_seed(seed)
    unet = UNet(UNetConfig(**{"width": 8, "multipliers": (1, 1), **options}))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    return unet.eval()


def images(batch, height, width, seed=0):
    """x_t, x_lq, and one time for all of them, as the sampler has it."""
    generator = torch.Generator().manual_seed(seed)
    x_t, x_lq = (torch.randn(batch, 3, height, width, generator=generator) for _ in range(2))
    return x_t, x_lq, torch.tensor([3.0, 500.0, 999.0])[1].expand(batch)


def decibel(found, expected):
    return -10 * float((found - expected).square().mean().log10())


@pytest.fixture
def without_inductor(monkeypatch):
    """Everything of `torch.compile` but the code that it writes, which takes most of its time."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    backends._compiled.cache_clear()
    yield
    backends._compiled.cache_clear()


@pytest.fixture
def engine(monkeypatch):
    """A CPU engine that refuses what `reason` tells."""
    found = SimpleNamespace(reason=None, NativeUNet=lambda unet: unet, unsupported=lambda *_: found.reason)
    monkeypatch.setattr(backends, "native", found)
    return found


def test_auto_takes_what_is_fastest_and_can_run(engine, monkeypatch):
    def taken(backend="auto", dtype="float32"):
        return Restorer(trained(), device="cpu", dtype=dtype, backend=backend).backend

    assert taken() == "native" and taken("eager") == "eager"
    assert taken(dtype="bfloat16") == "eager"
    engine.reason = "the width must be a multiple of 16"
    assert taken() == "eager"
    with pytest.raises(ValueError, match=r"backend must be one that can run here.*'native': the width must be a"):
        taken("native")
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'eager', 'compiled', 'native', got 'fast'"):
        taken("fast")


def test_why_nothing_can_be_compiled(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "compute capability 7.0" in backends._why_not_compiled(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backends._why_not_compiled(gpu) is None
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert "triton" in backends._why_not_compiled(gpu)
    assert "not on mps" in backends._why_not_compiled(torch.device("mps"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"got 'compiled': torch.compile needs a C\+\+ compiler"):
        Restorer(trained(), device="cpu", backend="compiled")


def test_one_graph_for_one_image_and_one_for_several(without_inductor):
    """Whatever their size, as far as the compiler does not care for the device."""
    unet, other = (trained(seed, heads="both").fold() for seed in range(2))
    eager, compiled = EagerNetwork(unet, CPU, torch.float32), CompiledNetwork(unet, CPU, torch.float32)
    sizes = [(112, 112), (105, 131)]
    several = [(4, 40, 40), (2, 33, 64), (7, 16, 16), (3, 1, 3)]
    graphs = lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: E731
    with torch.inference_mode():
        before = graphs()
        compiled(*images(1, *sizes[0])), compiled(*images(*several[0]))
        assert graphs() - before == 2
        with torch._dynamo.config.patch(error_on_recompile=True):
            for shape in [*((1, *size) for size in sizes), *several]:
                found, expected = compiled(*images(*shape)), eager(*images(*shape))
                torch.testing.assert_close(found.residual, expected.residual, rtol=0, atol=1e-5)
                torch.testing.assert_close(found.noise, expected.noise, rtol=0, atol=1e-5)
            network = CompiledNetwork(other, CPU, torch.float32)  # of the same shape: the same code
            expected = EagerNetwork(other, CPU, torch.float32)(*images(*several[1]))
            torch.testing.assert_close(network(*images(*several[1])).residual, expected.residual, rtol=0, atol=1e-5)
        assert graphs() - before == 2
        with torch._dynamo.config.patch(recompile_limit=1):  # on the CPU small single images have a graph of their own
            compiled(*images(1, 20, 37))
        assert graphs() - before == 3
        none = torch.zeros(0, 3, 8, 8)
        assert compiled(none, none, torch.zeros(0)).residual.shape == none.shape


def test_a_compiled_restorer_restores_the_same(without_inductor):
    unet = trained(multipliers=(1,))
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method="ddpm")
    eager, compiled = (
        Restorer(unet, sampler, device="cpu", dtype="float32", backend=name) for name in ("eager", "compiled")
    )
    for shape in ((2, 3, 40, 33), (3, 3, 24, 50)):
        pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(compiled.restore(pixels), eager.restore(pixels), rtol=0, atol=1e-5)


def test_a_compiler_that_fails_is_an_error_where_it_was_asked_for(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.InternalTorchDynamoError("no such instruction")

    monkeypatch.setattr(backends, "_compiled", lambda *_: fails)
    unet = trained().fold()
    with pytest.raises(torch._dynamo.exc.InternalTorchDynamoError, match="no such instruction"):
        CompiledNetwork(unet, CPU, torch.float32)(*images(1, 8, 8))
    network = CompiledNetwork(unet, CPU, torch.float32, or_eager=True)
    with pytest.warns(UserWarning, match="not compiled and runs eagerly: no such instruction"):
        found = network(*images(1, 8, 8))
    expected = EagerNetwork(unet, CPU, torch.float32)(*images(1, 8, 8))
    assert torch.equal(found.residual, expected.residual)
    assert torch.equal(network(*images(1, 8, 8)).residual, expected.residual)  # told once


def test_code_for_gpus_is_chosen_for_a_typical_size(monkeypatch):
    """Not for what happens to come first."""
    seen = []

    def compiled(config, device, dtype, several):
        return lambda unet, x, *rest: seen.append(tuple(x.shape)) or backends._evaluate(unet, x, *rest)

    monkeypatch.setattr(backends, "_compiled", compiled)
    unet = trained().fold()
    network = CompiledNetwork(unet, torch.device("cuda"), torch.float32)
    for shape in ((1, 5, 9), (3, 8, 8), (1, 16, 16), (2, 8, 8)):
        found = network(*images(*shape))
        assert torch.equal(found.residual, EagerNetwork(unet, CPU, torch.float32)(*images(*shape)).residual)
    assert seen == [(1, 6, 64, 64), (1, 6, 8, 12), (8, 6, 64, 64), (3, 6, 8, 8), (1, 6, 16, 16), (2, 6, 8, 8)]


PROCESSES = """
import os
import torch
import torch._inductor.compile_fx
from torch._dynamo.utils import counters
from bdg_fast.backends import CompiledNetwork
from bdg_fast.models import Backbone, UNet, UNetConfig, UNetOutput

class Small(Backbone):  # as a UNet, in a tenth of the time
    config = UNetConfig(width=8, multipliers=(1,))
    one_time = True

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(6, 3, 3, padding=1)

    joined = lambda self, x_t, x_lq: torch.cat((x_t, x_lq), 1).contiguous(memory_format=torch.channels_last)

    def evaluate(self, x, time, condition=None):
        return UNetOutput(self.conv(x).sigmoid() * time, None, x)

def evaluate(seed, sizes):
    network = CompiledNetwork(Small(seed).requires_grad_(False), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        for size in sizes:
            x = torch.randn(2, 3, *size)
            found = network(x, x, torch.tensor([1.0]).expand(2)).residual
            expected = network.unet.evaluate(network.unet.joined(x, x), torch.tensor([1.0])).residual
            assert (found - expected).abs().max() < 1e-5
    print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"], flush=True)

for seed, sizes in enumerate(([(32, 48), (16, 20)], [(64, 36), (48, 48)])):
    child = os.fork()  # imports take half of the time, and nothing is compiled yet
    if child == 0:
        evaluate(seed, sizes)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_second_process_compiles_nothing(tmp_path):
    """With other weights and other sizes."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # what the processor tells is not tried out
    environment["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"  # would take longer than the one file they are for
    environment.pop(backends.CACHE, None)
    done = subprocess.run([sys.executable, "-c", PROCESSES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 1", "1 0"]
    assert any((tmp_path / "bdg_fast" / "inductor").iterdir())


def test_where_compiled_code_is_kept(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(backends.CACHE, "chosen by the user")
    keep_compiled()
    assert os.environ[backends.CACHE] == "chosen by the user"
    monkeypatch.delenv(backends.CACHE)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    keep_compiled()
    assert os.environ.get(backends.CACHE) in (None, default_cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled()
    assert os.environ[backends.CACHE] == str(tmp_path / "cache" / "bdg_fast" / "inductor")


def test_rounding_weights_once_changes_nothing():
    unet = UNet.from_pretrained(FIXTURES / "T_state.safetensors").fold()
    assert rounded(unet, torch.float32) is unet
    once = rounded(unet, torch.bfloat16)
    kinds = Counter(parameter.dtype for parameter in once.parameters())
    assert kinds[torch.bfloat16] > kinds[torch.float32] and unet.stem.weight.dtype == torch.float32
    assert all(
        parameter.dtype == torch.float32
        for module in once.modules()
        if isinstance(module, LinearAttention)
        for parameter in module.parameters()
    )
    with torch.inference_mode():
        found, expected = (EagerNetwork(net, CPU, torch.bfloat16)(*images(2, 16, 32)) for net in (once, unet))
    assert torch.equal(found.residual, expected.residual) and found.residual.dtype == torch.float32


@pytest.mark.parametrize("index", range(3), ids=["parrot", "splash", "tram"])
def test_three_steps_stay_close_to_the_published_arithmetic(index, photographs):
    pixels = photographs[index : index + 1, :, 64:144, 32:128].float() / 255
    published = Restorer.from_pretrained(FIXTURES / "T_state.safetensors", device="cpu", dtype="float32")
    published._network = PublishedUNet(UNet.from_pretrained(FIXTURES / "T_state.safetensors")).eval()
    reference = published.restore(pixels)
    for backend, dtype, least in (("native", "float32", 90), ("eager", "float32", 90), ("eager", "bfloat16", 45)):
        fast = Restorer(published.unet, published.sampler, device="cpu", dtype=dtype, backend=backend)
        assert decibel(fast.restore(pixels), reference) > least, (backend, dtype)


def test_sums_over_pixels_are_float32_in_low_precision():
    """In the operations that autocast makes: softmax, statistics, and the products and scale of linear attention."""
    unet = rounded(trained().fold(), torch.bfloat16)
    x = torch.randn(2, 6, 32, 48).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        graph = make_fx(lambda x, t: backends._evaluate(unet, x, t, None, torch.bfloat16)[0])(x, torch.ones(1)).graph
    seen = Counter()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = node.target.__name__.partition(".")[0]
        inputs = [
            argument.meta["val"].dtype
            for argument in node.all_input_nodes
            if "val" in argument.meta and isinstance(argument.meta["val"], torch.Tensor)
        ]
        scaled = name == "mul" and isinstance(node.args[1], float) and 0 < node.args[1] < 1e-2
        if name in ("_softmax", "sum", "mean", "var_mean", "rsqrt") or scaled:
            seen["scale" if scaled else name] += 1
            assert set(inputs) == {torch.float32}, (name, inputs)
        if name == "bmm" and torch.float32 in inputs:
            seen["bmm"] += 1
            assert set(inputs) == {torch.float32}
        if name in ("convolution", "mkldnn_convolution"):
            seen["convolution"] += 1
            assert inputs[0] == inputs[1] == torch.bfloat16
    assert seen["scale"] == 4 and seen["_softmax"] >= 8 and seen["bmm"] >= 4 * 4 and seen["convolution"] > 20, seen
