"""Restoring pictures: every size works, company changes nothing, tiles leave no seam (types: test_convert.py)."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig, UNetOutput, streams
from bdg_fast.data.convert import Picture, as_picture
from bdg_fast.data.images import ImageReadError, bundled_photographs
from bdg_fast.memory import free_memory
from bdg_fast.restorer import TiledNetwork
from bdg_fast.room import Room

FIXTURES = Path(__file__).with_name("fixtures") / "diffuir"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def restorer():
    return Restorer(trained(1, 2), device="cpu")


def picture(size):
    return Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), np.uint8))


def trained(*multipliers):
    """A small network whose weights are random, but not fresh."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=multipliers))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    return unet


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4), (1, 1, 3)], ids=str)
def test_arrays_and_tensors_keep_type_and_shape(dtype, shape, restorer):
    image = RNG.random(shape)
    image = (image * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else image.astype(dtype)
    restored = restorer(image)
    assert restored.dtype == image.dtype and restored.shape == image.shape
    if len(shape) == 3:
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        for whole in (tensor, tensor[None].expand(2, -1, -1, -1)):
            found = restorer(whole)
            assert found.dtype == tensor.dtype and found.shape == whole.shape
            expected = torch.from_numpy(restored).permute(2, 0, 1).to(torch.float64)
            torch.testing.assert_close(
                found.to(torch.float64), expected.expand(whole.shape), rtol=0, atol=1e-3 * float(expected.max()) + 1
            )
    if shape[-1] == 4:
        assert np.array_equal(restored[..., 3], image[..., 3])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 64), (65, 33)])
def test_any_size(restorer, size):
    restored = restorer(picture(size))
    assert restored.size == size and restored.mode == "RGB"


def test_results_do_not_depend_on_company(restorer):
    images = [
        torch.rand(3, *size, generator=torch.Generator().manual_seed(i))
        for i, size in enumerate([(20, 24), (9, 30), (20, 24)])
    ]
    alone = [restorer(image) for image in images]
    together = restorer.batch([as_picture(image) for image in images])
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    noisy = Restorer(
        trained(1),
        ResidualSampler(schedule=ResidualSchedule.linear(), method="ddpm"),
        device="cpu",
    )
    both = noisy.restore(torch.stack([images[0], images[2]]))
    torch.testing.assert_close(both[1:], noisy.restore(images[2][None]), rtol=0, atol=1e-5)


def test_a_stream_gives_what_single_calls_give(restorer, tmp_path):
    sizes = [(20, 24), (9, 30), (20, 24), (9, 30), (20, 24), (7, 7), (20, 24)]
    images = [picture(size) for size in sizes]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    paths.insert(3, tmp_path / "missing.png")
    alone = {i: None if path.name == "missing.png" else np.array(restorer(path)) for i, path in enumerate(paths)}
    for batch in (1, 2, 5):
        found = list(restorer.stream(iter(paths), batch=batch))
        assert sorted(one.number for one in found) == list(range(len(paths)))
        for one in found:
            assert one.source == paths[one.number]
            if one.source.name == "missing.png":
                assert one.image is None and isinstance(one.error, ImageReadError)
            else:
                difference = np.array(one.image).astype(int) - alone[one.number]
                assert one.error is None and abs(difference).max() <= 1  # a batch rounds differently
        if batch == 1:
            assert [one.number for one in found] == list(range(len(paths)))


def test_a_stream_evaluates_sizes_together_and_holds_few(restorer, monkeypatch):
    batches, read = [], []
    monkeypatch.setattr(Restorer, "restore", lambda self, pixels, *_: batches.append(len(pixels)) or pixels)
    monkeypatch.setattr(streams, "KINDS", 2)

    def images():
        for i in range(40):
            read.append(i)
            yield torch.zeros(3, 8, 8 + i % 3)

    finished = 0
    for _ in restorer.stream(images(), batch=4):
        finished += 1
        assert len(read) - finished <= 2 * 4 + 1 + 4 + (2 + 2 * 4)  # waiting, in hand, done with it, being read
    assert finished == 40 and sum(batches) == 40
    assert batches.count(4) >= 8


def test_a_stream_reads_the_next_batch_while_one_is_restored(restorer, monkeypatch):
    read, restored, ahead = [], [], []

    def as_picture(image):
        read.append(image)
        return Picture(torch.zeros(1, 3, 8, 8), lambda pixels: pixels)

    def restore(self, pixels, *_):
        restored.extend(pixels)
        wanted, deadline = min(len(restored) + 4, 12), time.monotonic() + 5
        while len(read) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        ahead.append(len(read) >= wanted)
        return pixels

    monkeypatch.setattr("bdg_fast.data.convert.as_picture", as_picture)
    monkeypatch.setattr(Restorer, "restore", restore)
    assert len(list(restorer.stream(range(12), batch=4))) == 12
    assert ahead == [True] * 3


def test_whoever_leaves_a_stream_waits_for_no_more_pictures(restorer, monkeypatch):
    read = []

    def as_picture(image):
        time.sleep(0.01)
        read.append(image)
        return Picture(torch.zeros(1, 3, 8, 8), lambda pixels: pixels)

    monkeypatch.setattr("bdg_fast.data.convert.as_picture", as_picture)
    monkeypatch.setattr(Restorer, "restore", lambda self, pixels, *_: pixels)
    stream = restorer.stream(range(100), batch=20)
    next(stream)
    stream.close()
    assert len(read) < 40  # of 62 asked for


def test_what_came_before_an_error_of_the_source_is_given_back(restorer):
    def images():
        yield from (torch.zeros(3, 8, 8), torch.zeros(3, 8, 9), torch.zeros(3, 8, 8))
        raise RuntimeError("the disk is gone")

    stream = restorer.stream(images(), batch=2)
    assert sorted(next(stream).number for _ in range(3)) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(stream)


def test_one_failure_in_a_batch_stays_alone(restorer, monkeypatch):
    def restore(self, pixels, *_):
        if bool((pixels == 0).flatten(1).all(1).any()):
            raise RuntimeError("black")
        return pixels

    monkeypatch.setattr(Restorer, "restore", restore)
    images = [torch.full((3, 8, 8), value) for value in (0.1, 0.0, 0.2)]
    found = {one.number: one for one in restorer.stream(images, batch=3)}
    assert str(found[1].error) == "black"
    assert torch.equal(found[0].image, images[0]) and torch.equal(found[2].image, images[2])
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        restorer.stream(images, batch=0)


def test_low_precision_is_chosen_where_it_is_native(monkeypatch):
    unet = trained(1)
    for capabilities, dtype in (
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert Restorer(unet, device="cpu").dtype == dtype
        assert Restorer(unet, device="cpu", dtype="float32").dtype == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert Restorer(unet, device="cpu").dtype == torch.float32


def test_the_official_code_restores_the_same():
    """Everything from pixels to pixels: DiffUIR's own sampling of these weights with this seed."""
    recorded = load_file(FIXTURES / "T_ddim.safetensors")
    restorer = Restorer.from_pretrained(FIXTURES / "T_state.safetensors", device="cpu", dtype="float32", seed=5)
    found = restorer.restore((recorded["official_eta0_3.x_input"] + 1) / 2)
    torch.testing.assert_close(found, (recorded["official_eta0_3.img3"] + 1) / 2, rtol=0, atol=1e-5)


def test_seeds(restorer):
    image = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    other = Restorer(restorer.unet, restorer.sampler, device="cpu", seed=1)
    assert torch.equal(restorer(image), restorer(image))
    assert not torch.equal(restorer(image), other(image))


class Local:
    """A network that sees a pixel's surroundings only, so that tiles can equal the whole."""

    def __call__(self, x_t, x_lq, time):
        blurred = torch.nn.functional.avg_pool2d(x_lq, 9, 1, 4, count_include_pad=False)
        return UNetOutput(0.3 * blurred + 0.1 * x_t, x_t - blurred, x_t)


@pytest.mark.parametrize("size", [(150, 130), (300, 141), (401, 515)])
def test_tiles_equal_the_whole(size):
    x_lq = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x_t = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([500.0])
    whole, tiled = Local()(x_t, x_lq, time), TiledNetwork(Local(), 140)(x_t, x_lq, time)
    for name in ("residual", "noise"):
        difference = (getattr(whole, name) - getattr(tiled, name)).abs()
        # a tile's own edge lacks surroundings, but weighs almost nothing there
        assert difference.max() < 0.05
        assert difference.mean() < 1e-3


def test_tiles_are_close_to_the_whole_and_show_no_seam():
    """With real weights; a tile's statistics are its own, so that 27.6 dB is what is found."""
    photograph = Image.open(bundled_photographs()[0]).convert("RGB").resize((336, 176))
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 255
    restorer = Restorer.from_pretrained(FIXTURES / "T_state.safetensors", device="cpu", dtype="float32")
    tiled = Restorer(restorer.unet, restorer.sampler, device="cpu", dtype="float32", tile=192)
    whole, result = restorer.restore(pixels), tiled.restore(pixels)
    assert -10 * (whole - result).square().mean().log10() > 27
    # neighbouring columns differ no more than in the whole, wherever tiles begin and end
    steps, expected = ((image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2)) for image in (result, whole))
    assert (steps - expected).abs().max() < 0.5 * expected.mean()


def test_progress_counts_steps_and_tiles_and_can_end_the_work(restorer):
    told = []
    small = picture((40, 30))
    assert np.array_equal(np.array(restorer(small, progress=lambda *now: told.append(now))), np.array(restorer(small)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]

    tiled, large = Restorer(trained(1, 2), device="cpu", tile=144), picture((224, 150))
    told.clear()
    restored = tiled(large, progress=lambda *now: told.append(now))
    assert told == [(done, 12) for done in range(13)]  # two by two tiles, three steps
    assert np.array_equal(np.array(restored), np.array(tiled(large)))

    def give_up(done, total):
        if done == 5:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        tiled(large, progress=give_up)
    assert np.array_equal(np.array(restored), np.array(tiled(large)))


def test_out_of_memory_halves_the_tiles(restorer, monkeypatch):
    tiles = []

    def sample(self, pixels, tile, keep):
        tiles.append(tile)
        if tile > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels

    monkeypatch.setattr(Restorer, "_sample", sample)
    monkeypatch.setattr(Restorer, "_room", lambda self: Room(1 << 40, 1, largest=4096))
    restorer.restore(torch.zeros(1, 3, 1000, 900))
    assert tiles == [4096, 500, 250]
    monkeypatch.setattr(Restorer, "_sample", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("again")))
    with pytest.raises(torch.OutOfMemoryError):
        restorer.restore(torch.zeros(1, 3, 1000, 900))


def test_out_of_memory_halves_the_batch_first(restorer, monkeypatch):
    tried = []

    def sample(self, pixels, tile, keep):
        tried.append((len(pixels), tile))
        if len(pixels) * tile > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels

    monkeypatch.setattr(Restorer, "_sample", sample)
    monkeypatch.setattr(Restorer, "_room", lambda self: Room(1 << 40, 1, largest=1000))
    images = torch.rand(5, 3, 8, 1000)
    torch.testing.assert_close(restorer.restore(images), images)
    assert tried == [(5, 1000), (3, 1000), (2, 1000), (1, 1000), *[(1, 500)] * 5]


def test_tile_size_follows_free_memory(restorer, monkeypatch):
    sides = []
    for free in (1 << 20, 1 << 28, 1 << 30, 64 << 30):
        monkeypatch.setattr("bdg_fast.restorer.free_memory", lambda device, free=free: free)
        sides.append(restorer._room().tile)
    assert sides == sorted(sides) and sides[0] == 144 and sides[1] < sides[2] < sides[3] == 1024


def test_free_memory_respects_the_limits_of_containers(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return free_memory(torch.device("cpu"), tmp_path)

    mib = 1 << 20
    assert free_memory(torch.device("cpu"), tmp_path) == 4096 * mib  # nothing told
    assert write("proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:  8388608 kB\nHugePages_Total: 0\n") == 8192 * mib
    write("sys/fs/cgroup/memory.current", str(300 * mib))
    assert write("sys/fs/cgroup/memory.max", "max\n") == 8192 * mib
    assert write("sys/fs/cgroup/memory.max", f"{1000 * mib}\n") == 700 * mib
    assert write("sys/fs/cgroup/memory.stat", f"anon 1\ninactive_file {50 * mib}\n") == 750 * mib  # of files
    write("proc/self/cgroup", "0::/system/one.service\n")
    write("sys/fs/cgroup/system/memory.current", str(100 * mib))
    assert write("sys/fs/cgroup/system/memory.max", str(150 * mib)) == 50 * mib  # a limit of a group around ours
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", str(10 * mib))
    assert write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(30 * mib)) == 20 * mib
    assert write("sys/fs/cgroup/memory/memory.limit_in_bytes", "0") == 0


def test_low_precision_is_close(restorer):
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    low = Restorer(restorer.unet, restorer.sampler, device="cpu", dtype="bfloat16").restore(image)
    assert low.dtype == torch.float32
    error = (low - restorer.restore(image)).square().mean()
    assert 10 * torch.log10(1 / error) > 30


def test_fresh_networks_are_told():
    with pytest.warns(UserWarning, match="unet is not trained"):
        Restorer(UNet(UNetConfig(width=8, multipliers=(1,))), device="cpu")


@pytest.mark.parametrize("shared", [False, True])
def test_no_images_give_none(shared):
    config = UNetConfig(width=8, multipliers=(1, 2), heads="both" if shared else "residual", shared_encoder=shared)
    unet = UNet(config).eval()
    none = torch.zeros(0, 3, 20, 24)
    assert unet(none, none, torch.zeros(0)).residual.shape == none.shape
    for method in ("ddim", "ddpm", "use_pred_noise"):
        sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method=method)
        assert sampler(unet, none).shape == none.shape
    if not shared:
        whole, tiled = (Restorer(trained(1, 2), device="cpu", tile=tile) for tile in (None, 144))
        assert whole.restore(none).shape == none.shape
        assert tiled(torch.zeros(0, 4, 20, 208)).shape == (0, 4, 20, 208)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_no_images_give_none_of_a_network_that_is_told(backend):
    restorer = Restorer.from_pretrained(device="cpu", backend=backend)
    assert restorer(torch.rand(0, 3, 70, 32)).shape == (0, 3, 70, 32)
    assert restorer.told(torch.zeros(0, 3, 70, 32, dtype=torch.uint8)).shape == (0, restorer.unet.told_width)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (torch.rand(3, 8, 8), r"pixels must have shape \[B, 3, H, W\], got \[3, 8, 8\]"),
        (torch.rand(1, 1, 8, 8), r"pixels must have shape \[B, 3, H, W\], got \[1, 1, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint16), "pixels must be uint8 or floating, got uint16"),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(restorer, pixels, told):
    with pytest.raises((ValueError, TypeError), match=told):
        restorer.restore(pixels)


def test_bad_settings_are_named():
    for options, message in (
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"tile": 100}, "tile must be more than twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Restorer(trained(1), device="cpu", **options)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'elsewhere\.pt'"):
        Restorer.from_pretrained("elsewhere.pt")
