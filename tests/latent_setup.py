"""What the tests of latents share: a tiny VAE of random weights, in a folder as diffusers writes it."""

from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers")


def tiny_vae(**options):
    """4 pixels a latent, 4 channels; ``options`` replace its configuration."""
    torch.manual_seed(0)
    plain = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "scaling_factor": 2.0,
        "sample_size": 32,
    }
    return diffusers.AutoencoderKL(**{**plain, **options})


class Pooling(torch.nn.Module):
    """A VAE without any receptive field: means of 4 x 4 pixels, and a channel of ones."""

    def __init__(self):
        super().__init__()
        self.config = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (1, 1, 1)}
        self.config |= {"scaling_factor": 0.5, "shift_factor": 0.25}

    def encode(self, x):
        ones = x.new_ones(len(x), 1, x.shape[2] // 4, x.shape[3] // 4)
        mean = torch.cat((torch.nn.functional.avg_pool2d(x, 4), ones), 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.1)))

    def decode(self, z):
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z[:, :3], scale_factor=4.0))
