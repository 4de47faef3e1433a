"""Batched degradations: samples by themselves, stronger with the level, and plain references for what they compute."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from bdg_fast.data.degrade import CDD11, NAMES, RANGES, degrade, two_order_chain
from bdg_fast.data.degrade.blur import anisotropic_kernel
from bdg_fast.data.degrade.common import line
from bdg_fast.data.degrade.noise import poisson
from bdg_fast.data.degrade.registry import FUNCTIONS
from bdg_fast.data.degrade.resize import resampler
from bdg_fast.kernels.pixelwise import derived_seeds, image_normals, uniforms
from devices import NoFloat64

SEEDS = torch.tensor([5, -3, 2**62 + 1])
RANDOM = [name for name in NAMES if name not in ("blur", "jpeg", "resample", "clean")]
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def images(photographs):
    """float32 `[3, 3, 61, 50]`, of odd and even sides."""
    return photographs[:, :, 40:101, 30:80].float() / 255


def at(name, share):
    low, high = RANGES[name]
    return low + (high - low) * share


def psnr(one, other):
    return -10 * math.log10((one - other).square().mean().item())


@each
def test_keeps_type_shape_range_and_the_input(images, name):
    before = images.clone()
    found = degrade(images, name, at(name, 1), SEEDS)
    assert (found.dtype, found.shape) == (images.dtype, images.shape)
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(images, before)
    assert not found.requires_grad


@each
def test_a_sample_depends_on_its_own_seed_and_level_alone(images, name):
    levels = torch.tensor([at(name, 0), at(name, 0.4), at(name, 1)])
    together = degrade(images, name, levels, SEEDS)
    close = {"rtol": 0, "atol": 0 if name in ("noise", "poisson", "lowlight", "haze", "jpeg") else 1e-6}
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(degrade(images[order], name, levels[order], SEEDS[order]), together[order], **close)
    for i in range(3):
        alone = degrade(images[i : i + 1], name, float(levels[i]), SEEDS[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], **close)


@each
def test_the_same_seed_gives_the_same_and_another_another(images, name):
    found = degrade(images, name, at(name, 0.5), SEEDS)
    assert torch.equal(degrade(images, name, at(name, 0.5), SEEDS), found)
    assert torch.equal(degrade(images, name, at(name, 0.5), SEEDS + 1), found) == (name not in RANDOM)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "clean"])
def test_stronger_levels_change_more(images, name):
    found = [psnr(degrade(images, name, at(name, share), SEEDS), images) for share in (0, 0.33, 0.67, 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 1


@each
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (17, 16)], ids=str)
def test_images_of_any_size(images, name, size):
    found = degrade(images[:, :, : size[0], : size[1]], name, at(name, 0.5), SEEDS)
    assert found.shape == (3, 3, *size)
    assert found.isfinite().all()


@each
def test_memory_format_does_not_matter(images, name):
    expected = degrade(images, name, at(name, 0.5), SEEDS)
    found = degrade(images.contiguous(memory_format=torch.channels_last), name, at(name, 0.5), SEEDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_brightness_goes_where_it_should(images):
    before = images.mean((1, 2, 3))
    for name in ("haze", "rain", "snow"):
        assert (degrade(images, name, at(name, 0.5), SEEDS).mean((1, 2, 3)) > before).all(), name
    assert (degrade(images, "lowlight", 2.5, SEEDS).mean((1, 2, 3)) < before).all()
    for name in ("noise", "poisson", "blur", "anisotropic_blur", "motion_blur", "jpeg", "resample"):
        after = degrade(images * 0.4 + 0.3, name, at(name, 0.2), SEEDS).mean((1, 2, 3))
        torch.testing.assert_close(after, before * 0.4 + 0.3, rtol=0, atol=0.01)


def test_haze_lowers_contrast_and_is_denser_at_the_top(images):
    found = degrade(images, "haze", 1.5, SEEDS)
    assert (found.std((1, 2, 3)) < images.std((1, 2, 3))).all()
    flat = degrade(torch.zeros(3, 3, 64, 64), "haze", 1.5, SEEDS)
    assert (flat[:, :, :8].mean((1, 2, 3)) > flat[:, :, -8:].mean((1, 2, 3))).all()
    assert (flat.diff(dim=2).abs().max() < 0.05) and (flat.diff(dim=3).abs().max() < 0.05)  # smooth


@pytest.mark.parametrize("name", ["blur", "anisotropic_blur", "motion_blur", "resample", "jpeg"])
def test_flat_images_stay_what_they_are(name):
    flat = torch.full((3, 3, 40, 33), 102 / 255)
    torch.testing.assert_close(
        degrade(flat, name, at(name, 0.8), SEEDS), flat, rtol=0, atol=4 / 255 * (name == "jpeg") + 1e-6
    )


def test_noise_is_normal_and_of_the_stated_standard_deviation():
    noise = degrade(torch.full((2, 3, 200, 200), 0.5), "noise", torch.tensor([10.0, 25.0]), SEEDS[:2]) - 0.5
    assert (noise.std((1, 2, 3)) * 255).tolist() == pytest.approx([10, 25], rel=0.01)
    assert noise.mean((2, 3)).abs().max() < 1e-3
    assert (noise[1] / noise[1].std()).pow(4).mean().item() == pytest.approx(3, rel=0.03)
    assert np.abs(np.corrcoef(noise[:, :, :, :].flatten(2).flatten(0, 1)) - np.eye(6)).max() < 0.02


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.7, 3.0, 5.0, 5.1, 12.0, 40.0, 300.0])
def test_poisson_numbers_are_distributed_as_they_should(mean):
    stats = pytest.importorskip("scipy.stats")
    number = 200_000
    normal = image_normals(torch.tensor([7]), 1, number, 0)[0, 0, 0]
    found = poisson(torch.full_like(normal, mean), normal).numpy()
    assert (found == np.rint(found)).all()
    if mean == 0:
        assert not found.any()
        return
    assert found.mean() == pytest.approx(mean, abs=4 * math.sqrt(mean / number))
    assert found.var() == pytest.approx(mean, rel=0.015 if mean > 0.1 else 0.1)
    values = np.arange(int(mean + 8 * math.sqrt(mean)) + 3)
    empirical = np.searchsorted(np.sort(found), values, side="right") / number
    assert np.abs(empirical - stats.poisson.cdf(values, mean)).max() < 0.004


def test_rare_normals_make_no_wild_poisson_numbers():
    extremes = torch.tensor([-6.8, 6.8])
    for mean, most in ((0.0, 0), (0.001, 3), (1.0, 12), (5.0, 24), (5.1, 32), (100.0, 180)):
        low, high = poisson(torch.full((2,), mean), extremes).tolist()
        assert 0 <= low <= mean
        assert mean - 1 < high <= most


def test_poisson_noise_grows_with_brightness():
    images = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 3, 150, 150)
    found = degrade(images, "poisson", 2.0, SEEDS[:2])
    assert found.var((1, 2, 3)).tolist() == pytest.approx([0.2 * 2 / 255, 0.7 * 2 / 255], rel=0.03)


def test_blur_equals_scipy(images):
    ndimage = pytest.importorskip("scipy.ndimage")
    sigmas = [0.5, 1.7, 4.0]
    found = degrade(images, "blur", sigmas, SEEDS)
    for one, image, sigma in zip(found, images, sigmas, strict=True):
        expected = ndimage.gaussian_filter(image.double().numpy(), (0, sigma, sigma), mode="nearest", radius=12)
        np.testing.assert_allclose(one.numpy(), expected, atol=2e-6)


def test_anisotropic_blur_is_as_long_and_turned_as_told():
    angle = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1)
    kernel = anisotropic_kernel(torch.full((3, 1, 1), 3.0), torch.full((3, 1, 1), 0.5), angle)
    at = torch.arange(-12, 13.0)
    y, x = torch.meshgrid(at, at, indexing="ij")
    for one, turn in zip(kernel, angle.flatten().tolist(), strict=True):
        along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
        assert one.sum().item() == pytest.approx(1)
        assert (one * along**2).sum().sqrt().item() == pytest.approx(3.0, rel=0.01)
        assert (one * across**2).sum().sqrt().item() == pytest.approx(1.5, rel=0.01)
        assert (one * along * across).sum().item() == pytest.approx(0, abs=0.01)


def test_lines_are_as_long_as_told():
    flat = torch.zeros(1, 1, 1)
    kernel = line(torch.full((1, 1, 1), 7.0), flat, 12)[0]
    expected = torch.zeros(25, 25)
    expected[12, 9:16] = 1
    assert torch.equal(kernel, expected)
    torch.testing.assert_close(line(flat + 7, flat + math.pi / 2, 12)[0], expected.T, rtol=0, atol=1e-5)
    for angle in (0.3, 0.8, 2.1):
        assert line(flat + 15, flat + angle, 12).sum().item() == pytest.approx(15, rel=0.1)


@pytest.mark.parametrize(("before", "after"), [(61, 30), (50, 13), (50, 7), (13, 50), (1, 9), (9, 1), (20, 20)])
def test_resampler_equals_antialiased_interpolation(before, after):
    signal = torch.rand(1, 1, before, before, generator=torch.Generator().manual_seed(0))
    rows = resampler(torch.tensor([float(before)]), torch.tensor([float(after)]), before + 3, after + 2)
    assert not rows[:, after:].any()
    assert not rows[:, :, before:].any()
    matrix = rows[0, :after, :before]
    expected = F.interpolate(signal, size=(after, after), mode="bicubic", antialias=True)
    torch.testing.assert_close(matrix @ signal[0, 0] @ matrix.T, expected[0, 0], rtol=0, atol=2e-5)


def test_resample_goes_down_and_up_by_the_samples_own_factors(images):
    factors = [1.5, 2.0, 7.3]
    found = degrade(images, "resample", factors, SEEDS)
    for one, image, factor in zip(found, images, factors, strict=True):
        small = F.interpolate(
            image[None], size=(round(61 / factor), round(50 / factor)), mode="bicubic", antialias=True
        )
        expected = F.interpolate(small, size=(61, 50), mode="bicubic", antialias=True)[0].clamp(0, 1)
        torch.testing.assert_close(one, expected, rtol=0, atol=2e-5)


def as_file(image, quality):
    """What Pillow makes of a float image."""
    file = io.BytesIO()
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("quality", [5, 20, 49, 50, 51, 75, 90])
def test_jpeg_is_that_of_a_file(photographs, quality):
    """At least 45 dB from it, where the file is 20 to 40 dB from the picture."""
    images = photographs[:, :, :141, :203].float() / 255
    found = degrade(images, "jpeg", 100 - quality, SEEDS)
    for one, image in zip(found, images, strict=True):
        expected = as_file(image, quality)
        assert psnr(one, expected) > 45
        assert psnr(one, image) == pytest.approx(psnr(expected, image), abs=0.1)


def test_jpeg_takes_a_quality_for_each_sample(images):
    found = degrade(images, "jpeg", [20, 50, 90], SEEDS)
    for one, image, quality in zip(found, images, (80, 50, 10), strict=True):
        assert psnr(one, as_file(image, quality)) > 42


def test_streaks_and_flakes_brighten_alone(images):
    for name in ("rain", "snow"):
        found = degrade(images, name, RANGES[name][1], SEEDS)
        assert (found >= images - 1e-6).all()
        assert 0.02 < (found > images + 0.02).float().mean() < 0.9
        gray = degrade(torch.full((3, 3, 60, 60), 0.3), name, RANGES[name][1], SEEDS)
        assert torch.equal(gray[:, 0], gray[:, 2])


def test_clean_images_stay_as_they_are(images):
    assert torch.equal(degrade(images, "clean", 0.5, SEEDS), images)


@pytest.mark.parametrize(
    ("composition", "order"),
    [("lowlight+haze+rain", ("lowlight", "rain", "haze")), ("noise+jpeg", ("noise", "jpeg"))],
    ids=str,
)
def test_compositions_apply_one_after_another_and_haze_last(images, composition, order):
    expected = images
    for name in order:
        expected = degrade(expected, name, at(name, 0.3), SEEDS)
    torch.testing.assert_close(degrade(images, composition, 0.3, SEEDS), expected, rtol=0, atol=1e-5)


def test_the_compositions_of_cdd11(images):
    assert degrade(images, "blur+resample+jpeg", 0.5, SEEDS).shape == images.shape
    assert len(set(CDD11)) == 11
    assert set(CDD11) <= set(NAMES)


def test_random_numbers_are_uniform_and_of_their_own_for_each_seed_and_purpose():
    found = uniforms(SEEDS, 20_000, purpose=3)
    assert found.shape == (3, 4, 20_000)
    assert 0 <= found.min() <= found.max() < 1
    assert np.abs(np.histogram(found, 20)[0] / found.numel() - 0.05).max() < 2e-3
    rows = torch.cat((found, uniforms(SEEDS, 20_000, purpose=4))).flatten(0, 1)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.03
    derived = torch.stack([derived_seeds(SEEDS, number) for number in range(3)])
    assert derived.dtype == torch.int64
    assert len(derived.unique()) == 9
    assert (derived < 0).any() and (derived > 2**60).any()  # of all 64 bits


@pytest.mark.parametrize("name", [*(name for name in NAMES if "+" not in name), "chain"])
def test_computes_on_the_images_device_without_waiting_for_it(name, monkeypatch):
    """Fake tensors refuse to mix devices, and to tell what only the device knows."""
    monkeypatch.setattr("bdg_fast.kernels.pixelwise.reference.WITHOUT_FLOAT64", ("cuda",))
    with FakeTensorMode():
        images, seeds = torch.zeros(2, 3, 20, 17, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
        with NoFloat64():
            if name == "chain":
                found, states = two_order_chain(images, seeds)
                assert states.device.type == "cuda"
            else:
                found = FUNCTIONS[name][0](images, torch.ones(2, device="cuda"), seeds)
    assert (found.device.type, found.dtype, found.shape) == ("cuda", torch.float32, images.shape)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same_pictures(images, name):
    expected = degrade(images, name, at(name, 0.5), SEEDS)
    found = degrade(images.cuda(), name, at(name, 0.5), SEEDS).cpu()
    assert (found - expected).abs().mean() < 1e-4  # a rounding may tip a coefficient of JPEG, or a photon
    if "jpeg" not in name and "poisson" not in name:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_chain(images):
    expected, states = two_order_chain(images, SEEDS)
    found, same = two_order_chain(images.cuda(), SEEDS)
    assert torch.equal(same.cpu(), states)
    assert (found.cpu() - expected).abs().mean() < 0.5 / 255


def test_empty_batch():
    assert degrade(torch.zeros(0, 3, 8, 8), "rain", 1, torch.zeros(0).long()).shape == (0, 3, 8, 8)


def test_bad_arguments_are_named(images):
    for match, arguments in {
        r"images must be \[B, 3, H, W\]": (images[0], "blur", 1, SEEDS),
        r"at least 1 x 1 pixel": (images[:, :, :0], "blur", 1, SEEDS),
        r"seeds must be \[3\], one a sample, got \[2\]": (images, "blur", 1, SEEDS[:2]),
        r"name must be one of noise, .*got 'fog'": (images, "fog", 1, SEEDS),
        r"got 'rain\+rain'": (images, "rain+rain", 1, SEEDS),
        r"got 3": (images, 3, 1, SEEDS),
        r"level of 'blur' must be in 0.5\.\.4, got 9": (images, "blur", 9, SEEDS),
        r"level of 'blur' .* got nan": (images, "blur", float("nan"), SEEDS),
        r"level of 'haze\+rain' must be in 0.0\.\.1.0": (images, "haze+rain", 1.5, SEEDS),
        r"level must be one number or \[3\], got \[2\]": (images, "blur", [1, 2], SEEDS),
    }.items():
        with pytest.raises(ValueError, match=match):
            degrade(*arguments)
    with pytest.raises(TypeError, match=r"images must be a float32 tensor, got torch.uint8"):
        degrade(images.byte(), "blur", 1, SEEDS)
    with pytest.raises(TypeError, match="seeds must be an int64 tensor, got list"):
        degrade(images, "blur", 1, [1, 2, 3])
