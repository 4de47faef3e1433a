"""`bdg-fast restore clip.mp4`: what a viewer sees and hears of a restored clip, and what an interruption costs."""

import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import Restorer, UNet, UNetConfig
from bdg_fast.cli import main
from bdg_fast.video import CONTAINERS, restore_video, restoring

av = pytest.importorskip("av")
FRAMES, SIZE = 8, (48, 32)
EXACT = {"codec": "ffv1", "crf": None}
UNEVEN = [0, 3000, 9000, 10000, 30000, 31000, 90000, 93000]


def network(**settings):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 2), **settings))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)  # not fresh
    return unet


@pytest.fixture(scope="module")
def restorer():
    return Restorer(network(), device="cpu", backend="eager")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def unchanging(restorer, monkeypatch):
    """A restorer that gives back what came."""

    def same(pixels, keep=None, told=None):
        pixels = pixels / 255 if pixels.dtype == torch.uint8 else pixels
        return pixels if keep is None else keep(pixels)

    monkeypatch.setattr(restorer, "restore", same)
    return restorer


def pictures(frames=FRAMES, size=SIZE, moving=True):
    """Smooth colours that move to the right, a pixel or two a frame."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return [
        (127 + 100 * np.sin(np.stack([x - 2 * i * moving, y + x / 2, 40 - y], 2) / 7)).astype(np.uint8)
        for i in range(frames)
    ]


def write(path, images=None, pixels="yuv420p", codec="libx264", sound=None, times=None, turn=0, **settings):
    """A clip, and a second of a tone of 440 Hz beside it."""
    images = pictures() if images is None else images
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 90000)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if turn:
            stream.set_display_rotation(turn)
        audio = output.add_stream(sound, rate=48000, layout="mono") if sound else None
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 90000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if audio:
            tone = (np.sin(np.arange(48000) * 440 * 2 * np.pi / 48000) * 8000).astype(np.int16)
            samples = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts = 48000, 0
            for part in av.AudioResampler(format=audio.format, layout="mono", rate=48000, frame_size=960).resample(
                samples
            ):
                output.mux(audio.encode(part))
            output.mux(audio.encode(None))
    return path


def shown(path):
    """All frames of a clip."""
    with av.open(str(path)) as file:
        return list(file.decode(file.streams.video[0]))


def rgb(path):
    return np.stack([frame.to_ndarray(format="rgb24") for frame in shown(path)])


def times(path):
    return [frame.time for frame in shown(path)]


def heard(path):
    """Packets of the sound, and when each is played."""
    with av.open(str(path)) as file:
        return [(bytes(packet), float(packet.pts * packet.time_base)) for packet in file.demux(audio=0) if packet.size]


def looks(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frame = next(file.decode(stream))
        colours = (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
        rotation, sides = frame.rotation, (frame.width, frame.height)
        return sides, frame.format.name, colours, rotation, stream.sample_aspect_ratio, stream.average_rate


CLIPS = {
    "plain.mp4": {"sound": "aac"},
    "turned.mov": {"sound": "aac", "turn": 90, "sample_aspect_ratio": Fraction(4, 3)},
    "colours.mkv": {"sound": "libopus", "color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 2},
    "deep.mp4": {"pixels": "yuv420p10le", "color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1},
    "web.webm": {"sound": "libopus", "codec": "libvpx-vp9"},
    "odd.webm": {"images": pictures(size=(47, 31)), "codec": "libvpx-vp9"},
}


@pytest.mark.parametrize("name", CLIPS)
def test_what_is_no_degradation_stays(name, unchanging, tmp_path):
    source, target = write(tmp_path / name, **CLIPS[name]), tmp_path / "out" / name
    target.parent.mkdir()
    done = restore_video(unchanging, source, target, crf=4, part=3)
    assert done == (FRAMES, [], [])
    assert looks(target) == looks(source)
    assert times(target) == times(source)
    assert ("sound" not in CLIPS[name]) or heard(target) == heard(source) != []
    assert np.abs(rgb(source).astype(int) - rgb(target)).mean() < 2.5
    assert [path.name for path in target.parent.iterdir()] == [name]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_times_are_kept(suffix, unchanging, tmp_path):
    source = write(tmp_path / f"phone{suffix}", times=UNEVEN)
    restore_video(unchanging, source, tmp_path / f"out{suffix}", part=3)
    assert times(tmp_path / f"out{suffix}") == times(source)
    assert len(set(np.diff(times(source)).round(3))) > 3


def test_subtitles_tags_and_chapters_go_along(unchanging, tmp_path):
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:00,200\nHello\n\n")
    plain, source = write(tmp_path / "plain.mkv"), tmp_path / "subtitled.mkv"
    with (
        av.open(str(plain)) as video,
        av.open(str(tmp_path / "words.srt")) as words,
        av.open(str(source), "w") as output,
    ):
        copies = [output.add_stream_from_template(file.streams[0]) for file in (video, words)]
        output.metadata["title"] = "A clip"
        output.set_chapters(
            [{"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "I"}}]
        )
        for file, copy in zip((video, words), copies, strict=True):
            for packet in file.demux():
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
    restore_video(unchanging, source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert file.metadata["title"] == "A clip" and file.chapters()[0]["metadata"]["title"] == "I"
        assert [bytes(packet) for packet in file.demux(subtitles=0) if packet.size] == [b"Hello"]
    done = restore_video(unchanging, source, tmp_path / "out.mp4")
    assert done.changed == ["stream 1 (subtitle, subrip) is left out"]


@pytest.mark.filterwarnings("ignore:unet is not trained")
def test_what_does_not_move_stays_still(restorer, tmp_path):
    source = write(tmp_path / "still.mkv", pictures(moving=False), codec="ffv1", pixels="yuv444p")
    restore_video(restorer, source, tmp_path / "out.mkv", **EXACT, part=3)
    restored = rgb(tmp_path / "out.mkv")
    assert (restored == restored[0]).all() and (restored[0] != rgb(source)[0]).any()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("condition", [0, 8])
def test_an_interrupted_run_goes_on(condition, tmp_path, monkeypatch):
    restorer = Restorer(network(condition=condition), device="cpu", backend="eager")
    source = write(tmp_path / "clip.mp4", sound="aac")
    at_once, target = tmp_path / "at_once.mp4", tmp_path / "out.mp4"
    restore_video(restorer, source, at_once, part=3)
    restore, calls = Restorer.restore, []

    def counted(self, *arguments):
        if len(calls) == 7:
            raise Interrupted
        calls.append(1)
        return restore(self, *arguments)

    monkeypatch.setattr(Restorer, "restore", counted)
    with pytest.raises(Interrupted):
        restore_video(restorer, source, target, part=3)
    assert not target.exists() and len(list((tmp_path / "out.mp4.parts").iterdir())) == 2
    (tmp_path / "out.mp4.parts" / "000001.safetensors").write_bytes(b"cut off")  # such a part is made again
    calls.clear()
    told = []
    restore_video(restorer, source, target, part=3, progress=lambda *numbers: told.append(numbers))
    assert len(calls) == FRAMES - 3 and told[0] == (3, FRAMES) and told[-1] == (FRAMES, FRAMES)
    assert target.read_bytes() == at_once.read_bytes()
    assert not (tmp_path / "out.mp4.parts").exists()


def test_parts_of_other_settings_are_not_taken(restorer, tmp_path, monkeypatch):
    source, target = write(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    restore, calls = Restorer.restore, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise Interrupted
        return restore(self, *arguments)

    monkeypatch.setattr(Restorer, "restore", counted)
    with pytest.raises(Interrupted):
        restore_video(restorer, source, target, part=3)
    restore_video(restorer, source, target, part=3, crf=30)
    assert len(calls) == 5 + FRAMES


def test_few_frames_are_in_memory(unchanging, tmp_path, monkeypatch):
    held, most = [0], [0]
    as_picture, encode, restore = restoring.as_picture, restoring._Writer.encode, unchanging.restore

    def read(image):
        held[0] += 1
        return as_picture(image)

    def restored(*arguments):
        most.append(held[0])
        return restore(*arguments)

    def written(*arguments):
        encode(*arguments)
        held[0] -= 1

    monkeypatch.setattr(restoring, "as_picture", read)
    monkeypatch.setattr(restoring._Writer, "encode", written)
    monkeypatch.setattr(unchanging, "restore", restored)
    source = write(tmp_path / "long.mkv", pictures(40), codec="ffv1")
    restore_video(unchanging, source, tmp_path / "out.mkv", **EXACT, part=7)
    # read ahead (3), in hand (1), on its way to the encoder (2 and 1); what is counted in two threads may miss one
    assert max(most) <= 8 and held[0] == 0


@pytest.mark.filterwarnings("ignore:unet is not trained")
def test_noise_that_comes_and_goes_flickers_less(tmp_path):
    """Of frames with and without noise in turn, what the network is told differs less, and so do its results."""
    rng, clean = np.random.default_rng(0), pictures(moving=False)
    noisy = [np.clip(p + rng.normal(0, 40 * (i % 2), p.shape), 0, 255).astype(np.uint8) for i, p in enumerate(clean)]
    source = write(tmp_path / "clip.mkv", noisy, codec="ffv1", pixels="yuv444p")
    restorer, jumps, flicker = Restorer(network(condition=8), device="cpu", backend="eager"), {}, {}
    torch.nn.init.normal_(restorer.unet.condition.embed.weight, std=2)
    restore, still, seen = restorer.restore, torch.from_numpy(clean[0]).permute(2, 0, 1)[None], []

    def restored_still(pixels, keep, known):
        seen.append(known)
        return restore(still.expand_as(pixels), keep, known)  # always the same: what differs is what it is told

    restorer.restore = restored_still
    for weight in (0.0, 0.9):
        seen.clear()
        restore_video(restorer, source, tmp_path / f"out{weight}.mkv", **EXACT, steady=weight)
        restored = rgb(tmp_path / f"out{weight}.mkv").astype(int)
        flicker[weight] = np.abs(np.diff(restored, axis=0)).mean()
        jumps[weight] = float(torch.cat(seen).diff(dim=0).abs().mean())
    assert flicker[0.0] > 0.5  # of 255
    assert jumps[0.9] < 0.3 * jumps[0.0] and flicker[0.9] < 0.5 * flicker[0.0]


def test_what_can_be_read_of_a_cut_file_is_written(checkpoint, tmp_path, capsys):
    whole = write(tmp_path / "whole.mkv", pictures(30), sound="libopus", options={"g": "5"}).read_bytes()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "clips" / "none.mp4").write_bytes(b"no video")
    Image.fromarray(pictures()[0]).save(tmp_path / "clips" / "photo.png")
    write(tmp_path / "clips" / "good.mp4")
    command = ["restore", tmp_path / "clips", tmp_path / "out", "--checkpoint", checkpoint, "--device", "cpu"]
    assert main(list(map(str, [*command, "--steps", "1", "--compare"]))) == 1
    told = capsys.readouterr()
    assert "none.mp4" in told.err and "cut.mkv, in part" in told.err and "s at the end" in told.err
    assert "1 of 1 images" in told.out and "2 of 3 videos" in told.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cut.mkv", "good.mp4", "photo.png", "photo_compare.png",
    ]  # fmt: skip
    assert 0 < len(times(tmp_path / "out" / "cut.mkv")) < 30
    assert main(list(map(str, [*command, "--steps", "1"]))) == 1  # what failed is tried again, the rest is there
    assert "3 of 4 are there already" in capsys.readouterr().out


def test_the_command_writes_one_file_and_other_containers(checkpoint, tmp_path, capsys):
    source = write(tmp_path / "clip.avi", codec="mpeg4")
    rest = ["--checkpoint", checkpoint, "--device", "cpu", "--steps", "1"]
    assert main(["restore", str(source), str(tmp_path / "out") + "/", *rest]) == 0
    assert main(["restore", str(source), str(tmp_path / "one.mp4"), *rest, "--codec", "hevc"]) == 1
    assert "codec must be one that takes 48 x 32 pixels" in capsys.readouterr().err
    assert len(times(tmp_path / "out" / "clip.mkv")) == FRAMES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["clip.mp4", "out.png"], r"tell a format by \.mp4, .*, got out\.png"),
        (["clip.mp4", "out.mp4", "--codec", "vp9", "--crf", "64"], "--crf must be between 0 and 63, got 64"),
        (["clip.mp4", "out.webm", "--codec", "h264"], r"--codec must be one of vp9, av1 for .*out\.webm, got h264"),
        (["clip.mp4", "out.mkv", "--codec", "ffv1", "--crf", "3"], "--crf goes without --codec ffv1"),
        (["clip.mp4", "out.mp4", "--steady", "1"], "--steady must be at least 0 and below 1, got 1"),
        (["clip.mp4", "clip.mp4", "--force"], "OUT must not replace an input"),
    ],
)
def test_bad_usage_is_told_before_any_work(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(b"never read")
    assert main(["restore", *arguments]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_without_pyav_the_extra_is_named(checkpoint, tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["restore", str(source), str(tmp_path / "out.mp4"), "--checkpoint", checkpoint, "--device", "cpu"]) == 1
    assert "pip install 'bdg-fast[video]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "codec"), [(suffix, codec) for suffix, codecs in CONTAINERS.items() for codec in codecs]
)
def test_every_container_holds_what_it_says(suffix, codec, unchanging, tmp_path):
    source, target = write(tmp_path / "clip.mkv", pictures(5, (64, 64))), tmp_path / f"out{suffix}"
    assert restore_video(unchanging, source, target, codec=codec, batch=2, part=3).changed == []
    np.testing.assert_allclose(times(target), times(source), atol=1e-3)
    assert np.abs(rgb(source).astype(int) - rgb(target)).mean() < 4


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="other systems do not tell it")
def test_no_encoder_makes_the_process_real_time(unchanging, tmp_path, monkeypatch):
    source, before = write(tmp_path / "clip.mkv", pictures(3, (64, 64))), os.sched_getscheduler(0)
    seen = []

    class Watched(restoring.Encoder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.append({os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")})

    monkeypatch.setattr(restoring, "Encoder", Watched)
    restore_video(unchanging, source, tmp_path / "out.webm", codec="av1")
    assert seen == [{before}] and os.sched_getscheduler(0) == before


def test_alpha_is_lost_and_told(unchanging, tmp_path):
    source = write(tmp_path / "clip.mkv", codec="ffv1", pixels="yuva420p")
    done = restore_video(unchanging, source, tmp_path / "out.mkv", codec="ffv1")
    assert done.changed == ["yuva420p pixels became yuv420p"]


def test_what_is_not_ours_stays_in_the_folder_of_parts(unchanging, tmp_path):
    (tmp_path / "out.mp4.parts").mkdir()
    (tmp_path / "out.mp4.parts" / "model.safetensors").write_text("mine")
    source = write(tmp_path / "clip.mp4")
    restore_video(unchanging, source, tmp_path / "out.mp4")
    assert [path.name for path in (tmp_path / "out.mp4.parts").iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match="target must not be the source"):
        restore_video(unchanging, source, source)


def test_sound_that_a_container_cannot_hold_is_told(unchanging, tmp_path):
    source = write(tmp_path / "clip.mp4", sound="aac")
    with pytest.raises(ValueError, match=r"a \.webm file cannot hold its aac sound; write \.mkv"):
        restore_video(unchanging, source, tmp_path / "out.webm")
    with pytest.raises(ValueError, match=r"target must end in \.mp4"):
        restore_video(unchanging, source, tmp_path / "out.png")
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        restore_video(unchanging, source, tmp_path / "out.mp4", batch=0)
