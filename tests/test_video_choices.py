"""What a clip is written as, when its packets are decoded, and what a network is told of its scenes."""

import itertools

import pytest
import torch

from bdg_fast.video.formats import choose
from bdg_fast.video.joining import decode_times
from bdg_fast.video.steady import Steady

pytest.importorskip("av")


def test_a_scene_begins_with_what_it_is_told_itself():
    scenes = torch.cat(
        [torch.full((3, 3, 20, 30), 40, dtype=torch.uint8), torch.full((2, 3, 20, 30), 200, dtype=torch.uint8)]
    )
    told = torch.arange(5.0)[:, None]
    found = Steady(0.5)(told, scenes)
    torch.testing.assert_close(found[:, 0], torch.tensor([0, 0.5, 1.25, 3, 3.5]))
    first = Steady(0.5)
    parts = [first(told[:2], scenes[:2]), Steady(0.5, first.state)(told[2:], scenes[2:])]
    assert torch.equal(torch.cat(parts), found)


def test_decode_times_are_rising_and_never_late():
    shown_at = [0, 90, 30, 60, 200, 120, 101]  # in the order of decoding
    decoded = decode_times(shown_at)
    assert all(a < b for a, b in itertools.pairwise(decoded))
    assert all(a <= b for a, b in zip(decoded, shown_at, strict=True))
    assert decode_times([0, 10, 20]) == [0, 10, 20] and decode_times([7]) == [7]


def test_the_encoder_follows_the_pixel_format():
    assert choose(".mp4", "yuv420p", (48, 32)) == ("h264", 17, "yuv420p")
    assert choose(".mp4", "yuvj420p", (48, 32)).pixels == "yuv420p"  # full range is told elsewhere
    assert choose(".mp4", "yuv420p12le", (64, 64)).codec == "hevc"
    assert choose(".webm", "yuv420p10le", (64, 64)).codec == "av1"
    assert choose(".mp4", "yuv420p", (47, 32)) == ("vp9", 24, "yuv420p")
    assert choose(".mov", "yuv420p", (47, 32)) == ("h264", 17, "yuv444p")  # x264 halves chroma of even sizes alone
    with pytest.raises(ValueError, match="crf of vp9 must be 0 to 63, got 64"):
        choose(".webm", "yuv420p", (48, 32), "vp9", 64)
    with pytest.raises(ValueError, match=r"codec must be one of vp9, av1 in \.webm files, got 'h264'"):
        choose(".webm", "yuv420p", (48, 32), "h264")
