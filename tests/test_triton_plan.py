"""How the Triton backend chooses a way to count and a grid: held to bounds without a GPU."""

import importlib.util
import itertools
import json

import pytest
import torch

from bdg_fast import glcm, glcm_offsets
from bdg_fast.kernels.mas_glcm.spec import Request, make_plan
from bdg_fast.kernels.mas_glcm.triton_plan import (
    CHOICE,
    CLASSES,
    GFX9_BINS,
    PART_BINS,
    SMALL,
    WAYS,
    bins_config,
    class_of,
    launch_for,
)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

FINGERPRINT = tuple(glcm_offsets())
TARGETS = {"nvidia": ("sm_80", "sm_90", "sm_100"), "gfx9": ("gfx942",)}
WORK = [
    (1, 256, 256),
    (64, 256, 256),
    (37, 300, 501),
    (16, 1024, 1024),
    (2401, 64, 64),
    (4096, 32, 32),
    (4096, 16, 16),
    (1, 8192, 8192),
    (1, 65536, 1024),
    (3, 50, 20000),
]


def grid_of(work, levels, way, processors, offsets=FINGERPRINT):
    batch, height, width = work
    plan = make_plan(Request(offsets, (0,) * len(offsets), 1), "size")
    size = height * (-(-(width + plan.reach[1]) // 4) * 4)
    config = bins_config(levels, way, size < SMALL)
    most = max(len(group.offsets) for group in plan.groups)
    limit = (65535 if way == "packed" else 2**31 - 1) // most // config.block * config.block
    updates = sum(len(group.offsets) for group in plan.groups)
    launch = launch_for(config, levels + 1, batch, size, len(plan.groups), updates, limit, processors)
    assert launch.pixels % config.block == 0 and launch.pixels <= limit
    assert launch.splits * launch.pixels >= size > (launch.splits - 1) * launch.pixels  # each pixel, no idle program
    assert -(-len(plan.groups) // launch.blocks) <= config.groups
    return config, launch, batch * launch.splits * launch.blocks * max(config.parts, 1)


@pytest.mark.parametrize("way", ["shared", "packed"])
@pytest.mark.parametrize("levels", [8, 32, 64, 128, 256])
@pytest.mark.parametrize("work", WORK, ids=str)
def test_grids_fill_the_machine(work, levels, way):
    for processors in (20, 108, 132, 148):
        config, _, programs = grid_of(work, levels, way, processors)
        assert programs >= processors
        if work[0] * work[1] * work[2] < 1 << 21:
            continue  # a few microseconds, whatever the grid
        rounds = -(-programs // processors)
        assert programs / (rounds * processors) > 0.75  # the last programs do not run while most processors idle
        resident = min(rounds, 32 if not config.room else 228 * 256 // config.room)
        assert resident * config.warps >= 10


@pytest.mark.parametrize("way", ["shared", "packed"])
def test_one_offset_of_one_image_is_shared_by_many_programs(way):
    for work in ((1, 2048, 2048), (1, 8192, 8192)):
        _, launch, programs = grid_of(work, 32, way, 132, ((0, 1),))
        assert launch.blocks == 1 and programs >= 2 * 132


def test_bins_fit_their_processor():
    for levels, way, small, gfx9 in itertools.product(
        range(2, 257), ("shared", "packed"), (False, True), (False, True)
    ):
        config = bins_config(levels, way, small, gfx9)
        rows = config.half * (2 if way == "packed" else 1) * max(config.parts, 1)
        assert rows >= (levels if config.parts else levels + 1)
        assert config.room <= (GFX9_BINS[-1] if gfx9 else PART_BINS)
        assert config.room * 4 <= (64 if gfx9 else 48) * 1024
        assert config.parts <= 6  # `order_kernel` has six fields


@needs_triton
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_whatever_can_be_launched_is_compiled_in_the_table(target):
    from bdg_fast.kernels.mas_glcm.triton_launch import bins_constants
    from benchmarks.codegen_glcm import bins

    gfx9 = target == "gfx942"
    compiled = {
        (variant.kernel, repr(variant.constants), variant.warps, variant.types["counts"], listed and level)
        for variant in bins(target)
        for listed, level in [(variant.constants["PARTS"], variant.types["level"])]
    }
    for levels, way, small, wide in itertools.product(
        range(2, 257), ("shared", "packed", "counts"), (False, True), (False, True)
    ):
        if small and wide:
            continue
        place = "counts" if way == "counts" else "gfx9" if gfx9 else "ptx"
        config = bins_config(levels, way, small, place == "gfx9")
        word, level = (4, "*u8") if levels < 256 else (2, "*i16")
        constants = bins_constants(config, place, way == "packed", word, wide)
        counts = "*i64" if wide else "*i32"
        key = (way, repr(constants), config.warps, counts, config.parts > 0 and level)
        assert key in compiled, (levels, way, small, wide)


@needs_triton
def test_the_table_of_choices_is_what_the_generated_code_says():
    from benchmarks.codegen import BUDGETS

    budgets = json.loads(BUDGETS.read_text())
    for (family, levels), choice in CHOICE.items():
        found = {}
        for way in WAYS:
            names = {"product": f"{max(levels, 16)} levels, gray u8, gray"}
            keys = [f"{target} {way} {names.get(way, f'{levels} levels')}" for target in TARGETS[family]]
            if all(key in budgets for key in keys):
                found[way] = max(budgets[key]["instructions_per_update"] for key in keys)
        assert choice.instructions == found, (family, levels)
        assert choice.known in ("predicted", "measured")
        if choice.known == "predicted":
            assert found[choice.way] <= 1.2 * min(cost for way, cost in found.items() if way != "packed")
    assert {levels for _, levels in CHOICE} == set(CLASSES)
    assert [class_of(levels) for levels in (2, 8, 9, 33, 65, 106, 129, 256)] == [8, 8, 16, 64, 105, 128, 256, 256]


@needs_triton
@pytest.mark.parametrize("right", ["right", "wrong", "fails"])
def test_bins_that_no_test_could_run_are_tried_before_they_are_trusted(right, monkeypatch):
    from bdg_fast.kernels.mas_glcm import triton

    ways = []
    count = triton.count_bins

    def count_bins(work, bins, images, marks, counts):
        ways.append(bins.place)
        count(work, bins, images, marks, counts)
        if right == "wrong" and bins.place != "counts":
            counts[0, 0, 3, 4] += 1
        if right == "fails" and bins.place != "counts":
            raise RuntimeError("no such instruction")

    monkeypatch.setattr(triton, "family_of", lambda device: "gfx9")
    monkeypatch.setattr(triton, "TRIED", ((20, 32), (15, 256)))
    monkeypatch.setattr(triton, "count_bins", count_bins)
    triton._counts_right.cache_clear()
    images = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = glcm(images, [(0, 1), (2, -3)], levels=12, normalize=False, impl="reference")
    try:
        for repeat in range(2):
            if right == "right" or repeat:
                found = glcm(images, [(0, 1), (2, -3)], levels=12, normalize=False, impl="triton")
            else:
                with pytest.warns(
                    RuntimeWarning, match=f"shared memory {'are wrong' if right == 'wrong' else 'fail .no such'}"
                ):
                    found = glcm(images, [(0, 1), (2, -3)], levels=12, normalize=False, impl="triton")
            assert torch.equal(found, expected)
            assert ways[-1] == ("memory" if right == "right" else "counts")
            assert len(ways) == {"right": 4, "wrong": 2, "fails": 1}[right] + repeat + 1  # tried once
    finally:
        triton._counts_right.cache_clear()
