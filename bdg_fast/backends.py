"""How a network is evaluated: eagerly, by `torch.compile`, or by the CPU engine of this project.

All take ``(x_t, x_lq, time)``, and what a conditional network is told, and return float32 predictions. Low precision is
that of convolutions and products alone.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .memory import out_of_memory
from .models import Backbone, UNet, UNetOutput, native
from .models.blocks import LinearAttention
from .models.condition import Condition

BACKENDS = ("auto", "eager", "compiled", "native")
Network = Callable[[Tensor, Tensor, Tensor], UNetOutput]


class Conditional(Protocol):
    """A :data:`Network` that can be told of the degradation."""

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """As :meth:`Backbone.forward`."""


CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder that Inductor keeps compiled code in."""
CPU_GRAPHS = 64
"""At most: there code differs for long and short sums, and for convolutions of small images."""
TYPICAL_SIDE, TYPICAL_BATCH = 256, 8
"""Of images, for UNets of four levels and other networks, that code for GPUs is chosen for."""


def default_device() -> str:
    """A GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is computed natively, which is faster there; float32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not there in older releases
        native = any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def dtype_of(backend: str, unet: Backbone, device: torch.device) -> torch.dtype:
    """What ``dtype="auto"`` means: float32 where the CPU engine evaluates, else what the device computes natively."""
    if backend == "native" or (
        backend == "auto" and device.type == "cpu" and not _why_not("native", unet, device, torch.float32)
    ):
        return torch.float32
    return native_dtype(device)


def network_of(backend: str, unet: Backbone, device: torch.device, dtype: torch.dtype) -> tuple[str, Conditional]:
    """The backend that is taken, and the network evaluated by it.

    Args:
        backend: one of :data:`BACKENDS`. ``"auto"``: ``"compiled"`` on CUDA, ``"native"`` in float32 on the CPU, where
            they can run, else ``"eager"``.
        unet: folded, on ``device``.
        dtype: of convolutions and products.

    Raises:
        ValueError: there is no such backend, or it cannot run here; the message tells why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    chosen = backend == "auto"
    if chosen:
        wanted = {"cuda": "compiled", "cpu": "native"}.get(device.type, "eager")
        low = dtype != torch.float32
        backend = "eager" if (wanted == "native" and low) or _why_not(wanted, unet, device, dtype) else wanted
    elif reason := _why_not(backend, unet, device, dtype):
        raise ValueError(f"backend must be one that can run here, as 'auto' and 'eager' can, got {backend!r}: {reason}")
    if backend == "native":
        assert isinstance(unet, UNet)  # nothing else is supported
        return backend, native.NativeUNet(unet)
    if backend == "compiled":
        return backend, CompiledNetwork(unet, device, dtype, or_eager=chosen)
    return backend, EagerNetwork(unet, device, dtype)


def _why_not(backend: str, unet: Backbone, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "native":
        return native.unsupported(unet, device, dtype)
    if backend == "compiled" and not unet.compiles:
        return f"{type(unet).__name__} says that torch.compile cannot take it"
    return _why_not_compiled(device) if backend == "compiled" else None


def _why_not_compiled(device: torch.device) -> str | None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "torch.compile needs triton on a GPU, which is not installed"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            return "triton needs a GPU of compute capability 7.0"
        return None
    if device.type != "cpu":
        return f"torch.compile is used on CUDA and the CPU alone, not on {device.type}"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name):
        return "torch.compile needs a C++ compiler on the CPU, and none is found"
    return None


class Told:
    """A conditional network that is told of whole images, whatever part of them it is given."""

    def __init__(self, network: Conditional, condition: Tensor) -> None:
        """``condition``: ``[B, told_width]`` (`bdg_fast.Backbone.told`)."""
        self.network, self.condition = network, condition

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        """As the network."""
        return self.network(x_t, x_lq, time, self.condition)


class EagerNetwork:
    """Operation by operation."""

    def __init__(self, unet: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        """``unet`` as it is."""
        self.unet, self.device, self.dtype = unet, device, dtype

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """As the network's forward; predictions float32 ``[B, C, H, W]``."""
        with _precision(self.device.type, self.dtype):
            found = self.unet(x_t, x_lq, time, condition)
        return UNetOutput(_float32(found.residual), _float32(found.noise), found.features)


class CompiledNetwork:
    """By `torch.compile`: one graph for a single image and one for several, of any size; on the CPU a few of each.

    Images are padded as the network pads them, outside of the graph, whose height and width are symbols. Padding
    them further, to a few sizes, would change results: norms and attention read what is padded (docs/architecture.md).
    """

    def __init__(self, unet: Backbone, device: torch.device, dtype: torch.dtype, *, or_eager: bool = False) -> None:
        """A copy of ``unet`` where ``dtype`` is low; what is compiled is kept for later processes.

        ``or_eager``: where the compiler fails, warn and go on eagerly.
        """
        keep_compiled()
        self.unet, self.device, self.dtype, self.or_eager = rounded(unet, dtype), device, dtype, or_eager
        self.eager = EagerNetwork(self.unet, device, dtype)
        self._shape = type(unet), repr(unet.config)
        self._failed = False
        self._begun: set[bool] = set()

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """As the network's forward, without features; predictions float32 ``[B, C, H, W]``."""
        if x_t.numel() == 0 or self._failed:
            return self.eager(x_t, x_lq, time, condition)
        try:
            return self._compiled(x_t, x_lq, time, self.unet.told(x_lq) if condition is None else condition)
        except torch._dynamo.exc.TorchDynamoException as error:
            if not self.or_eager or out_of_memory(error):
                raise
            self._failed = True
            warnings.warn(f"the network was not compiled and runs eagerly: {error}", stacklevel=2)
            return self.eager(x_t, x_lq, time, condition)

    def _compiled(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None) -> UNetOutput:
        batch, _, height, width = x_t.shape
        if self.device.type == "cuda" and (batch > 1) not in self._begun:
            # how sums are split over the device is decided by the first size, which must not be anybody's
            self._begun.add(batch > 1)
            multiple = self.unet.multiple
            ours = isinstance(self.unet, UNet)
            side = TYPICAL_SIDE * multiple // 16 if ours else -(-TYPICAL_SIDE // multiple) * multiple
            typical = x_t.new_zeros(TYPICAL_BATCH if batch > 1 else 1, x_t.shape[1], side, side)
            told = None if condition is None else condition[:1].expand(len(typical), -1)
            self._evaluate(typical, typical, time[:1].expand(len(typical)), told)
        residual, noise = self._evaluate(x_t, x_lq, time, condition)
        residual, noise = (None if part is None else part[:, :, :height, :width] for part in (residual, noise))
        return UNetOutput(residual, noise, x_t.new_zeros(0))

    def _evaluate(
        self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Residual and noise of the padded size."""
        x = self.unet.joined(x_t, x_lq)
        several = len(x) > 1
        for dim in (0, 2, 3) if several else (2, 3):
            torch._dynamo.mark_dynamic(x, dim)
        # memory of its own: an element of a table lies at another offset every time
        time = self.unet.times(time, len(x)).clone()
        if several and len(time) > 1:
            torch._dynamo.mark_dynamic(time, 0)
        if condition is not None:
            condition = condition.expand(len(x), -1).clone()
            if several:
                torch._dynamo.mark_dynamic(condition, 0)
        evaluate = _compiled(self._shape, self.device, self.dtype, several)
        on_cpu = self.device.type == "cpu"
        with torch._dynamo.config.patch(recompile_limit=CPU_GRAPHS) if on_cpu else contextlib.nullcontext():
            found: tuple[Tensor | None, Tensor | None] = evaluate(self.unet, x, time, condition, self.dtype)
        return found


def _evaluate(
    unet: Backbone, x: Tensor, time: Tensor, condition: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What is compiled: float32 residual and noise of the padded size."""
    with _precision(x.device.type, dtype):
        found = unet.evaluate(x, time, condition)
    return _float32(found.residual), _float32(found.noise)


@cache
def _compiled(shape: tuple[type, str], device: torch.device, dtype: torch.dtype, several: bool) -> Callable[..., Any]:
    """:func:`_evaluate`, compiled when it is first called; networks of one class and configuration share it.

    Each has code of its own: Dynamo limits how many graphs a piece of code may have.
    """
    code = _evaluate.__code__.replace(co_name=f"evaluate_{'several' if several else 'one'}")
    return torch.compile(FunctionType(code, _evaluate.__globals__), fullgraph=True)


def rounded(unet: Backbone, dtype: torch.dtype) -> Backbone:
    """``unet`` with the weights in ``dtype`` that autocast would round at every evaluation: the same results.

    A copy where there are any; of a `UNet` alone, as nobody knows where others compute in float32. Linear attention
    computes with its weights in float32, norms do, and what reads fingerprints.
    """
    if dtype == torch.float32 or type(unet) is not UNet:
        return unet
    unet = copy.deepcopy(unet)
    exact = {
        module
        for attention in unet.modules()
        if isinstance(attention, LinearAttention)
        for module in attention.modules()
    } | {module for told in unet.modules() if isinstance(told, Condition) for module in told.modules()}
    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in exact:
            module.to(dtype)
    return unet


def keep_compiled() -> None:
    """Have Inductor keep its code in the user's cache, unless the environment names a folder.

    Its own choice lies among temporary files, which a restart of the machine deletes. Where there is no place in the
    user's cache, it stays with that choice.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE, default_cache_dir()) != default_cache_dir():  # importing Dynamo sets its own choice
        return
    with contextlib.suppress(OSError, RuntimeError):  # read-only, or nobody's home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bdg_fast" / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[CACHE] = str(folder)


def _precision(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _float32(prediction: Tensor | None) -> Tensor | None:
    return None if prediction is None else prediction.float()
