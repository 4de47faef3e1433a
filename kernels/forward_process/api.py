"""Public function: named errors for bad input, then the registered ops."""

from __future__ import annotations

from torch import Tensor

from ..mas_glcm.checks import check_choice
from ..pixelwise.checks import check_images, check_per_image, check_table, refuse_gradients
from . import ops


def forward_process(
    x_0: Tensor,
    x_lq: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    seed: Tensor | None = None,
    noise: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Noisy images ``x_t = x_0 + A_t (x_lq - x_0) + B_t eps - D_t x_lq`` and their noise ``eps``, in one launch.

    Images are ``[B, C, H, W]`` of any strides, each float16, bfloat16, float32 or float64; arithmetic is in float32, or
    in float64 if one of them is. Triton's kernel is for three channels, the reference for any (latents). First and
    higher derivatives reach ``x_0``, ``x_lq`` and a given ``noise``.

    Args:
        x_0, x_lq: clean and degraded images.
        t: int64 ``[B]``, a row of ``table`` for each image.
        table: float32 or float64 ``[T, 3]`` of A, B and D (`ResidualSchedule.forward_table`).
        seed: int64 ``[B]``: draw ``eps`` by Philox from the image's seed and size alone. Other noise than
            :func:`sampler_step` draws from the same seed.
        noise: ``eps`` instead, ``[B, C, H, W]``.
        impl: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``x_t`` like ``x_0``, and the noise: what was given, or new and like ``x_0``. Noise that is drawn is rounded to
        that type first, so that both belong together.

    Raises:
        TypeError, ValueError: a bad argument, by name. IndexError: ``t`` beyond the table, from the reference on the
        CPU; on a GPU only the device knows, and that image is NaN. RuntimeError: ``table`` requires a gradient, or
        ``impl`` cannot run here.
    """
    check_choice("impl", impl, ops.IMPLS)
    check_images("x_0", x_0)
    check_images("x_lq", x_lq, x_0)
    check_per_image("t", t, x_0)
    check_table(table, 3, x_0)
    refuse_gradients("forward_process", "table", table)
    if (seed is None) == (noise is None):
        raise ValueError(f"seed or noise must be given, one of them, got {'neither' if seed is None else 'both'}")
    if noise is not None:
        check_images("noise", noise, x_0)
        found: Tensor = ops.forward_process(x_0, x_lq, t, table, noise, impl)
        return found, noise
    assert seed is not None
    check_per_image("seed", seed, x_0)
    x_t, drawn = ops.forward_process_drawn(x_0, x_lq, t, table, seed, impl)
    return x_t, drawn
