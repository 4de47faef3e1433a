"""The kernels of co-occurrence matrices, compiled for several GPUs: what their launchers can ask for, each once."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from .codegen_tools import TARGETS, Type, compile_kernel, resources


def _module(name: str) -> Any:
    return importlib.import_module(f"bdg_fast.kernels.{name}")


class Variant(NamedTuple):
    """A specialization of a kernel: how the launcher compiles it, and what the table calls it."""

    kernel: str  # in the table: "shared", "packed", "counts", "product"; "levels", "order", "combine"; "soft add"...
    names: tuple[str, ...]  # rows of the table that it stands for
    function: Any
    constants: dict[str, Any]
    types: dict[str, Type]  # of arguments; others are "i32"
    warps: int
    updates: float  # of a step of the loop that counts; elements, where nothing is counted

    def measure(self, target: str) -> list[dict[str, Any]]:
        """Its rows of the table."""
        signature = {
            n: "constexpr" if n in self.constants else self.types.get(n, "i32") for n in self.function.arg_names
        }
        constants = {name: value for name, value in self.constants.items() if name in signature}
        row = resources(compile_kernel(self.function, signature, constants, TARGETS[target], self.warps), self.kernel)
        row["instructions_per_update"] = round(row["loop"] * self.warps * TARGETS[target].warp_size / self.updates, 1)
        return [{"kernel": self.kernel, "target": target, "variant": name, **row} for name in self.names]


FLAGS = {"": "i32", " 64-bit": "i64"}
"""Type of counts and of positions."""
LEVELS = (8, 16, 32, 64, 105, 128, 255, 256)
"""The largest of each specialization: the classes of `triton_plan.py`, and the last number that fits a byte."""


def _long(index: str, *names: str) -> dict[str, Type]:
    return dict.fromkeys(names, index) if index == "i64" else {}


def bins(target: str) -> list[Variant]:
    """`bins_kernel` for every class of levels, of image sizes and of integers; equal ones together."""
    backend, plan = _module("mas_glcm.triton_launch"), _module("mas_glcm.triton_plan")
    gfx9 = not target.startswith("sm_")
    found: dict[str, Variant] = {}
    for way in plan.WAYS:
        if way == "product":
            continue
        place = "counts" if way == "counts" else "gfx9" if gfx9 else "ptx"
        for levels in LEVELS:
            for small in (False, True):
                config = plan.bins_config(levels, way, small, place == "gfx9")
                word, level = (4, "*u8") if levels < 256 else (2, "*i16")
                for flag, index in list(FLAGS.items())[: 1 if small else 2]:
                    wide = index == "i64"
                    constants = backend.bins_constants(config, place, way == "packed", word, wide)
                    types = {"level": level, "words": "*i32", "entries": "*i32", "starts": "*i32"}
                    types |= dict.fromkeys(("counts", "scratch", "placed", "order"), f"*{index}")
                    types |= _long(index, "plane", "pixels", "size")
                    name = f"{levels} levels{' small' * small}{flag}"
                    function = backend.triton_bins.bins_kernel
                    variant = Variant(way, (name,), function, constants, types, config.warps, config.block)
                    # the level image is read by words alone, unless pixels are listed by part
                    key = repr((way, constants, types if config.parts else {**types, "level": ""}, config.warps))
                    names = found[key].names if key in found else ()
                    found[key] = variant._replace(names=names + variant.names)
    return list(found.values())


def products() -> list[Variant]:
    """`product_kernel` for up to 32 levels, and all that its quantization can be."""
    backend, plan = _module("mas_glcm.triton_launch"), _module("mas_glcm.triton_plan")
    variants = []
    for levels, dtype, channels, source, flags in (
        (16, "u8", 1, "gray", ""),  # and less
        (32, "u8", 1, "gray", ""),
        (32, "fp32", 3, "gray", ""),
        (32, "u8", 3, "laplacian", " masked 64-bit"),
    ):
        config = plan.product_config(levels)
        constants = _quantization(levels, channels, source, flags) | {
            "P": config.block,
            "COLUMNS": config.columns,
            "SIDE": config.side,
            "PER_COLUMN": backend.PER_COLUMN,
            "THROUGH_SHARED": backend.THROUGH_SHARED,
        }
        wide = "64-bit" in flags
        types = {"image": f"*{dtype}", "mask": "*u8", "thresholds": "*i32", "columns": "*i32"}
        types |= {"counts": "*i64" if wide else "*i32", "low": "fp32", "scale": "fp32"}
        updates = config.block * config.columns * backend.PER_COLUMN
        name = _quantized(levels, dtype, channels, source, flags)
        function = backend.triton_kernels.product_kernel
        variants.append(Variant("product", (name,), function, constants, types, config.warps, updates))
    return variants


def _quantization(levels: int, channels: int, source: str, flags: str) -> dict[str, Any]:
    laplacian = source == "laplacian"
    constants = {
        "CHANNELS": channels,
        "LAPLACIAN": laplacian,
        "MASKED": "masked" in flags,
        "STEPS": (levels - 1).bit_length() if laplacian else 0,
        "ALIGNED": not laplacian and "strided" not in flags and "odd" not in flags,
        "WIDE": "64-bit" in flags,
    }
    return constants if "strided" in flags else constants | {"stride_w": 1}


def _quantized(levels: int, dtype: str, channels: int, source: str, flags: str) -> str:
    return f"{levels} levels, {'rgb' if channels == 3 else 'gray'} {dtype}, {source}{flags}"


def levels_and_order() -> list[Variant]:
    """`level_kernel` for every type and layout of images, and `order_kernel`."""
    backend = _module("mas_glcm.triton_launch")
    variants = []
    for levels, dtype, channels, source, flags in (
        *((32, dtype, 3, "gray", "") for dtype in ("u8", "u16", "fp16", "bf16", "fp32")),
        (32, "u8", 1, "gray", ""),
        (32, "fp32", 1, "gray", ""),
        (32, "u8", 1, "gray", " odd"),
        (32, "fp32", 3, "gray", " odd"),
        (32, "u8", 3, "gray", " strided"),  # channels_last
        (32, "fp32", 3, "gray", " strided masked"),
        (256, "u8", 3, "gray", " strided masked 64-bit"),
        (32, "fp32", 3, "laplacian", ""),
        (32, "u8", 1, "laplacian", " strided"),
        (256, "fp16", 1, "laplacian", " masked 64-bit"),
    ):
        constants = _quantization(levels, channels, source, flags) | {"P": backend.LEVEL_BLOCK}
        types = {"image": f"*{dtype}", "mask": "*u8", "thresholds": "*i32", "out": "*u8" if levels < 256 else "*i16"}
        types |= {"low": "fp32", "scale": "fp32"} | _long("i64" if "64-bit" in flags else "i32", "plane")
        function = backend.triton_bins.level_kernel
        name = _quantized(levels, dtype, channels, source, flags)
        variants.append(Variant("levels", (name,), function, constants, types, 4, backend.LEVEL_BLOCK))
    for levels in (128, 256):
        for flag, index in {"": "i32", " 64-bit": "i64"}.items():
            constants = {"FIELD": backend.FIELD, "WIDE": index == "i64", "P": backend.ORDER_BLOCK}
            types = {"level": "*u8" if levels < 256 else "*i16", "placed": f"*{index}", "order": f"*{index}"}
            types |= _long(index, "plane", "size")
            function = backend.triton_bins.order_kernel
            variants.append(
                Variant("order", (f"{levels} levels{flag}",), function, constants, types, 2, backend.ORDER_BLOCK)
            )
    return variants


def combine() -> list[Variant]:
    """`combine_kernel` for every kind of result."""
    backend, plan = _module("mas_glcm.triton"), _module("mas_glcm.triton_plan")
    variants = []
    for levels in (64, 256):
        for masked, normalize, counts in (
            (False, True, "i32"),
            (True, True, "i32"),
            (False, False, "i32"),
            (False, True, "i64"),
        ):
            cells = plan.cells_for(levels)
            constants = {"MASKED": masked, "NORMALIZE": normalize, "CELLS": cells, "AHEAD": backend.AHEAD}
            types: dict[str, Type] = {"counts": f"*{counts}", "pairs": "*i64", "uses": "*i32", "starts": "*i32"}
            types |= {"totals": "*i64", "out": "*fp32" if normalize else "*i64"}
            name = f"{levels} levels, {'normalized' if normalize else 'sums'}{' masked' * masked}"
            name += " 64-bit" * (counts == "i64")
            function = backend.triton_kernels.combine_kernel
            variants.append(Variant("combine", (name,), function, constants, types, 4, cells * backend.AHEAD))
    return variants


def soft() -> list[Variant]:
    """The kernels of the differentiable matrix."""
    backend = _module("soft_glcm.triton")
    variants = []
    for dtype in ("fp32", "fp64"):
        for masked in (False, True):
            name = (f"32 levels {dtype}{' masked' * masked}",)
            constants = {"MASKED": masked, "UNIT": backend.UNIT, "P": backend.ADD_BLOCK}
            types: dict[str, Type] = {"mask": "*u8", "entries": "*i32", "sums": "*i64"}
            types |= dict.fromkeys(("position", "grads", "out"), f"*{dtype}")
            add, pull = backend.triton_kernels.add_kernel, backend.triton_kernels.pull_kernel
            variants.append(Variant("soft add", name, add, constants, types, 4, backend.ADD_BLOCK))
            constants = {"MASKED": masked, "P": backend.PULL_BLOCK}
            variants.append(Variant("soft pull", name, pull, constants, types, 4, backend.PULL_BLOCK))
    return variants


def variants(target: str) -> list[Variant]:
    """All of them that exist for a target."""
    return [*bins(target), *products(), *levels_and_order(), *combine(), *soft()]
