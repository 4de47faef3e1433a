"""Laws that the matrices obey whatever the image, and agreement with definitions written out naively."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bdg_fast import glcm, mas_glcm
from bdg_fast.kernels.mas_glcm.spec import residual_thresholds

LEVELS = st.sampled_from([2, 3, 8, 32, 33, 256])
OFFSET = st.tuples(st.integers(-5, 5), st.integers(-5, 5))
OFFSETS = st.lists(OFFSET, min_size=1, max_size=4)
SOURCE = st.sampled_from(["gray", "laplacian"])
every_impl = pytest.mark.parametrize("impl", ["reference", "cpu"])


@st.composite
def image_batches(draw, smallest=1, side=9):
    """uint8 `[B, 1 or 3, H, W]`, smallest <= B <= 3 and 1 <= H, W <= side."""
    height, width = draw(array_shapes(min_dims=2, max_dims=2, max_side=side))
    shape = (draw(st.integers(smallest, 3)), draw(st.sampled_from([1, 3])), height, width)
    return torch.from_numpy(draw(arrays(np.uint8, shape)))


@st.composite
def images_and_mask(draw, side=7):
    """A batch and any mask of it, `[B or 1, H, W]` or with a channel axis."""
    images = draw(image_batches(side=side))
    batch, _, height, width = images.shape
    mask = torch.from_numpy(draw(arrays(np.bool_, (draw(st.sampled_from([1, batch])), height, width))))
    return images, mask.unsqueeze(1) if draw(st.booleans()) else mask


def counts(images, offsets, impl, **options):
    return glcm(images, offsets, normalize=False, impl=impl, **options)


def naive_luma(image: np.ndarray) -> np.ndarray:
    """16-bit luma `[H, W]` of uint8 `[C, H, W]`."""
    v = image.astype(np.int64) * 257
    return v[0] if len(v) == 1 else (19595 * v[0] + 38470 * v[1] + 7471 * v[2] + 32768) // 65536


def naive_levels(image: np.ndarray, levels: int) -> dict[tuple[int, int], int]:
    """`{(y, x): level}` of the gray source."""
    return {p: int(value) * levels // 65536 for p, value in np.ndenumerate(naive_luma(image))}


def naive_companded(image: np.ndarray) -> dict[tuple[int, int], int]:
    """`{(y, x): level}` of the residual of every pixel with four neighbours, 32 companded levels."""
    luma = naive_luma(image)
    levels = {}
    for y in range(1, luma.shape[0] - 1):
        for x in range(1, luma.shape[1] - 1):
            r = 4 * luma[y, x] - luma[y - 1, x] - luma[y + 1, x] - luma[y, x - 1] - luma[y, x + 1]
            levels[y, x] = int(np.clip(16 + np.rint(20 * np.sign(r) * np.sqrt(abs(r) / 65535)), 0, 31))
    return levels


def naive_counts(level: dict[tuple[int, int], int], levels: int, offset: tuple[int, int]) -> torch.Tensor:
    matrix = torch.zeros(levels, levels, dtype=torch.int64)
    for (y, x), i in level.items():
        j = level.get((y + offset[0], x + offset[1]))
        if j is not None:
            matrix[i, j] += 1
    return matrix


@every_impl
@given(images=image_batches(), offset=OFFSET, levels=LEVELS, source=SOURCE)
def test_negated_offset_transposes(impl, images, offset, levels, source):
    dy, dx = offset
    there, back = counts(images, [(dy, dx), (-dy, -dx)], impl, levels=levels, source=source).unbind(1)
    assert torch.equal(back, there.mT)
    both = counts(images, [offset], impl, levels=levels, source=source, symmetric=True)
    assert torch.equal(both[:, 0], there + there.mT)


@every_impl
@given(images=image_batches(), offsets=OFFSETS, source=SOURCE)
def test_sum_is_the_number_of_pairs(impl, images, offsets, source):
    height, width = (max(n - (2 if source == "laplacian" else 0), 0) for n in images.shape[2:])
    expected = [max(height - abs(dy), 0) * max(width - abs(dx), 0) for dy, dx in offsets]
    totals = counts(images, offsets, impl, source=source).sum((2, 3))
    assert totals.tolist() == [expected] * len(images)
    shares = glcm(images, offsets, impl=impl, source=source).sum((2, 3))
    torch.testing.assert_close(shares, (torch.tensor([expected] * len(images)) > 0).float())


@every_impl
@given(images=image_batches(), offset=OFFSET, source=SOURCE)
def test_flips_and_quarter_turns_turn_the_offset(impl, images, offset, source):
    dy, dx = offset
    expected = counts(images, [offset], impl, source=source)
    for moved, turned in (
        (images.flip(3), (dy, -dx)),
        (images.flip(2), (-dy, dx)),
        (images.rot90(1, (2, 3)), (-dx, dy)),
        (images.rot90(2, (2, 3)), (-dy, -dx)),
        (images.rot90(3, (2, 3)), (dx, -dy)),
        (images.mT, (dx, dy)),
    ):
        assert torch.equal(counts(moved, [turned], impl, source=source), expected)


@every_impl
@given(images=image_batches(smallest=2), offsets=OFFSETS, levels=LEVELS)
def test_images_of_a_batch_are_independent(impl, images, offsets, levels):
    together = counts(images, offsets, impl, levels=levels)
    alone = [counts(image[None], offsets, impl, levels=levels) for image in images]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(mas_glcm(images, impl=impl)[1:], mas_glcm(images[1:], impl=impl))


@every_impl
@given(data=st.data(), images=image_batches(), offsets=OFFSETS, source=SOURCE, normalize=st.booleans())
def test_rectangular_mask_is_a_crop(impl, data, images, offsets, source, normalize):
    height, width = images.shape[2:]
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    options = {"source": source, "normalize": normalize, "impl": impl}
    cropped = glcm(images[:, :, top:bottom, left:right], offsets, **options)
    assert torch.equal(glcm(images, offsets, mask=mask, **options), cropped)


@every_impl
@given(batch=images_and_mask(), offsets=OFFSETS, levels=LEVELS)
def test_any_mask_equals_the_double_loop(impl, batch, offsets, levels):
    images, mask = batch
    masked = counts(images, offsets, impl, levels=levels, mask=mask)
    height, width = images.shape[2:]
    masks = mask.reshape(-1, height, width).expand(len(images), height, width)
    for image, valid, matrices in zip(images, masks, masked, strict=True):
        level = {p: v for p, v in naive_levels(image.numpy(), levels).items() if valid[p]}
        for offset, matrix in zip(offsets, matrices, strict=True):
            assert torch.equal(matrix, naive_counts(level, levels, offset))


@pytest.mark.parametrize("source", ["gray", "laplacian"])
def test_ragged_mask_of_photographs(source, photographs):
    images = photographs[:, :, :151, :130]
    mask = torch.rand(3, 151, 130, generator=torch.Generator().manual_seed(0)) > 0.2
    mask[:, 40:80, 30:90] = False
    options = {"mask": mask, "source": source, "reduction": "none"}
    for normalize in (False, True):
        options["normalize"] = normalize
        expected = mas_glcm(images, impl="reference", **options)
        torch.testing.assert_close(mas_glcm(images, impl="cpu", **options), expected, rtol=3e-7, atol=0)


@every_impl
@given(batch=images_and_mask(side=8), offsets=OFFSETS)
def test_companded_residual_equals_the_double_loop(impl, batch, offsets):
    images, _ = batch
    found = counts(images, offsets, impl, source="laplacian", quantizer="companded")
    for image, matrices in zip(images, found, strict=True):
        level = naive_companded(image.numpy())
        for offset, matrix in zip(offsets, matrices, strict=True):
            assert torch.equal(matrix, naive_counts(level, 32, offset))


@every_impl
def test_companded_residual_of_photographs(impl, photographs):
    images = photographs[:, :, 100:164, 60:124]
    found = counts(images, [(0, 1), (2, -3)], impl, source="laplacian", quantizer="companded")
    for image, matrices in zip(images, found, strict=True):
        level = naive_companded(image.numpy())
        assert torch.equal(matrices[0], naive_counts(level, 32, (0, 1)))
        assert torch.equal(matrices[1], naive_counts(level, 32, (2, -3)))


def test_companded_thresholds_round_the_published_formula():
    residual = np.arange(-4 * 65535, 4 * 65535 + 1)
    companded = 16 + np.rint(20 * np.sign(residual) * np.sqrt(np.abs(residual) / 65535))
    found = np.searchsorted(residual_thresholds(32, "companded"), residual, side="right")
    np.testing.assert_array_equal(found, np.clip(companded, 0, 31))


@every_impl
@given(data=st.data(), images=image_batches(), source=SOURCE)
def test_thresholds_of_the_user(impl, data, images, source):
    low, high = (0, 65535) if source == "gray" else (-4 * 65535, 4 * 65535)
    thresholds = sorted(data.draw(st.sets(st.integers(low, high), min_size=1, max_size=40)))
    levels = len(thresholds) + 1
    found = counts(images, [(0, 0)], impl, levels=levels, source=source, quantizer=thresholds)
    for image, matrix in zip(images, found[:, 0], strict=True):
        value = naive_luma(image.numpy())
        if source == "laplacian":
            padded = np.pad(value, 1)
            value = 4 * value - padded[:-2, 1:-1] - padded[2:, 1:-1] - padded[1:-1, :-2] - padded[1:-1, 2:]
            value = value[1:-1, 1:-1]
        level = np.searchsorted(thresholds, value.reshape(-1), side="right")
        assert matrix.diagonal().tolist() == np.bincount(level, minlength=levels).tolist()


@every_impl
@given(batch=images_and_mask(side=16), source=SOURCE, symmetric=st.booleans(), masked=st.booleans())
def test_mean_is_the_mean_of_what_reduction_none_keeps(impl, batch, source, symmetric, masked):
    images, mask = batch
    options = {"angles": 4, "scales": (1, 2, 5), "levels": 8, "symmetric": symmetric, "source": source}
    options |= {"impl": impl, "mask": mask if masked else None}
    each = mas_glcm(images, reduction="none", **options)
    assert each.shape == (len(images), 3, 4, 8, 8)
    torch.testing.assert_close(mas_glcm(images, **options), each.mean((1, 2)), rtol=1e-6, atol=1e-9)
    each = mas_glcm(images, reduction="none", normalize=False, **options)
    assert torch.equal(mas_glcm(images, normalize=False, **options), each.sum((1, 2)))


@every_impl
@given(images=image_batches(side=12), offset=OFFSET, other=OFFSET)
def test_repeated_offsets(impl, images, offset, other):
    found = counts(images, [offset, other, offset], impl)
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(found[:, :1], counts(images, [offset], impl))
    assert torch.equal(found[:, 1:2], counts(images, [other], impl))
    # an angle given twice weighs twice
    first, second = mas_glcm(images, (0.0, 1.5), (2,), reduction="none", impl=impl)[:, 0].unbind(1)
    weighted = mas_glcm(images, (0.0, 1.5, 0.0), (2,), impl=impl)
    torch.testing.assert_close(weighted, (2 * first + second) / 3, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("impl", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_empty_batch_and_empty_image(impl, dtype):
    for height, width in ((8, 9), (0, 9), (0, 0)):
        images = torch.zeros(0, 3, height, width, dtype=dtype)
        assert mas_glcm(images, impl=impl).shape == (0, 32, 32)
        assert glcm(images, [(0, 1), (1, 0)], levels=5, normalize=False, impl=impl).shape == (0, 2, 5, 5)
        nothing = mas_glcm(torch.zeros(2, 1, height, 0, dtype=dtype), impl=impl, levels=4)
        assert torch.equal(nothing, torch.zeros(2, 4, 4))
