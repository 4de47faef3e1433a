"""Latents: what a VAE of diffusers makes of images of any size, in tiles, and which files it may come from."""

import json

import pytest
import torch

from bdg_fast.latent import Codec, LatentSpace, find_vae
from bdg_fast.latent.colour import corrected, low
from bdg_fast.latent.space import unbounded
from bdg_fast.models.checkpoints import CheckpointError
from bdg_fast.sampler import ResidualSampler
from bdg_fast.schedule import ResidualSchedule
from latent_setup import Pooling, tiny_vae


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def smooth(height, width, batch=1):
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(batch, 3, 5, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (37, 53), (40, 56)])
def test_images_of_any_size_go_to_latents_and_back(vae, size):
    codec, images = Codec(vae), smooth(*size, batch=2)
    latents = codec.encode(images)
    assert latents.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4)) and latents.dtype == torch.float32
    restored = codec.decode(latents, size)
    assert restored.shape == images.shape and restored.isfinite().all()
    assert not latents.requires_grad and not restored.requires_grad and not vae.training


def test_latents_are_those_of_diffusers_scaled(vae):
    images = smooth(16, 24)
    expected = vae.encode(images).latent_dist.mode() * 2
    torch.testing.assert_close(Codec(vae).encode(images), expected)
    torch.testing.assert_close(Codec(vae).decode(expected), vae.decode(expected / 2).sample)


def test_shift_means_and_deviations_are_the_configurations():
    images = smooth(8, 8)
    plain = Codec(tiny_vae()).encode(images) / 2
    torch.testing.assert_close(Codec(tiny_vae(shift_factor=0.5)).encode(images), (plain - 0.5) * 2)
    mean, std = torch.arange(4.0).view(1, -1, 1, 1), torch.arange(1.0, 5).view(1, -1, 1, 1)
    codec = Codec(tiny_vae(latents_mean=mean.flatten().tolist(), latents_std=std.flatten().tolist()))
    torch.testing.assert_close(codec.encode(images), (plain - mean) / std * 2)
    torch.testing.assert_close(codec.decode(codec.encode(images)), Codec(tiny_vae()).decode(plain * 2))


def test_posteriors_are_drawn_by_the_seed_of_each_image(vae):
    codec, images, seeds = Codec(vae), smooth(16, 16, batch=2), torch.tensor([5, -6])
    drawn = codec.encode(images, seeds)
    torch.testing.assert_close(codec.encode(images[1:], seeds[1:]), drawn[1:], atol=1e-5, rtol=0)
    moments = vae.encode(images).latent_dist
    z = (drawn / 2 - moments.mean) / moments.std
    assert 0.6 < z.std() < 1.4 and (z[0] - z[1]).abs().mean() > 0.5


@pytest.mark.parametrize("size", [(64, 64), (61, 130), (20, 201)])
def test_tiles_join_without_a_trace_where_nothing_reaches_across(size):
    whole, tiled = Codec(Pooling()), Codec(Pooling(), tile=64, overlap=16)
    images = smooth(*size, batch=2)
    latents = whole.encode(images)
    torch.testing.assert_close(tiled.encode(images), latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(tiled.decode(latents, size), whole.decode(latents, size), atol=1e-6, rtol=0)


def test_tiles_differ_by_norms_and_attention_alone(vae):
    """Which see a tile alone: of an image that is alike everywhere little is changed, and less by larger tiles."""
    images = torch.rand(1, 3, 150, 199, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = Codec(vae).encode(images)
    decoded = Codec(vae).decode(latents, (150, 199))
    worst = []
    for tile, overlap in ((64, 16), (128, 48)):
        tiled = Codec(vae, tile=tile, overlap=overlap)
        for found, whole in ((tiled.encode(images), latents), (tiled.decode(latents, (150, 199)), decoded)):
            assert found.shape == whole.shape
            worst.append(float((found - whole).abs().mean() / whole.std()))
    assert worst[2] < min(0.06, worst[0]) and worst[3] < min(0.25, worst[1])  # random weights: trained ones differ less


def test_low_precision_is_the_vaes_alone():
    images = smooth(16, 16)
    exact = Codec(tiny_vae()).encode(images)
    rough = Codec(tiny_vae(), dtype=torch.bfloat16).encode(images)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.1
    assert torch.equal(Codec(tiny_vae(), dtype=torch.float16).encode(images), exact)  # force_upcast: it would overflow


def test_colours_are_those_of_the_degraded_image():
    degraded, restored = smooth(40, 50), smooth(40, 50).flip(3) * 0.5 + 0.3
    found = corrected(restored, degraded, "adain")
    torch.testing.assert_close(found.mean((2, 3)), degraded.mean((2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), degraded.std((2, 3)), atol=1e-3, rtol=0)
    plain = torch.full((1, 3, 9, 7), 0.2)
    torch.testing.assert_close(low(plain), plain)
    found = corrected(restored, degraded, "wavelet")
    torch.testing.assert_close(found - low(degraded), restored - low(restored))
    assert corrected(restored, degraded, "none") is restored


def test_a_vae_is_found_where_pipelines_keep_it(folder, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(folder)
    images = smooth(8, 8)
    assert find_vae(tmp_path / "pipeline") == tmp_path / "pipeline" / "vae" and find_vae(folder) == folder
    assert torch.equal(
        Codec.from_pretrained(tmp_path / "pipeline").encode(images), Codec.from_pretrained(folder).encode(images)
    )


def test_what_is_no_vae_is_refused_by_name(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no VAE at 'nowhere': give a folder, or a name on the hub"):
        find_vae("nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: it is no folder of a VAE"):
        find_vae(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        find_vae(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pickled weights alone \(diffusion_pytorch_model\.bin\).* not loaded"):
        find_vae(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read as an AutoencoderKL"):
        Codec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="must be of an AutoencoderKL, and is of UNet2DModel"):
        find_vae(tmp_path)


def test_weights_that_are_not_all_there_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    name = "decoder.conv_out.weight"
    save_file({key: weights[key] for key in weights if key != name}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=f"does not fit its config.json: 1 keys, {name} first"):
        Codec.from_pretrained(tmp_path)


def test_bad_arguments_are_named(vae):
    codec = Codec(vae)
    for call, message in (
        (lambda: Codec(tiny_vae(in_channels=4)), "vae must be of RGB images, in_channels=3, got 4"),
        (lambda: Codec(vae, tile=64, overlap=32), "tile and overlap must be multiples of 4, .*got 64 and 32"),
        (lambda: codec.encode(torch.zeros(1, 4, 8, 8)), r"images must have shape \[B, 3, H, W\], got \[1, 4, 8, 8\]"),
        (lambda: codec.decode(torch.zeros(1, 3, 8, 8)), r"latents must have shape \[B, 4, h, w\], got \[1, 3, 8, 8\]"),
        (lambda: LatentSpace(codec=codec, scale=0), "scale must be in 1..16, got 0"),
        (lambda: LatentSpace(codec=codec, colour="red"), "colour must be one of 'none', 'adain', 'wavelet', got 'red'"),
        (lambda: LatentSpace(codec=codec).check(3), "network must have 4 channels, those of the VAE, got 3"),
        (lambda: LatentSpace(codec=codec).save("anywhere"), "a space can be saved if its VAE came from a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"diffusers is not installed.*pip install 'bdg-fast\[diffusers\]'"):
        Codec.from_pretrained(folder)


def test_checkpoints_refer_to_their_vae_or_hold_it(folder, tmp_path):
    space = LatentSpace.of(folder, scale=4, colour="wavelet")
    images = smooth(8, 8)
    for name, copy in (("reference", False), ("copy", True)):
        (tmp_path / name).mkdir()
        space.save(tmp_path / name, copy)
        found = LatentSpace.from_checkpoint(tmp_path / name)
        assert (found.scale, found.colour) == (4, "wavelet")
        assert torch.equal(found.codec.encode(images), space.codec.encode(images))
    assert found.folder == tmp_path / "copy" / "vae" and not (tmp_path / "reference" / "vae").exists()
    assert LatentSpace.from_checkpoint(folder) is None  # nothing of ours
    other = tmp_path / "other"
    torch.manual_seed(7)
    tiny_vae(layers_per_block=2).save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"is another VAE than .*reference was trained with: the SHA-256"):
        LatentSpace.from_checkpoint(tmp_path / "reference", vae=other)
    text = (tmp_path / "reference" / "latent.json").read_text().replace(str(folder), str(tmp_path / "gone"))
    (tmp_path / "reference" / "latent.json").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"no VAE at .*gone.*--vae tells another place"):
        LatentSpace.from_checkpoint(tmp_path / "reference")
    assert LatentSpace.from_checkpoint(tmp_path / "reference", vae=folder).folder == folder


def test_a_checkpoint_is_never_saved_beside_another_vae(folder, tmp_path):
    torch.manual_seed(7)
    tiny_vae(layers_per_block=2).save_pretrained(tmp_path / "other")
    space, other = LatentSpace.of(folder), LatentSpace.of(tmp_path / "other")
    at = tmp_path / "network"
    at.mkdir()
    other.save(at, copy=True)
    with pytest.raises(ValueError, match=r"network.vae holds another VAE than .*vae.*: copy=True replaces it"):
        space.save(at)
    assert LatentSpace.from_checkpoint(at).sha256 == other.sha256  # nothing was written
    space.save(at, copy=True)
    images = smooth(8, 8)
    assert torch.equal(LatentSpace.from_checkpoint(at).codec.encode(images), space.codec.encode(images))
    assert sorted(path.name for path in at.iterdir()) == ["latent.json", "vae"]
    written = [path.stat().st_mtime_ns for path in sorted((at / "vae").iterdir())]
    for copy in (True, False):  # the same VAE stays as it is
        space.save(at, copy)
    assert [path.stat().st_mtime_ns for path in sorted((at / "vae").iterdir())] == written
    config = at / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    space.save(at, copy=True)  # the same weights, and yet another VAE
    assert torch.equal(LatentSpace.from_checkpoint(at).codec.encode(images), space.codec.encode(images))
    config.unlink()
    with pytest.raises(ValueError, match=r"holds another VAE than .*, or none"):
        space.save(at)
    space.save(at, copy=True)
    assert LatentSpace.from_checkpoint(at).folder == at / "vae"


def test_samplers_of_latents_have_no_range():
    sampler = unbounded(ResidualSampler(schedule=ResidualSchedule.linear(), steps=2, clamp_residual=True))
    clean, x_lq = torch.full((1, 5, 4, 4), 7.0), torch.full((1, 5, 4, 4), -4.0)

    class Exact:
        residual, noise = x_lq - clean, None

    found = sampler(lambda *_: Exact, x_lq, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, clean)
