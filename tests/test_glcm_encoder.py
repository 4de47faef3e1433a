"""The training side of fingerprints: matrices in the step, their encoder, projections and classifier."""

import pytest
import torch

from bdg_fast import losses, mas_glcm
from bdg_fast.data.degradations import LEVELS, degrade
from bdg_fast.models.glcm_encoder import DegradationClassifier, Fingerprint, GLCMEncoder, Projection


@pytest.fixture(scope="module")
def images(photographs):
    """float32 `[3, 3, 96, 80]` in [-1, 1]."""
    return photographs[:, :, :96, :80].float() / 127.5 - 1


def test_fingerprint_is_the_published_matrix_without_gradient(images):
    leaf = images.clone().requires_grad_()
    found = Fingerprint()(leaf)
    assert not found.requires_grad
    assert torch.equal(found, mas_glcm(images, 9, (1, 2, 3, 4, 5, 6), 32, value_range=(-1, 1)))


def test_fingerprint_joins_the_residual(images):
    module = Fingerprint(levels=16, residual=True)
    found = module(images)
    assert found.shape == (3, module.channels, 16, 16)
    assert torch.equal(found[:, 0], Fingerprint(levels=16)(images))
    residual = mas_glcm(images, levels=16, value_range=(-1, 1), source="laplacian", quantizer="companded")
    assert torch.equal(found[:, 1], residual)


def test_fingerprint_of_low_precision_is_that_of_its_values(images):
    half = images.bfloat16()
    assert torch.equal(Fingerprint()(half), Fingerprint()(half.float()))


def test_fingerprint_looks_for_nan_if_told(images):
    images = images.clone()
    images[0, 0, 0, 0] = float("nan")
    assert Fingerprint()(images).isfinite().all()
    with pytest.raises(ValueError, match="images"):
        Fingerprint(check_finite=True)(images)


@pytest.mark.parametrize("levels", [2, 3, 8, 9, 31, 32, 100, 256])
@pytest.mark.parametrize("channels", [1, 2])
def test_encoder_takes_any_levels(levels, channels):
    encoder = GLCMEncoder(levels, channels, width=24, base=8)
    matrix = torch.rand(2, channels, levels, levels, generator=torch.Generator().manual_seed(0))
    features = encoder(matrix)
    assert features.shape == (2, 24)
    assert features.isfinite().all()
    if channels == 1:
        assert torch.equal(encoder(matrix[:, 0]), features)


def test_encoder_sees_frequencies_not_counts(images):
    encoder = GLCMEncoder()
    matrix = Fingerprint()(images)
    torch.testing.assert_close(encoder(matrix * 12345), encoder(matrix), rtol=1e-4, atol=1e-5)


def test_encoder_tells_places_of_a_matrix_apart():
    torch.manual_seed(0)
    matrix = torch.zeros(2, 32, 32)
    matrix[0, 5, 5] = matrix[1, 25, 25] = 1
    first, second = GLCMEncoder()(matrix)
    assert not torch.allclose(first, second, atol=1e-2)


def test_encoder_of_zeros_and_its_gradients_are_finite():
    matrix = torch.zeros(2, 32, 32, requires_grad=True)
    encoder = GLCMEncoder()
    encoder(matrix).sum().backward()
    assert matrix.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_samples_do_not_depend_on_their_batch(images):
    encoder = GLCMEncoder().eval()
    matrix = Fingerprint()(images)
    together = encoder(matrix)
    for i in range(3):
        torch.testing.assert_close(encoder(matrix[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_projection_has_length_one_and_pools_pixels():
    projection = Projection(6, 5)
    features = torch.randn(4, 6, 3, 7, generator=torch.Generator().manual_seed(0))
    found = projection(features)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(projection(features.mean((2, 3))), found)
    low = Projection(6, 5).bfloat16()(features.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.norm(dim=1), torch.ones(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert projection(features.bfloat16()).dtype == torch.float32


def batch_of(photographs, seed):
    """All photographs degraded in four ways, in [-1, 1], and the classes."""
    kinds, found = ("noise", "blur", "haze", "jpeg"), []
    for kind in kinds:
        found.append(degrade(photographs, kind, LEVELS[kind][1], seed=[seed + i for i in range(len(photographs))]))
    return torch.cat(found) * 2 - 1, torch.arange(len(kinds)).repeat_interleave(len(photographs))


def test_a_few_steps_learn_to_tell_degradations_apart(photographs):
    torch.manual_seed(0)
    parts = [photographs[:, :, y : y + 128, x : x + 128].float() / 255 for y in (0, 128) for x in (0, 128)]
    fingerprint = Fingerprint(residual=True)
    encoder, classifier = GLCMEncoder(channels=2, width=64), DegradationClassifier(64, 4)
    matrices, classes = zip(*(batch_of(part, 10 * i) for i, part in enumerate(parts)), strict=True)
    matrices = [fingerprint(images) for images in matrices]
    seen, labels = torch.cat(matrices[:3]), torch.cat(classes[:3])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters()], lr=1e-3)
    first = last = None
    for _ in range(25):
        optimizer.zero_grad()
        loss = losses.classification_loss(classifier(encoder(seen)), labels)
        loss.backward()
        optimizer.step()
        first, last = loss.item() if first is None else first, loss.item()
    assert last < 0.25 * first
    unseen = classifier(encoder(matrices[3])).argmax(1) == classes[3]
    assert unseen.float().mean() >= 0.75


def test_the_same_seed_gives_the_same_features(images):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(Projection(32, 8)(GLCMEncoder(width=32)(Fingerprint()(images))))
    assert torch.equal(*found)


def test_compiles_in_one_graph(images):
    fingerprint, encoder, projection = Fingerprint(residual=True), GLCMEncoder(channels=2), Projection(256)

    def features(x):
        return projection(encoder(fingerprint(x)))

    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), features(images))


def test_bad_arguments_are_named(images):
    for match, call in {
        r"levels must be in 2\.\.256": lambda: GLCMEncoder(1),
        r"channels must be at least 1": lambda: GLCMEncoder(channels=0),
        r"base must be a positive multiple of 8": lambda: GLCMEncoder(base=12),
        r"matrix must be \[B, 1, 32, 32\], got \[2, 16, 16\]": lambda: GLCMEncoder()(torch.rand(2, 16, 16)),
        r"matrix must be \[B, 2, 32, 32\]": lambda: GLCMEncoder(channels=2)(torch.rand(2, 32, 32)),
        r"matrix must be float32 or float64": lambda: GLCMEncoder()(torch.ones(2, 32, 32).long()),
        r"width must be at least 1": lambda: Projection(4, 0),
        r"features must be \[B, 4\] or \[B, 4, h, w\]": lambda: Projection(4, 2)(torch.rand(2, 3)),
        r"classes must be at least 2": lambda: DegradationClassifier(4, 1),
        r"levels": lambda: Fingerprint(levels=1),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match=r"images must be floating, in \[-1, 1\], got torch.uint8"):
        Fingerprint()(images.to(torch.uint8))
