"""How large images are cut into tiles."""

import itertools

import pytest

from bdg_fast.tiles import spans


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize(("tile", "overlap"), [(1024, 64), (200, 64), (150, 16)])
def test_tiles_share_little_more_than_they_must(tile, overlap, step):
    for size in range(tile + 1, 4 * tile, 31):
        found = spans(size, tile, overlap, step)
        side = found[0][1]
        assert found[-1][1] == size and side <= tile
        assert all(after[0] <= before[1] - overlap for before, after in itertools.pairwise(found))
        # what must be computed twice, and what rounding adds
        assert side * len(found) < size + (overlap + step) * len(found)


def test_an_image_a_little_larger_than_a_tile_is_halved():
    assert spans(1025, 1024, 64, 16) == [(0, 560), (465, 1025)]
    assert spans(1024, 1024, 64, 16) == [(0, 1024)]


def test_tiles_cover_everything_evenly():
    for size in (1, 160, 161, 255, 256, 257, 1000):
        found = spans(size, 160, 64, 16)
        assert found[0][0] == 0 and found[-1][1] == size
        (side,) = {end - begin for begin, end in found}
        assert side == size <= 160 or (side <= 160 and side % 16 == 0)
        assert all(after[0] <= before[1] - 64 for before, after in itertools.pairwise(found))
    assert spans(236, 150, 64, 16) == [(0, 150), (86, 236)]  # no multiple of 16 is large enough
