"""Scores of a restoration: what they say of perfect, idle and harmful ones."""

import math

import pytest
import torch

from bdg_fast.evaluation.restoration import KINDS, means, score, table, versions


@pytest.fixture(scope="module")
def named(photographs):
    return [(f"{number}.png", each[:, 30:62, 20:60].float() / 255) for number, each in enumerate(photographs)]


def test_versions_are_the_clean_image_and_all_kinds_of_all_levels_in_eight_bits(named):
    found = versions(named[0][1], ("noise", "haze"), (0.0, 1.0))
    assert [(kind, level) for kind, level, _ in found] == [
        ("clean", 0.0), ("noise", 5), ("noise", 50), ("haze", 0.7), ("haze", 2.0)
    ]  # fmt: skip
    assert torch.equal(found[0][2][0], named[0][1])
    for _, _, image in found:
        torch.testing.assert_close(image * 255, (image * 255).round(), atol=1e-4, rtol=0)
    again = versions(named[0][1], KINDS)
    assert all(torch.equal(x, y) for (*_, x), (*_, y) in zip(again, versions(named[0][1], KINDS), strict=True))
    assert len(again) == 1 + 3 * len(KINDS)


def test_restoring_nothing_gains_nothing(named):
    found = score(lambda x: x, named, ("noise", "blur"))
    assert len(found) == len(named) * 7 and all(one.change == 0 for one in found)
    for one in found:
        assert one.psnr == one.psnr_degraded and one.ssim == one.ssim_degraded
    summary = means(found)
    assert summary["all"].gain == 0 and summary["all"].images == 6 * len(named)
    assert math.isinf(summary["clean"].psnr) and summary["clean"].ssim == pytest.approx(1)
    assert summary["all"].psnr == pytest.approx((summary["noise"].psnr + summary["blur"].psnr) / 2)


def test_harm_to_clean_images_shows_beside_the_mean(named):
    brighter = score(lambda x: x + 2 / 255, named, ("noise",))
    summary = means(brighter)
    assert summary["clean"].change == pytest.approx(2, abs=0.1) and 42 < summary["clean"].psnr < 43
    assert summary["noise"].gain < 0
    lines = table(brighter).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["clean", "noise", "all"]
    assert lines[2].split("|")[3].strip() == ""  # infinite before


def test_a_perfect_restoration_is_seen_by_kind(named):
    name, image = named[0]
    perfect = score(lambda x: image[None], [(name, image)], ("noise", "lowlight"))
    assert all(math.isinf(one.psnr) and one.ssim == pytest.approx(1) for one in perfect)
    assert means(perfect)["lowlight"].psnr_degraded < 25
