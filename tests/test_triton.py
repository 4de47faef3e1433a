"""The Triton kernels in ways scikit-image has no word for: masks, residuals, far offsets, 64-bit positions.

On the CPU by the interpreter (all but the instructions that reach shared memory, which `test_ptx.py` runs), on a GPU
as they are.
"""

import importlib.util

import pytest
import torch

from bdg_fast import glcm, mas_glcm

pytestmark = [pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")]
if torch.cuda.is_available():
    pytestmark.append(pytest.mark.gpu)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = ["shared", "packed", "counts", "product"]
OFFSETS = [(0, 1), (1, 1), (2, -1), (-3, 2), (0, 0), (6, 0), (0, -6), (40, 3), (3, 40), (3, -40), (10**12, 1)]


def random_images(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=VARIANTS)
def variant(request, triton_variant):
    triton_variant(request.param)
    return request.param


@pytest.mark.parametrize("levels", [2, 32, 106, 256])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_counts_equal_the_reference(variant, levels, masked):
    if variant == "product" and levels > 32:
        pytest.skip("products stop at 32 levels")
    for shape, source in (((2, 3, 9, 47), "gray"), ((1, 1, 12, 11), "laplacian"), ((3, 1, 1, 1), "laplacian")):
        images = random_images(shape)
        mask = random_images((shape[0], *shape[2:]), 1) > 0.2 if masked else None
        on_device = None if mask is None else mask.to(DEVICE)
        quantizer = "companded" if source == "laplacian" else "uniform"
        options = {"levels": levels, "source": source, "quantizer": quantizer}
        expected = glcm(images, OFFSETS, normalize=False, mask=mask, impl="reference", **options)
        found = glcm(images.to(DEVICE), OFFSETS, normalize=False, mask=on_device, impl="triton", **options)
        assert torch.equal(found.cpu(), expected)
        if len(images) != 2:
            continue
        mean = mas_glcm(images.to(DEVICE), 5, (1, 3), mask=on_device, impl="triton", **options)
        expected = mas_glcm(images, 5, (1, 3), mask=mask, impl="reference", **options)
        torch.testing.assert_close(mean.cpu(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("levels", [16, 256])
def test_positions_of_64_bits_change_nothing(variant, levels, monkeypatch):
    from bdg_fast.kernels.mas_glcm import triton

    if variant == "product" and levels > 32:
        pytest.skip("products stop at 32 levels")
    images = random_images((2, 3, 21, 33))
    expected = glcm(images, OFFSETS, levels=levels, normalize=False, impl="reference")
    work = triton.Work
    monkeypatch.setattr(triton, "Work", lambda *arguments: work(*arguments)._replace(wide=True))
    found = glcm(images.to(DEVICE), OFFSETS, levels=levels, normalize=False, impl="triton")
    assert torch.equal(found.cpu(), expected)


def test_batches_run_in_pieces(variant, monkeypatch):
    from bdg_fast.kernels.mas_glcm import triton

    images = random_images((3, 1, 20, 19))
    monkeypatch.setattr(triton, "HELD_BYTES", 1)  # an image each
    found = mas_glcm(images.to(DEVICE), 3, (1, 4), impl="triton")
    assert torch.equal(found.cpu(), mas_glcm(images, 3, (1, 4), impl="cpu"))


@pytest.mark.parametrize("content", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("levels", [32, 256])
def test_flat_images(variant, content, levels):
    if variant == "product" and levels > 32:
        pytest.skip("products stop at 32 levels")
    counts = glcm(
        torch.full((1, 1, 70, 71), content, device=DEVICE), [(0, 1), (2, 3)], levels=levels, normalize=False,
        impl="triton",
    )  # fmt: skip
    level = round(content * 65535) * levels >> 16
    assert counts[0, :, level, level].tolist() == [70 * 70, 68 * 68]
    assert counts.sum().item() == 70 * 70 + 68 * 68


def test_bins_of_16_bits_do_not_overflow(triton_variant):
    triton_variant("packed")
    image = torch.zeros(1, 1, 256, 257, dtype=torch.uint8, device=DEVICE)
    counts = glcm(image, [(0, 1)], levels=8, normalize=False, impl="triton")
    assert counts[0, 0, 0, 0] == counts.sum() == 256 * 256
    assert mas_glcm(image, levels=8, angles=[1.0, 2.0], scales=(2,), impl="triton")[0, 0, 0] == 1  # mirrored: one group


def test_images_beyond_its_positions_are_refused():
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=DEVICE).expand(1, 1, 1, (1 << 29) + 1)
    with pytest.raises(RuntimeError, match="at most 536870912 pixels high and wide"):
        glcm(image, [(0, 1)], levels=8, normalize=False, impl="triton")
