"""The kernels that touch each pixel once, compiled like those of `codegen.py`: instructions per element."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from bdg_fast.kernels.pixelwise.spec import FEW, LAST_RANK, MOST

from .codegen_tools import TARGETS, Type, compile_kernel, resources

STRIDES = {
    False: ("i32%", "i32%", "i32%", "1"),  # batch, channel, row, column
    True: ("i32%", "1", "i32%", "i32"),
}
WARPS = 4


class Variant(NamedTuple):
    """A specialization of the step, of the forward process, or of what draws numbers alone."""

    kernel: str  # "step", "forward", "words", "normals", "poisson"
    noise: str  # "none", "seed", "fresh"
    heads: str = ""
    dtypes: tuple[str, str] = ("fp32", "fp32")  # of images, of predictions (of the noise, in "forward")
    last: bool = False
    flat: bool = True
    wide: bool = False

    @property
    def name(self) -> str:
        """Short label."""
        flags = " channels_last" * self.last + " cropped" * (not self.flat) + " 64-bit" * self.wide
        return f"{self.heads or 'noise'} {self.dtypes[0]}/{self.dtypes[1]}, {self.noise}{flags}"


VARIANTS = (
    *(Variant("step", "none", heads) for heads in ("residual", "noise", "both")),
    Variant("step", "none", "both", last=True),
    Variant("step", "none", "residual", ("fp32", "bf16")),
    Variant("step", "none", "residual", ("bf16", "bf16"), last=True),
    Variant("step", "none", "both", flat=False),
    Variant("step", "fresh", "both"),
    Variant("step", "seed", "both"),
    Variant("step", "seed", "both", last=True),
    Variant("step", "seed", "both", ("fp16", "bf16"), flat=False, wide=True),
    Variant("forward", "seed"),
    Variant("forward", "seed", last=True),
    Variant("forward", "seed", dtypes=("bf16", "bf16")),
    Variant("forward", "given"),
    Variant("forward", "seed", last=True, flat=False, wide=True),
    Variant("words", "seed"),
    Variant("words", "uniform"),
    Variant("normals", "seed"),
    Variant("normals", "seed", "latents"),
    Variant("poisson", "given"),
    Variant("poisson", "given", heads="odd"),
)
FOLDERS = {"step": "sampler_step.triton_kernels", "forward": "forward_process.triton_kernels"}


def measure(target: str, variant: Variant) -> dict[str, Any]:
    """One row of the table."""
    module = FOLDERS.get(variant.kernel, "pixelwise.triton_draws_kernels")
    kernel = getattr(importlib.import_module(f"bdg_fast.kernels.{module}"), f"{variant.kernel}_kernel")
    common = importlib.import_module("bdg_fast.kernels.pixelwise.triton")
    block = common.LAST_PIXELS if variant.last else common.FLAT_PIXELS
    constants: dict[str, Any] = {
        "HEADS": variant.heads,
        "NOISE": variant.noise,
        "DRAW": variant.noise == "seed",
        "INDEXED": False,
        "STREAM": 0,
        "SEED": variant.noise == "seed",
        "CHANNELS": 4 if variant.heads == "latents" else 3,
        "FEW": FEW,
        "LAST_RANK": LAST_RANK,
        "MOST": MOST,
        "COMPUTE": common.tl.float32,
        "FLAT": variant.flat,
        "WIDE": variant.wide,
        "LAST": variant.last,
        "P": block,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    images, predictions = (("*" + dtype, *STRIDES[variant.last]) for dtype in variant.dtypes)
    types: dict[str, Type] = dict.fromkeys(("x_t", "x_lq", "x_0", "fresh", "out"), images)
    types |= dict.fromkeys(("predicted", "second", "noise"), predictions)
    types |= {"seeds": "*i64", "step": "*i64", "times": "*i64", "table": "*fp32"}
    if variant.kernel == "poisson":
        types |= dict.fromkeys(("mean", "normal", "out"), "*fp32")
    if variant.kernel in ("words", "normals"):
        types["out"] = "*i64" if constants.get("SEED") else "*fp32"
    odd = variant.heads == "odd"  # of no multiple of 16 numbers
    types |= {"size": "i32" if odd else "i64%" if variant.wide else "i32%", "width": "i32%"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    row = resources(compile_kernel(kernel, signature, constants, TARGETS[target], WARPS))
    threads = WARPS * TARGETS[target].warp_size
    return {
        "kernel": variant.kernel,
        "target": target,
        "variant": variant.name,
        **row,
        "instructions_per_update": round(row["loop"] * threads / (3 * block), 1),
    }
