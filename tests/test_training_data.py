"""Images of a step: positions and seeds tell everything, crops are parts of their images, and sources have names."""

import math

import pytest
import torch

from bdg_fast.data.images import bundled_photographs
from bdg_fast.training.config import Data
from bdg_fast.training.config_stage import Drawing
from bdg_fast.training.data import Pictures, degraded_pair, open_source
from training_setup import batches, pictures

CPU = torch.device("cpu")


def joined(parts):
    return [torch.cat([part[i] for part in parts]) for i in (0, 2, 3, 4)]


def test_positions_tell_everything_whatever_the_ranks_and_the_start():
    source = pictures()
    whole = joined(batches(source, 4, 4))
    resumed = joined(batches(source, 2, 4, start=2))
    assert all(torch.equal(a[8:], b) for a, b in zip(whole, resumed, strict=True))
    by_rank = [batches(source, 4, 2, rank=rank, world=2) for rank in range(2)]
    together = joined([part for step in zip(*by_rank, strict=True) for part in step])
    assert all(torch.equal(a, b) for a, b in zip(whole, together, strict=True))
    assert not torch.equal(joined(batches(source, 4, 4, seed=6))[2], whole[2])


def test_each_image_comes_once_before_any_comes_again():
    numbers = torch.cat([part.numbers for part in batches(pictures(), 7, 3)])
    for epoch in numbers.view(3, 7):
        assert sorted(epoch.tolist()) == list(range(7))
    assert len({tuple(epoch) for epoch in numbers.view(3, 7).tolist()}) == 3


def test_crops_are_parts_of_their_images_in_all_orientations():
    image = torch.arange(3 * 9 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(3, 9, 9)
    source, seen, places = Pictures([image]), set(), set()
    for part in batches(source, 60, 1, crop=8):
        (crop,) = part.clean
        turned = [crop.flip(dims) for dims in ([], [1], [2], [1, 2])]
        turned += [each.mT for each in turned]
        matches = [
            (way, y, x)
            for way, each in enumerate(turned)
            for y in range(2)
            for x in range(2)
            if torch.equal(each, image[:, y : y + 8, x : x + 8])
        ]
        assert matches
        seen.add(matches[0][0])
        places.add(matches[0][1:])
    assert seen == set(range(8)) and len(places) == 4


def test_small_images_are_continued_by_reflection():
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(3, -1, -1)
    held = Pictures([image, image], 1).held_out(7)
    assert held is not None and held.clean.shape == (1, 3, 7, 7)
    assert held.clean[0, 0, :, 0].tolist() == [0, 4, 8, 4, 0, 4, 8]
    assert held.clean[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0]


def test_sources_by_name(tmp_path):
    source = open_source(Data(held_out=3))
    held = source.held_out(64)
    assert held is not None and len(held.clean) == 3 and source.name(0) == bundled_photographs()[0].name
    folder = open_source(Data(source="folder", root=str(bundled_photographs()[0].parent)))
    assert batches(folder, 1, 2)[0].clean.shape == batches(open_source(Data()), 1, 2)[0].clean.shape
    with pytest.raises(FileNotFoundError, match="no image in folder"):
        open_source(Data(source="folder", root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^source must be one of 'photographs', 'folder', .* got 'web'"):
        Data(source="web", root="x")
    with pytest.raises(ValueError, match=r"held_out must leave an image to train on, got 11 of 11"):
        open_source(Data(held_out=11))


def test_tone_brightens_and_darkens_what_is_degraded_and_its_target_alike():
    (batch,) = batches(pictures(), 1, 6, crop=20)
    plain = degraded_pair(batch, batch.seeds, CPU, ("clean",))
    toned = degraded_pair(batch, batch.seeds, CPU, ("clean",), Drawing(tone=0.5))
    assert torch.equal(toned.clean, toned.degraded), "what is not degraded is its own target"
    byte = (toned.clean + 1) / 2 * 255
    torch.testing.assert_close(byte, byte.round(), atol=1e-3, rtol=0)
    inside = ((plain.clean + 1) / 2).clamp(0.2, 0.8) == (plain.clean + 1) / 2
    for before, after, where in zip((plain.clean + 1) / 2, (toned.clean + 1) / 2, inside, strict=True):
        gamma = after[where].log() / before[where].log()
        assert gamma.max() - gamma.min() < 0.1, "one curve for an image"
        assert math.exp(-0.5) - 0.05 < gamma.min() and gamma.max() < math.exp(0.5) + 0.05
    assert (toned.clean.mean((1, 2, 3)) > plain.clean.mean((1, 2, 3))).unique().numel() == 2, "some up and some down"
    names = ("noise", "blur", "jpeg")
    whole = degraded_pair(batch, batch.seeds, CPU, names)
    first = int(whole.classes[0])
    some = degraded_pair(batch, batch.seeds, CPU, names, Drawing(tone={names[first]: 0.5}))
    assert torch.equal(whole.classes, some.classes)
    changed = (whole.clean != some.clean).flatten(1).any(1)
    assert changed.tolist() == [kind == first for kind in whole.classes.tolist()]


def test_degraded_images_depend_on_their_seeds_alone():
    (batch,) = batches(pictures(), 1, 6, crop=20)
    names = ("noise", "blur", "jpeg")
    whole = degraded_pair(batch, batch.seeds, CPU, names)
    assert set(whole.classes.tolist()) <= {0, 1, 2} and len(set(whole.classes.tolist())) > 1
    row = degraded_pair(batch._replace(clean=batch.clean[2:3]), batch.seeds[2:3], CPU, names)
    torch.testing.assert_close(row.degraded, whole.degraded[2:3], atol=2.01 / 255, rtol=0)  # another rounding at most
    assert row.classes == whole.classes[2]
    byte = (whole.degraded + 1) / 2 * 255
    torch.testing.assert_close(byte, byte.round(), atol=1e-3, rtol=0)
    some = degraded_pair(batch, batch.seeds, CPU, names, Drawing(("jpeg",)))
    assert some.classes.tolist() == [2] * 6
    powers: tuple[float | dict[str, float], ...] = (1, 4, {"noise": 4}, {"blur": 4})
    pairs = [degraded_pair(batch, batch.seeds, CPU, ("noise",), Drawing(mild=power)) for power in powers]
    often = degraded_pair(batch, batch.seeds, CPU, names, Drawing(draws={"jpeg": 1e6}))
    assert often.classes.tolist() == [2] * 6
    assert torch.equal(degraded_pair(batch, batch.seeds, CPU, names, Drawing(draws={"jpeg": 1})).classes, whole.classes)
    harm = [(pair.degraded - pair.clean).square().mean() for pair in pairs]
    assert harm[1] < harm[0]
    assert harm[2] == harm[1] and harm[3] == harm[0]
    chain = degraded_pair(batch, batch.seeds, CPU, ("chain",))
    assert chain.classes.max() < 8
    given = batch._replace(degraded=255 - batch.clean, kinds=torch.arange(6))
    pair = degraded_pair(given, batch.seeds, CPU, names)
    torch.testing.assert_close(pair.degraded, -pair.clean)
    assert pair.classes.tolist() == list(range(6))
