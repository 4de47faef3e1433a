"""Plain calls on the CPU skip the dispatcher; whatever follows or changes calls must still meet the registered op."""

import copy
from typing import ClassVar

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bdg_fast import fingerprint, glcm, local_mas_glcm, mas_glcm, soft_mas_glcm
from bdg_fast.kernels.mas_glcm import ops

OP = torch.ops.bdg_fast.glcm.default
IMAGES = torch.rand(2, 3, 12, 13, generator=torch.Generator().manual_seed(0))
EXPECTED = mas_glcm(IMAGES, impl="reference")


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def close(found):
    torch.testing.assert_close(found, EXPECTED, rtol=3e-7, atol=0)


def test_a_plain_call_gives_what_the_op_gives(monkeypatch):
    masked = {"mask": IMAGES[:, 0] > 0.2, "levels": 8}
    direct = mas_glcm(IMAGES), mas_glcm(IMAGES, **masked), glcm(IMAGES, [(0, 1)], normalize=False)
    monkeypatch.setattr(ops, "_nothing_follows", lambda: False)
    through = mas_glcm(IMAGES), mas_glcm(IMAGES, **masked), glcm(IMAGES, [(0, 1)], normalize=False)
    assert all(map(torch.equal, direct, through))


def test_a_plain_call_skips_the_dispatcher(monkeypatch):
    def op(*_):
        raise AssertionError("dispatched")

    monkeypatch.setattr(ops, "glcm", op)
    close(mas_glcm(IMAGES))
    with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        close(mas_glcm(IMAGES.clone()))


def test_modes_and_subclasses_see_the_op():
    with Names() as mode:
        close(mas_glcm(IMAGES))
    assert OP in mode.seen
    with Calls() as calls:
        close(mas_glcm(IMAGES))
    assert OP in calls.seen
    mas_glcm(IMAGES.as_subclass(Marked))
    assert OP in Marked.seen
    with FakeTensorMode() as fakes:
        assert mas_glcm(fakes.from_tensor(IMAGES)).shape == (2, 32, 32)


def test_tracers_and_the_profiler_see_the_op():
    assert OP in {node.target for node in make_fx(lambda images: mas_glcm(images))(IMAGES).graph.nodes}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        mas_glcm(IMAGES)
    assert "bdg_fast::glcm" in {event.key for event in profile.key_averages()}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace_sees_the_op():
    traced = torch.jit.trace(mas_glcm, (IMAGES,))
    assert "bdg_fast::glcm" in str(traced.graph)
    assert torch.equal(traced(IMAGES.flip(3)), mas_glcm(IMAGES.flip(3)))


def test_transforms_and_lazy_views_are_right():
    close(torch.func.functionalize(mas_glcm)(IMAGES))
    close(mas_glcm(torch._neg_view(-IMAGES)))
    close(mas_glcm(copy.deepcopy(IMAGES)))
    leaf = IMAGES.clone().requires_grad_()
    with torch.no_grad():
        close(mas_glcm(leaf))
    with pytest.raises(RuntimeError):  # PyTorch's own refusal
        torch.func.grad(lambda x: mas_glcm(x).sum())(IMAGES)


@pytest.mark.parametrize(
    "function",
    [mas_glcm, lambda x: glcm(x, [(0, 1)]), soft_mas_glcm, lambda x: local_mas_glcm(x, 8, 4), fingerprint],
    ids=["mas_glcm", "glcm", "soft_mas_glcm", "local_mas_glcm", "fingerprint"],
)
def test_forward_mode_derivatives_are_refused_not_zero(function):
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative.*detach"):
        torch.func.jvp(function, (IMAGES,), (torch.ones_like(IMAGES),))
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=r"no forward-mode derivative"):
            function(forward_ad.make_dual(IMAGES, torch.ones_like(IMAGES)))
        assert torch.equal(function(IMAGES), function(IMAGES.clone()))  # nothing to differentiate
    with pytest.raises(Exception, match="no forward-mode derivative"):
        torch.compile(lambda x: torch.func.jvp(function, (x,), (x,))[1], backend="aot_eager")(IMAGES)
