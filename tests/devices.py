"""Devices that are not there."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoFloat64(TorchDispatchMode):
    """As a device of type cuda without float64 would have it."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        if isinstance(found, torch.Tensor) and found.device.type == "cuda":
            assert found.dtype != torch.float64, function
        return found
