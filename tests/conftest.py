"""What all tests share: the Triton interpreter where there is no GPU, the `gpu` marker, and photographs."""

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # several processes share the processors
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# what tests compile is no user's
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"bdg_fast_tests_{getpass.getuser()}"))
)

try:
    from hypothesis import settings
except ImportError:  # the GPU tests alone run without it
    settings = None

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads this when it is first imported, which torch and bdg_fast leave to the first kernel.
    os.environ["TRITON_INTERPRET"] = "1"

if settings is not None:
    settings.register_profile("bdg_fast", deadline=None, derandomize=True, max_examples=40)
    settings.load_profile("bdg_fast")


LONG = ("codegen", "gpu_report", "ptx", "backends", "glcm_oracle", "training_steps", "op", "unet_parts", "local")
"""Files that take longest, by name: begun first, so that in several processes none is left over at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.stem, len(LONG)))  # stable: the order within a file stays
    if HAS_GPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the processes that tests start: how sums are split depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def triton_variant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call with the name of a variant to have the Triton backend count by it; skips where there is none."""
    triton = pytest.importorskip("bdg_fast.kernels.mas_glcm.triton")

    def choose(variant: str) -> None:
        if variant in ("shared", "packed") and triton.family_of(torch.device("cuda" if HAS_GPU else "cpu")) == "other":
            pytest.skip("shared memory is reached on NVIDIA's and AMD's gfx9 alone")
        monkeypatch.setattr(triton, "VARIANT", variant)

    return choose


@pytest.fixture(scope="session")
def photographs() -> torch.Tensor:
    """Three RGB photographs, uint8 `[3, 3, 256, 256]`. Do not write into it."""
    paths = sorted(Path(__file__).with_name("photos").glob("*.png"))
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small network whose weights are random, but not fresh."""
    from bdg_fast import UNet, UNetConfig

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 2)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    unet.save_pretrained(folder)
    return str(folder)
