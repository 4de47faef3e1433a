"""Images to time on, and what every saved run says of its machine."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast.data.images import bundled_photographs

from .peers import available


def photographs(count: int, side: int = 256) -> np.ndarray:
    """Bundled photographs as gray uint8 ``[count, side, side]``, repeated and shifted as needed."""
    images = []
    for path in bundled_photographs():
        with Image.open(path) as file:
            image = np.array(file.convert("L"))
        images.append(np.tile(image, (-(-side // image.shape[0]), -(-side // image.shape[1])))[:side, :side])
    return np.stack([np.roll(images[i % len(images)], 17 * i, axis=1) for i in range(count)])


@pytest.fixture(scope="session")
def one() -> np.ndarray:
    """One 256 x 256 photograph."""
    return photographs(1)


@pytest.fixture(scope="session")
def batch() -> np.ndarray:
    """64 photographs of 256 x 256."""
    return photographs(64)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add versions and thread counts to the saved JSON."""
    machine_info["versions"] = {
        "python": platform.python_version(),
        **available("torch", "triton", "numba", "numpy", "scikit-image", "mahotas"),
    }
    machine_info["torch_threads"] = torch.get_num_threads()
