"""Run a compiled loop on the threads that PyTorch's own operations run on.

PyTorch's threads wait for work in a loop for some milliseconds after each operation; a second pool beside them would
share the processors with that loop. So the loops are given to the same OpenMP runtime, where it is GNU's.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..mas_glcm.cpu_threads import in_parallel

ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the runtime that PyTorch has loaded; None where there is another."""
    if sys.platform != "linux":
        return None
    torch.get_num_threads()  # loads it
    own = Path(torch.__file__).parent
    folders = (own / "lib", own.with_name("torch.libs"))  # others bring runtimes of their own
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line}
    for path in sorted(path for path in paths if path.parent in folders):
        try:
            parallel = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


def run(function: Any, arguments: np.ndarray, threads: int) -> None:
    """Call a compiled ``function`` with the address of its ``arguments`` on each of that many threads."""
    address, where = function.address, arguments.ctypes.data
    parallel = _openmp()
    if parallel is not None and threads > 1:
        parallel(address, where, threads, 0)
    else:
        call = ENTRY(address)
        in_parallel(threads, lambda _index: call(where))
