"""Training in latents: losses of latents, fingerprints of pixels, a VAE that stays as it is, exact resumption."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bdg_fast import Restorer, UNet
from bdg_fast.latent import LatentSpace
from bdg_fast.latent.space import resized
from bdg_fast.models.checkpoints import CheckpointError
from bdg_fast.models.diffusers_unet import DiffusersUNet
from bdg_fast.training import TrainConfig, Trainer, checkpoint, load_config, stages
from bdg_fast.training.data import Pair
from bdg_fast.training.latents import Latents
from bdg_fast.training.settings import build
from latent_setup import diffusers, tiny_vae
from training_setup import batches, config, losses, pictures, settings, trainer

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


def latent_settings(vae, **changes):
    """A UNet of latents; crops of 32 pixels are 8 latents wide, and fingerprints are of 16 pixels."""
    return {
        "network": {"width": 8, "multipliers": [1], "channels": 4},
        "latent": {"vae": str(vae), "scale": 2, "colour": "adain", **changes.pop("latent", {})},
        "stages": {"crop": 32, "steps": 2},
        **changes,
    }


VALIDATION = {"every": 3, "crop": 40, "steps": 1, "pictures": 1}


def run(output, vae, until=None, **changes):
    return trainer(output, source=pictures(size=40), **latent_settings(vae, **changes)).run(until)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, vae, one_thread):
    output = tmp_path_factory.mktemp("whole") / "run"
    assert run(output, vae, validation=VALIDATION).finished
    return output


@pytest.mark.parametrize("until", [1, 5])
def test_a_stopped_run_goes_on_exactly(whole, vae, tmp_path, until):
    assert not run(tmp_path / "run", vae, until, validation=VALIDATION).finished
    assert run(tmp_path / "run", vae, validation=VALIDATION).finished
    assert losses(tmp_path / "run") == losses(whole)
    found, expected = (
        checkpoint.read(folder / "checkpoints" / "step-00000006") for folder in (tmp_path / "run", whole)
    )
    for name in ("parts", "optimizer", "network"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_the_vae_is_in_no_checkpoint_and_stays_as_it_is(whole, vae):
    saved = checkpoint.read(whole / "checkpoints" / "step-00000006")
    assert not [name for name in (*saved.parts, *saved.network) if "decoder.up_blocks" in name or "quant" in name]
    before = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    tiny_vae().save_pretrained(vae)
    assert (vae / "diffusion_pytorch_model.safetensors").read_bytes() == before
    told = json.loads((whole / "network" / "latent.json").read_text())
    assert (told["scale"], told["colour"]) == (2, "adain") and not (whole / "network" / "vae").exists()


def test_scores_are_of_decoded_pixels(whole):
    scored = [line for line in losses(whole) if "psnr" in line]
    assert scored and all(5 < line["psnr"] < 60 and 10 < line["psnr_degraded"] < 60 for line in scored)
    assert sorted((whole / "samples").glob("*.png"))


def test_a_conditional_network_is_told_of_pixels_in_validation(tmp_path, monkeypatch):
    """Of latents too, also where these have as many channels."""
    tiny_vae(latent_channels=3).save_pretrained(tmp_path / "vae")
    told, read = [], UNet.told
    monkeypatch.setattr(UNet, "told", lambda self, x_lq: told.append(tuple(x_lq.shape)) or read(self, x_lq))
    run = latent_settings(tmp_path / "vae", network={"width": 8, "multipliers": [1], "condition": 8})
    settings = {**run, "validation": {"every": 6, "crop": 40, "steps": 2}}
    trainer(tmp_path / "run", source=pictures(size=40), **settings).run()
    assert set(told) == {(4, 3, 16, 16), (3, 3, 20, 20)}  # three degradations of two images


def test_what_was_trained_restores_pictures(whole):
    restorer = Restorer.from_pretrained(whole / "best")
    image = torch.rand(3, 19, 22, generator=torch.Generator().manual_seed(0))
    assert restorer.scale == 2 and restorer(image).shape == (3, 38, 44)


def test_the_way_of_stable_diffusion_in_small(tmp_path):
    """A pipeline's folder: its UNet widened to begin with, its VAE, settings from a file, and what is restored."""
    yaml = pytest.importorskip("yaml")
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 8,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(**shape).save_pretrained(tmp_path / "sd2" / "unet")
    tiny_vae().save_pretrained(tmp_path / "sd2" / "vae")
    start = DiffusersUNet.from_diffusers(tmp_path / "sd2" / "unet", heads="both")
    start.save_pretrained(tmp_path / "start")
    assert start.net.conv_in.weight[:, 4:].eq(0).all() and start.net.conv_out.weight[:4].eq(0).all()
    whole = yaml.safe_load((Path(__file__).parents[1] / "configs" / "latent.yaml").read_text())
    tiny = {"steps": 2, "batch": 2, "crop": 64, "warmup": 0}
    values = {
        **settings(tmp_path / "run"),
        "network": asdict(start.config),
        "init": str(tmp_path / "start"),
        "latent": {**whole["latent"], "vae": str(tmp_path / "sd2"), "dtype": "float32"},
        "data": {"degradations": ["chain"], "held_out": 2},
        "stages": {name: {**stage, **tiny} for name, stage in whole["stages"].items()},
        "validation": {"every": 2, "steps": 2, "crop": 64},
    }
    (tmp_path / "run.json").write_text(json.dumps(values))
    source = pictures(size=72)
    assert Trainer(load_config(tmp_path / "run.json"), source=source, quiet=True).run(1).step == 1
    assert Trainer(load_config(tmp_path / "run.json"), source=source, quiet=True).run().finished
    assert any("psnr" in line for line in losses(tmp_path / "run"))
    restorer = Restorer.from_pretrained(tmp_path / "run" / "network")
    assert restorer.scale == 4 and restorer(torch.rand(1, 9, 11)).shape == (1, 36, 44)


def test_the_recipe_is_read():
    pytest.importorskip("yaml")
    run = load_config(Path(__file__).parents[1] / "configs" / "latent.yaml")
    assert run.latent.scale == 4 and run.uses_encoder and run.data.classes[0] == "state 0"
    options = {name: value for name, value in run.network.options.items() if name != "sample_size"}
    assert options == {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }


def test_fingerprints_are_of_small_degraded_pixels_and_losses_of_latents(vae, tmp_path, monkeypatch):
    seen = {}
    forward = stages.StageModule.forward

    def looked(self, *inputs):
        seen[self.stage.coefficients] = inputs
        return forward(self, *inputs)

    monkeypatch.setattr(stages.StageModule, "forward", looked)
    run(tmp_path / "run", vae)
    space = LatentSpace.of(vae, scale=2)
    for name, (clean, degraded, _, _, _, pixels) in seen.items():
        assert clean.shape == degraded.shape == (4, 4, 8, 8)
        if name == "generation":
            assert degraded is clean
            continue
        assert pixels.shape == (4, 3, 16, 16)
        torch.testing.assert_close((pixels + 1) * 127.5, ((pixels + 1) * 127.5).round(), atol=1e-3, rtol=0)
        torch.testing.assert_close(degraded, space.codec.encode(resized(pixels, [32, 32])))
    assert seen.keys() == {"generation", "bridging", "restoration"}


def test_degraded_images_of_pairs_are_taken_as_they_are(vae):
    run = Latents(config(".", **latent_settings(vae)).latent, 4, CPU)
    images = pictures(size=40).held_out(40).clean / 127.5 - 1
    small, enlarged = run.degraded(images, paired=True)
    assert enlarged is images and small.shape == (2, 3, 20, 20)
    small, enlarged = run.degraded(images, paired=False)
    torch.testing.assert_close(enlarged, resized(small, [40, 40]))
    once = Latents(config(".", **latent_settings(vae, latent={"scale": 1})).latent, 4, CPU)
    assert once.degraded(images, paired=False) == (images, images)


def test_clean_latents_may_be_drawn(vae):
    [batch] = batches(pictures(size=40), 1, 2, crop=32)
    clean = batch.clean / 127.5 - 1
    pair = Pair(clean, clean.flip(2), batch.kinds)
    stage = config(".", **latent_settings(vae)).stages["restoration"]
    mode, drawn = (
        Latents(config(".", **latent_settings(vae, latent={"sample": sample})).latent, 4, CPU)
        for sample in (False, True)
    )
    found = [
        each.encoded(pair, stage, batch, step)[0] for each, step in ((mode, 0), (drawn, 0), (drawn, 0), (drawn, 1))
    ]
    assert torch.equal(found[1].clean, found[2].clean) and torch.equal(found[0].degraded, found[3].degraded)
    assert not torch.equal(found[0].clean, found[1].clean) and not torch.equal(found[1].clean, found[3].clean)


def test_a_stage_of_fingerprints_alone_encodes_nothing(vae):
    weights = {"generation": 0, "bridging": 0, "classification": 1}
    stage = {"coefficients": "bridging", "steps": 1, "batch": 2, "crop": 32, "losses": weights}
    alone = build(TrainConfig, {**settings("."), **latent_settings(vae), "stages": {"one": stage}})
    stage, run = alone.stages["one"], Latents(alone.latent, 4, CPU)
    run.space.codec.encode = None
    [batch] = batches(pictures(size=40), 1, 2, crop=32)
    pair = Pair(batch.clean / 127.5 - 1, batch.clean.flip(2) / 127.5 - 1, batch.kinds)
    found, seen = run.encoded(pair, stage, batch, 0)
    assert stage.reads_only and found is pair and seen.shape == (2, 3, 16, 16)


def test_exports_may_hold_the_vae(vae, tmp_path):
    run(tmp_path / "run", vae, latent={"copy": True})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    space = LatentSpace.from_checkpoint(tmp_path / "elsewhere" / "network")
    assert space.folder == tmp_path / "elsewhere" / "network" / "vae"


def test_another_vae_is_another_run(whole, tmp_path):
    torch.manual_seed(1)
    tiny_vae(layers_per_block=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"latent\.vae=.* is another VAE than the run in .* began with"):
        run(whole, tmp_path, validation=VALIDATION)
    with pytest.raises(ValueError, match=r"latent\.sample differ from those of the run in"):
        run(whole, tmp_path, validation=VALIDATION, latent={"sample": True})


def test_what_does_not_go_together_is_named(vae, tmp_path):
    for changes, message in (
        ({"latent": {"vae": ""}}, r"latent\.vae must name a folder or a repository of the hub, got ''"),
        ({"latent": {"scale": 0}}, r"latent\.scale must be in 1\.\.16, got 0"),
        ({"latent": {"colour": "red"}}, r"latent\.colour must be one of 'none', 'adain', 'wavelet', got 'red'"),
        ({"latent": {"scale": 3}}, r"stages\.generation\.crop must be a multiple of latent\.scale=3, got 32"),
        ({"validation": {"crop": 33}}, r"validation\.crop must be a multiple of latent\.scale=2, got 33"),
        ({"latent": {"steps": 3}}, r"latent\.steps is no setting"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **latent_settings(vae, **changes))
    with pytest.raises(ValueError, match=r"network\.channels must be 3 without latent, got 4"):
        config(tmp_path, network={"width": 8, "multipliers": [1], "channels": 4})
    with pytest.raises(ValueError, match=r"latent\.vae must be given"):
        config(tmp_path, latent={"scale": 2})
    with pytest.raises(ValueError, match=r"network\.channels: network must have 4 channels, those of the VAE, got 3"):
        run(tmp_path / "run", vae, network={"width": 8, "multipliers": [1]})
    with pytest.raises(FileNotFoundError, match="no VAE at"):
        run(tmp_path / "run", tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled weights alone"):
        run(tmp_path / "run", tmp_path)


def test_settings_of_pixels_are_what_they_were(tmp_path):
    assert config(tmp_path).latent is None and config(tmp_path, latent=None).latent is None
    assert "latent" not in settings(tmp_path)
