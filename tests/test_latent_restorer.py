"""Pictures through a network of latents: any size and type, enlarged or not, in tiles, also by the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig
from bdg_fast.cli import main
from bdg_fast.latent import Codec, LatentSpace
from bdg_fast.models.checkpoints import CheckpointError
from latent_setup import tiny_vae


def network(channels=4):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1,), channels=channels))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)  # so that it counts as trained
    return unet


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, vae):
    """A checkpoint that enlarges four times."""
    folder = tmp_path_factory.mktemp("model")
    network().save_pretrained(folder)
    LatentSpace.of(vae, scale=4, colour="wavelet").save(folder)
    return folder


def restorer(vae, scale=1, colour="none", unet=None, **options):
    return Restorer(
        unet or network(),
        latent=LatentSpace.of(vae, scale=scale, colour=colour),
        **{"device": "cpu", "dtype": "float32", **options},
    )


def picture(height, width, channels=3):
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (13, 18), (24, 31)])
def test_pictures_of_any_size_come_back_enlarged(vae, scale, size):
    found = restorer(vae, scale)(picture(*size))
    assert found.shape == (3, scale * size[0], scale * size[1])
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1


def test_a_restored_picture_is_what_the_equations_give(vae):
    image, unet = picture(14, 17)[None], network().eval()
    space = LatentSpace.of(vae, scale=2)
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=2, bound=float("inf"))
    x_lq = torch.nn.functional.interpolate(image * 2 - 1, (28, 34), mode="bicubic", antialias=True).clamp(-1, 1)
    z = space.codec.encode(x_lq)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    z = sampler(unet, z, x_start=sampler.start(z, noise=noise))
    expected = (space.codec.decode(z, (28, 34)).clamp(-1, 1) + 1) / 2
    two = ResidualSampler(schedule=ResidualSchedule.linear(), steps=2)
    found = restorer(vae, 2, sampler=two, seed=3).restore(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_results_depend_neither_on_others_nor_on_the_call(vae):
    images = [picture(12, 16), picture(12, 16).flip(1), picture(9, 20), picture(12, 16).flip(2)]
    one = restorer(vae, 2)
    alone = [one(image) for image in images]
    assert torch.equal(one(images[0]), alone[0])
    assert not torch.equal(restorer(vae, 2, seed=1)(images[0]), alone[0])
    together = sorted(one.stream(images, batch=3), key=lambda found: found.number)
    for found, expected in zip(together, alone, strict=True):
        assert found.error is None
        torch.testing.assert_close(found.image, expected, atol=1e-4, rtol=0)
    assert one.restore(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 16, 16)


def test_large_pictures_go_in_tiles_and_progress_is_told(vae):
    image, told = picture(150, 40), []
    tiled = restorer(vae, 1, tile=129)
    found = tiled(image, progress=lambda *counts: told.append(counts))
    assert told[0] == (0, 6) and told[-1] == (6, 6)  # two tiles, three steps
    whole = restorer(vae, 1, tile=512)(image)
    assert found.shape == whole.shape and 0 < (found - whole).abs().mean() < 0.1
    assert torch.equal(tiled(image), found)


def test_memory_that_runs_out_makes_tiles_smaller(vae, monkeypatch):
    encode, sides = Codec.encode, []

    def short_of_memory(self, images, seed=None):
        sides.append(self.tile * self.factor)
        if self.tile * self.factor > 200:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, images, seed)

    monkeypatch.setattr(Codec, "encode", short_of_memory)
    found = restorer(vae, 4, tile=512)(picture(66, 20))
    assert found.shape == (3, 264, 80) and sides[0] == 512 and sides[-1] <= 200


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_pictures_of_any_kind_are_enlarged_with_their_alpha(vae, mode):
    values = np.random.default_rng(0).integers(0, 255, (11, 14, 4), np.uint8) // 2 + 60  # Pillow clips on the way
    image = Image.fromarray(values, "RGBA").convert("RGB" if mode == "P" else mode.replace("I;16", "L")).convert(mode)
    found = restorer(vae, 4)(image)
    assert found.size == (56, 44) and found.mode == ("RGB" if mode == "P" else mode)
    if mode in ("LA", "RGBA"):
        expected = image.getchannel("A").resize((56, 44), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(found.getchannel("A"), int) - np.asarray(expected, int)).max() <= 1
    deep = torch.randint(0, 65535, (4, 6, 5), dtype=torch.int32).to(torch.uint16)
    assert restorer(vae, 4)(deep).shape == (4, 24, 20)


def test_colours_are_corrected(vae):
    image = picture(20, 20)
    plain, wavelet, adain = (restorer(vae, 2, colour)(image) for colour in ("none", "wavelet", "adain"))
    far = [(found.mean((1, 2)) - image.mean((1, 2))).abs().max() for found in (plain, wavelet, adain)]
    assert far[0] > 0.05 and far[1] < far[0] and far[2] < far[0]


def test_the_command_restores_by_a_checkpoint(model, vae, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray((picture(9, 13).permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save("small.png")
    assert main(["restore", "small.png", "large.png", "--checkpoint", str(model), "--compare", "--device", "cpu"]) == 0
    assert Image.open("large.png").size == (52, 36) and Image.open("large_compare.png").size == (104, 36)
    first = Image.open("large.png").tobytes()
    moved = ["restore", "small.png", "large.png", "--checkpoint", str(model), "--force", "--vae", str(vae)]
    assert main(moved) == 0 and Image.open("large.png").tobytes() == first
    assert main([*moved[:-1], "nowhere"]) == 2
    assert "no VAE at 'nowhere'" in capsys.readouterr().err
    assert main(["restore", "small.png", "other.png", "--vae", str(vae)]) == 2
    assert "vae must be given for networks of latents alone" in capsys.readouterr().err


def test_videos_keep_their_size(model, tmp_path):
    from bdg_fast.video import restore_video

    pytest.importorskip("av")
    with pytest.raises(ValueError, match="restorer must keep the size of frames, got one that enlarges them by 4"):
        restore_video(Restorer.from_pretrained(model), tmp_path / "clip.mp4", tmp_path / "clear.mp4")


def test_commands_that_compare_with_what_came_refuse_it(model, tmp_path, capsys):
    for folder in ("noisy", "clean", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (20, 16)).save(tmp_path / folder / "in.png")
    device = ["--device", "cpu"]
    folders = ["--input", str(tmp_path / "noisy"), "--target", str(tmp_path / "clean")]
    assert main(["evaluate", *folders, "--checkpoint", f"large={model}", "--metrics", "psnr", *device]) == 1
    captured = capsys.readouterr()
    assert "enlarges pictures by 4: restore them and measure the folder by --results" in captured.err
    for more in ([], ["--web"]):
        command = ["demo", *([] if more else [str(tmp_path / "in.png")]), "--output", str(tmp_path / "demo"), *more]
        assert main([*command, "--checkpoint", str(model)]) == 2
        assert "--checkpoint must keep the size of pictures, got one that enlarges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale": 2.5}, r"scale must be in 1\.\.16, got 2\.5"),
        ({"scale": "4"}, r"scale must be in 1\.\.16, got '4'"),
        ({"colour": "red"}, r"colour must be one of 'none', 'adain', 'wavelet', got 'red'"),
        ({"vae": None}, r"vae must be a text, got None"),
    ],
)
def test_a_damaged_file_of_latents_is_named(model, tmp_path, changes, told):
    path = tmp_path / "latent.json"
    path.write_text(json.dumps(json.loads((model / "latent.json").read_text()) | changes))
    with pytest.raises(CheckpointError, match=rf"latent\.json does not tell of latents: {told}"):
        LatentSpace.from_checkpoint(tmp_path)


def test_networks_of_other_latents_are_refused(vae, tmp_path):
    with pytest.raises(ValueError, match="network must have 4 channels, those of the VAE, got 3"):
        restorer(vae, unet=network(3))
    with pytest.raises(ValueError, match="3 channels, of pixels, got 4: one of latents needs latent"):
        Restorer(network())
    network().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got 4: one of latents needs latent"):
        Restorer.from_pretrained(tmp_path)
