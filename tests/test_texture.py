"""Texture features: equal to scikit-image, batched, differentiable, compilable."""

import numpy as np
import pytest
import torch
from skimage.feature import graycoprops as skimage_graycoprops

from bdg_fast import glcm, graycoprops, mas_glcm, texture_features
from bdg_fast.texture import PROPS

OFFSETS = [(0, 1), (1, 2), (3, -2)]


@pytest.mark.parametrize("prop", PROPS)
@pytest.mark.parametrize("levels", [2, 8, 32])
def test_equals_scikit_image(photographs, prop, levels):
    counts = glcm(photographs, OFFSETS, levels=levels, normalize=False)
    for image in counts:
        matrix = image.permute(1, 2, 0)[..., None].numpy().astype(np.uint32)
        expected = skimage_graycoprops(matrix, prop)[:, 0]
        np.testing.assert_allclose(graycoprops(image, prop).numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prop", PROPS)
@pytest.mark.parametrize("kind", ["zeros", "constant image", "uniform"])
def test_degenerate_matrices_equal_scikit_image(prop, kind):
    matrix = torch.zeros(8, 8, dtype=torch.int64)
    if kind == "constant image":
        matrix[3, 3] = 17
    if kind == "uniform":
        matrix += 2
    expected = skimage_graycoprops(matrix.numpy().astype(np.uint32)[..., None, None], prop)[0, 0]
    np.testing.assert_allclose(graycoprops(matrix, prop).item(), expected, rtol=1e-6, atol=1e-300)


def test_float32_is_close_to_float64(photographs):
    matrix = mas_glcm(photographs)
    low, high = texture_features(matrix), texture_features(matrix.double())
    assert low.dtype == torch.float32
    assert high.dtype == torch.float64
    torch.testing.assert_close(low.double(), high, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_float32_result(photographs, dtype):
    counts = glcm(photographs, OFFSETS, levels=8, normalize=False).clamp(max=60000).to(dtype)
    features = texture_features(counts)
    assert features.isfinite().all()
    assert torch.equal(features, texture_features(counts.float()).to(dtype))


def test_batch_shape_and_order(photographs):
    matrix = mas_glcm(photographs, reduction="none")
    features = texture_features(matrix, ["entropy", "contrast"])
    assert features.shape == (*matrix.shape[:-2], 2)
    assert torch.equal(features[1, 2, 3, 0], graycoprops(matrix[1, 2, 3], "entropy"))
    assert torch.equal(features[..., 1], graycoprops(matrix, "contrast"))
    assert torch.equal(features, texture_features(matrix, iter(["entropy", "contrast"])))


@pytest.mark.parametrize("prop", PROPS)
def test_gradient(prop):
    matrix = torch.rand(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.autograd.gradcheck(lambda m: graycoprops(m, prop), matrix.requires_grad_())


@pytest.mark.parametrize("prop", PROPS)
def test_gradient_is_finite_where_the_matrix_is_zero(prop):
    matrix = torch.zeros(3, 4, 4)
    matrix[1, 2, 2] = 1.0
    matrix[2, :2] = 0.125
    graycoprops(matrix.requires_grad_(), prop).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


def test_compiles_without_graph_break(photographs):
    matrix = mas_glcm(photographs)
    compiled = torch.compile(texture_features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(matrix), texture_features(matrix))


def test_vmap(photographs):
    matrix = mas_glcm(photographs)
    torch.testing.assert_close(torch.func.vmap(texture_features)(matrix), texture_features(matrix))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"prop must be one of contrast, .*got 'roughness'"):
        graycoprops(torch.ones(4, 4), "roughness")
    with pytest.raises(ValueError, match=r"matrix must have shape \[\.\.\., L, L\].*got \[4, 5\]"):
        graycoprops(torch.ones(4, 5))
    with pytest.raises(ValueError, match="props must not be empty"):
        texture_features(torch.ones(4, 4), [])
    with pytest.raises(ValueError, match="props must be a sequence of names, got the text 'contrast'"):
        texture_features(torch.ones(4, 4), "contrast")
    with pytest.raises(TypeError, match=r"matrix must be a torch\.Tensor.*got list"):
        graycoprops([[1.0]])
