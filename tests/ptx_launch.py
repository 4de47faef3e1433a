"""Launches of the Triton backend that compile for an NVIDIA GPU and run there in effigy: see `ptx.py`.

Needs a process in which Triton is not interpreted (``TRITON_INTERPRET`` unset before it is imported).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget

import ptx
from bdg_fast.kernels.mas_glcm import ops, triton_tables
from bdg_fast.kernels.mas_glcm import triton as hard
from bdg_fast.kernels.soft_glcm import triton as soft

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
POISON = 0x5B


class Disguise(TorchFunctionMode):
    """Tensors of the CPU say that they are on a GPU; those made for it are made on the CPU, empty ones of garbage."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__:  # made anew at each use
            return GPU
        kwargs = {key: CPU if isinstance(value, torch.device) else value for key, value in (kwargs or {}).items()}
        result = func(*(CPU if isinstance(value, torch.device) else value for value in args), **kwargs)
        if func in (torch.empty, torch.empty_like, torch.Tensor.new_empty) and result.numel():
            result.untyped_storage().fill_(POISON)
        return result


class Launches:
    """Runs launches, and keeps what they were: kernel and arguments."""

    def __init__(self, order: ptx.Order, rewrite: Callable[[str], str]):
        self.order, self.rewrite = order, rewrite
        self.made: list[tuple[str, dict[str, Any]]] = []

    def of(self, name: str) -> list[dict[str, Any]]:
        """The arguments of the launches of a kernel."""
        return [values for kernel, values in self.made if kernel == name]

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        """In place of ``JITFunction.run``, which specializes and compiles, and would launch."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled = JIT_RUN(kernel, *args, grid=grid, warmup=True, **kwargs)
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        passed = [_argument(values[name]) for name, kind in compiled.src.signature.items() if kind != "constexpr"]
        text = self.rewrite(compiled.asm["ptx"])
        spare = len(ptx.parse(text).parameters) - len(passed)  # scratch memory, not asked for
        ptx.launch(text, (*grid, 1, 1)[:3], [*passed, *[0] * spare], compiled.metadata.shared, self.order)
        self.made.append((kernel.__name__, values))
        return compiled


JIT_RUN = triton.runtime.JITFunction.run


def _argument(value: Any) -> Any:
    """A tensor as the bytes from its first to its last element."""
    if not isinstance(value, torch.Tensor):
        return value
    size = 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((size if value.numel() else 0,), (1,)).view(torch.uint8).numpy()


@contextlib.contextmanager
def on_gpu(
    order: ptx.Order = "together",
    processors: int = 132,
    capability: int = 90,
    rewrite: Callable[[str], str] = lambda text: text,
) -> Iterator[Launches]:
    """``impl="triton"`` of tensors on the CPU runs the launchers as on a GPU, and the PTX of their kernels."""
    launches = Launches(order, rewrite)

    def disguised(launcher: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*args: Any) -> Any:
            with Disguise():
                return launcher(*args)

        return launch

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
    )
    properties = SimpleNamespace(multi_processor_count=processors)
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (triton.runtime.JITFunction, "run", lambda kernel, *args, **kwargs: launches.run(kernel, *args, **kwargs)),
            (triton.runtime.driver, "_active", driver),
            (ops, "_interpreted", lambda: True),
            (torch.version, "hip", None),
            (torch.cuda, "device", contextlib.nullcontext),
            (torch.cuda, "get_device_properties", lambda device: properties),
            (triton_tables, "kept", lambda device, make: make()),
            (soft, "kept", lambda device, make: make()),
            *((module, name, disguised(getattr(module, name))) for module, name in LAUNCHERS),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield launches


LAUNCHERS = ((hard, "glcm"), (soft, "forward"), (soft, "backward"))
