"""What is evaluated at once, and what is kept: company changes neither tiles nor results."""

import pytest
import torch

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig, UNetOutput
from bdg_fast.graphs import LoopGraphs
from bdg_fast.room import Room


class Local:
    """A network whose results tell what it was given at once."""

    def __init__(self):
        self.shapes = []

    def __call__(self, x_t, x_lq, time):
        self.shapes.append(tuple(x_t.shape))
        return UNetOutput(0.3 * (x_lq - x_lq.mean((1, 2, 3), keepdim=True)), None, x_t)


@pytest.fixture
def restorer():
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    restorer = Restorer(unet, ResidualSampler(schedule=ResidualSchedule.linear()), device="cpu", backend="eager")
    restorer._network = Local()
    return restorer


def pictures(count, height, width):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("free", "most"),
    [(1, (1, 1)), (70 << 20, (1, 1)), (150 << 20, (2, 2)), (250 << 20, (2, 3)), (1 << 40, (2, 5))],
)
def test_company_changes_no_result_whatever_memory_is_free(restorer, monkeypatch, free, most):
    """A picture that fits alone is not cut where it does not fit together with others: fewer go together."""
    monkeypatch.setattr("bdg_fast.restorer.free_memory", lambda device: free)
    images, shapes = pictures(5, 170, 150), restorer._network.shapes
    alone = torch.cat([restorer.restore(image[None]) for image in images])
    tiles = {shape[2:] for shape in shapes}
    for count, together in zip((2, 5), most, strict=True):
        shapes.clear()
        torch.testing.assert_close(restorer.restore(images[:count]), alone[:count], rtol=0, atol=1e-5)
        assert {shape[2:] for shape in shapes} == tiles and max(shape[0] for shape in shapes) == together


def test_room_for_pictures_together():
    room = Room(2 * 4 * 320 * 160 * 100, 100)
    assert [room.together(count, 320, 150, 1024) for count in (0, 1, 4, 5, 8, 9)] == [1, 1, 4, 3, 4, 3]
    assert room.together(9, 640, 150, 320) == 3 and room.together(9, 6400, 1500, 1024) == 1
    latents = Room(2 * 200**2 * 100, 1, codec=100, largest=512)
    assert latents.tile == 192  # a VAE takes more, but of one tile at a time
    assert latents.together(5, 192, 192, 192) == 5


def test_memory_that_graphs_held_is_tried_before_smaller_tiles(restorer, monkeypatch):
    tried, missing = [], [True, False, True, True, True]

    def sample(self, pixels, tile, keep):
        tried.append((len(pixels), tile))
        if missing.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels

    restorer._graphs = LoopGraphs(lambda x: x, None)
    monkeypatch.setattr(Restorer, "_sample", sample)
    monkeypatch.setattr(Restorer, "_room", lambda self: Room(1 << 40, 1, largest=1000))
    restorer.restore(pictures(1, 8, 900))
    assert tried == [(1, 1000)] * 2
    tried.clear()
    missing.append(False)
    restorer.restore(pictures(1, 8, 900))
    assert tried == [(1, 1000)] * 2 + [(1, 450), (1, 225)]
