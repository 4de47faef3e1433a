"""Counts are equal, bit for bit, to scikit-image's `graycomatrix` of independently quantized levels."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bdg_fast import glcm, glcm_offsets, mas_glcm

graycomatrix = pytest.importorskip("skimage.feature").graycomatrix

RANGES = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "narrow": (0.15, 0.7)}
INTEGERS = (torch.uint8, torch.uint16)
FACTORS = {
    "levels": (2, 3, 8, 16, 31, 32, 33, 64, 100, 128, 256),
    "angles": (9, 1, 4, 6, 12, (0.3, -2.0, 4.0)),
    "scales": ((1, 2, 3, 4, 5, 6), (1,), (3, 1), (2, 200)),  # 200 is larger than every image
    "symmetric": (False, True),
    "content": ("photo", "random", "extremes"),
    "channels": (3, 1),
    "dtype": (
        torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    ),
    "value_range": tuple(RANGES),
    "layout": ("contiguous", "channels_last", "sliced", "transposed", "expanded"),
}  # fmt: skip
SIZES = ((1, 1), (7, 5), (63, 65), (127, 193))
SMALL_SIZES = ((1, 1), (7, 5), (40, 33), (17, 38))  # the interpreter takes its time


@dataclass(frozen=True)
class Case:
    size: tuple[int, int]
    levels: int
    angles: int | tuple[float, ...]
    scales: tuple[int, ...]
    symmetric: bool
    content: str
    channels: int
    dtype: torch.dtype
    value_range: str
    layout: str

    def __str__(self) -> str:
        angles = self.angles if isinstance(self.angles, int) else "radians"
        return (
            f"{self.size[0]}x{self.size[1]}-{self.content}{self.channels}-{str(self.dtype)[6:]}-"
            f"{self.value_range}-{self.layout}-L{self.levels}-a{angles}-s{len(self.scales)}"
            f"{'-symmetric' if self.symmetric else ''}"
        )

    def images(self, photographs: torch.Tensor) -> torch.Tensor:
        """`[2, C, H, W]` with the case's values, dtype and strides."""
        height, width = self.size
        rng = np.random.default_rng(height * width * self.levels)
        if self.content == "photo":
            unit = photographs[:2, : self.channels, 40 : 40 + height, 30 : 30 + width].numpy() / 255.0
        elif self.content == "random":
            unit = rng.uniform(size=(2, self.channels, height, width))
        else:  # black, white and just past them
            unit = rng.choice([-0.1, 0.0, 1e-6, 0.5, 1.0, 1.2], size=(2, self.channels, height, width))
        if self.dtype in INTEGERS:
            top = 255 if self.dtype == torch.uint8 else 65535
            x = torch.from_numpy(np.rint(unit.clip(0, 1) * top).astype(f"uint{8 if top == 255 else 16}"))
        else:
            low, high = RANGES[self.value_range]
            x = torch.from_numpy(low + (high - low) * unit).to(self.dtype)
        return with_layout(x, self.layout)


def with_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    batch, channels, height, width = x.shape
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        larger = x.new_zeros(batch, channels, 2 * height + 1, 3 * width + 2)
        view = larger[:, :, 1 : 1 + 2 * height : 2, 2::3]
        return view.copy_(x)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "expanded":
        return x[:1, :1].expand(batch, channels, height, width)
    return x


def covering(count: int, seed: int, sizes: tuple[tuple[int, int], ...]) -> list[Case]:
    """`count` cases in which every value of every factor comes up equally often, combined at random."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name, values in {"size": sizes, **FACTORS}.items():
        indices = np.concatenate([rng.permutation(len(values)) for _ in range(-(-count // len(values)))])
        columns[name] = [values[i] for i in indices[:count]]
    return [Case(**{name: column[k] for name, column in columns.items()}) for k in range(count)]


def gray_levels(images: torch.Tensor, levels: int, value_range: tuple[float, float]) -> np.ndarray:
    """The documented integer rule, `[B, H, W]`."""
    if images.dtype == torch.uint8:
        v = images.numpy().astype(np.uint64) * 257
    elif images.dtype == torch.uint16:
        v = images.numpy().astype(np.uint64)
    else:
        low = np.float32(value_range[0])
        scale = np.float32(65535 / (value_range[1] - value_range[0]))
        x = images.to(torch.float32).numpy()
        v = np.rint(np.clip((x - low) * scale, np.float32(0), np.float32(65535))).astype(np.uint64)
    if v.shape[1] == 3:
        v = (19595 * v[:, :1] + 38470 * v[:, 1:2] + 7471 * v[:, 2:] + 32768) // 65536
    return (v[:, 0] * levels // 65536).astype(np.uint8)


def oracle(images: torch.Tensor, case: Case, normed: bool) -> np.ndarray:
    """scikit-image's matrices `[B, scales, angles, L, L]`."""
    n = case.angles
    angles = [j * math.pi / n for j in range(n)] if isinstance(n, int) else n
    matrices = [
        graycomatrix(level, case.scales, angles, case.levels, symmetric=case.symmetric, normed=normed)
        for level in gray_levels(images, case.levels, RANGES[case.value_range])
    ]
    return np.stack(matrices).transpose(0, 3, 4, 1, 2)


def check(case: Case, photographs: torch.Tensor, impl: str, device: str = "cpu") -> None:
    images = case.images(photographs)
    options = {
        "levels": case.levels,
        "value_range": RANGES[case.value_range],
        "symmetric": case.symmetric,
        "impl": impl,
    }
    on_device = images.to(device)  # keeps the strides of dense layouts
    offsets = glcm_offsets(case.angles, case.scales)
    counts = glcm(on_device, offsets, normalize=False, **options)
    expected = torch.from_numpy(oracle(images, case, normed=False).astype(np.int64))
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), expected.flatten(1, 2))

    normed = torch.from_numpy(oracle(images, case, normed=True))
    each = mas_glcm(on_device, case.angles, case.scales, reduction="none", **options)
    assert each.dtype == torch.float32
    torch.testing.assert_close(each.cpu().double(), normed, rtol=3e-7, atol=1e-12)
    mean = mas_glcm(on_device, case.angles, case.scales, **options)
    torch.testing.assert_close(mean.cpu().double(), normed.mean((1, 2)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", covering(88, 0, SIZES), ids=str)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_equals_scikit_image(case, impl, photographs):
    check(case, photographs, impl)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize(
    ("variant", "case"),
    list(zip(itertools.cycle(("shared", "counts", "product")), covering(33, 1, SMALL_SIZES), strict=False)),
    ids=str,
)
def test_interpreted_triton_equals_scikit_image(case, variant, photographs, triton_variant):
    triton_variant("counts" if variant == "product" and case.levels > 32 else variant)
    check(case, photographs, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", covering(88, 2, SIZES), ids=str)
@pytest.mark.parametrize("variant", ["shared", "packed", "counts", "product", "reference"])
def test_gpu_equals_scikit_image(case, variant, photographs, triton_variant):
    if variant != "reference":
        triton_variant("counts" if variant == "product" and case.levels > 32 else variant)
    check(case, photographs, "reference" if variant == "reference" else "triton", "cuda")


@pytest.mark.parametrize("angles", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 18, 24, 36])
def test_offsets_round_as_scikit_image(angles):
    scales = (1, 2, 3, 5, 7)
    # a single white pixel pairs with exactly one other, whose level tells its place
    radius, side = 7, 15
    place = np.arange(side * side, dtype=np.uint16).reshape(side, side)
    radians = [j * math.pi / angles for j in range(angles)]
    matrices = graycomatrix(place, scales, radians, side * side)
    partners = matrices[place[radius, radius]].argmax(0).reshape(-1)
    expected = tuple((int(p) // side - radius, int(p) % side - radius) for p in partners)
    assert glcm_offsets(angles, scales) == expected
