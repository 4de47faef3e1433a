"""The losses of training, numbered as in the paper: (5) to (10).

Means over elements take the place of norms, so that no loss depends on the size of images. Inputs of less than float32
are computed in float32, float64 stays.

**Several ranks.** (6) and (10) compare all images of all ranks: each rank passes its own ``[B, D]``, and
:func:`gather_features` joins them, with gradients that are summed over the ranks. So every rank holds the loss of the
joined batch, and the gradient of the *sum* of these equal losses with respect to its own features. What averages
parameters' gradients over the ranks, as ``DistributedDataParallel`` does, then has exactly the gradient of the joined
batch, as it has for (5), (7) and the first term of (9), which are means over a rank's own images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WEIGHT = 0.1
"""Lambda of (8) and (9)."""
SHORTEST = 1e-6
"""Features shorter than this are not stretched to length 1: their gradients would drown all others."""
LARGEST_SCALE = 100.0
"""Of similarities, as CLIP limits it."""


def generation_loss(
    residual: Tensor | None,
    noise: Tensor | None,
    x_0: Tensor,
    x_lq: Tensor,
    eps: Tensor,
    t: Tensor,
    table: Tensor,
) -> Tensor:
    """(5): ``mean (alpha_t (res - x_res) + beta_t^2 / B_t (eps_pred - eps))^2`` with ``x_res = x_lq - x_0``.

    The error that the published reverse step makes at ``t``. Errors of both heads can cancel, and increments are small:
    with the published schedule it is some 1e-5 of :func:`plain_generation_loss`.

    Args:
        residual, noise: what the network predicts, ``[B, 3, H, W]``; None leaves a head's term out, not both.
        x_0, x_lq, eps: clean images, degraded ones and the noise in ``x_t``, of the same shape.
        t: int64 ``[B]``, rows of ``table``.
        table: ``[T, 3]`` of `ResidualSchedule.increment_table` of the stage (in generation its ``alpha_t`` are 0).

    Returns:
        A scalar, float32 (float64 if a prediction or ``x_0`` is).

    Raises:
        ValueError: a shape or type that does not fit, by name. IndexError: ``t`` beyond the table, on the CPU.
    """
    parts = _errors(residual, noise, x_0, x_lq, eps)
    if t.shape != x_0.shape[:1] or t.dtype != torch.int64:
        raise ValueError(f"t must be int64 [{len(x_0)}], got {t.dtype} {list(t.shape)}")
    if table.ndim != 2 or table.shape[1] != 3 or not table.is_floating_point():
        raise ValueError(f"table must be floating [T, 3], got {table.dtype} {list(table.shape)}")
    rows = table.index_select(0, t)  # refuses negative times, which indexing would count from the end
    step = sum(rows[:, i].to(error.dtype).view(-1, 1, 1, 1) * error for i, error in parts)
    assert isinstance(step, Tensor)
    return step.square().mean()


def plain_generation_loss(
    residual: Tensor | None, noise: Tensor | None, x_0: Tensor, x_lq: Tensor, eps: Tensor
) -> Tensor:
    """The variant of (5) that weighs all times alike: ``mean (res - x_res)^2 + mean (eps_pred - eps)^2``.

    Arguments, result and errors are those of :func:`generation_loss`.
    """
    terms = [error.square().mean() for _, error in _errors(residual, noise, x_0, x_lq, eps)]
    return terms[0] + terms[1] if len(terms) > 1 else terms[0]


class Temperature(nn.Module):
    """The learned scale of similarities, ``1 / temperature``, between 0 and :data:`LARGEST_SCALE`.

    A scaled sigmoid of one parameter: unlike a value that is cut off, it always has a gradient that leads back.

    Raises:
        ValueError: ``initial`` is not above ``1 / LARGEST_SCALE``.
    """

    def __init__(self, initial: float = 0.07) -> None:
        """Begin with temperature ``initial``."""
        super().__init__()
        if not 1 / LARGEST_SCALE < initial < math.inf:
            raise ValueError(f"initial must be above {1 / LARGEST_SCALE}, got {initial}")
        share = 1 / initial / LARGEST_SCALE
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        return LARGEST_SCALE * self.logit.sigmoid()


def bridging_loss(f_mas: Tensor, f_diff: Tensor, scale: Tensor | float) -> Tensor:
    """(6): ``1/2 [H(y_m2d, p_m2d) + H(y_d2m, p_d2m)]``, matrices and inner features told apart by each other.

    ``p_m2d(j | i) = softmax_j scale cos(f_mas^i, f_diff^j)``, ``p_d2m`` likewise the other way, over the images of all
    ranks; ``y`` is the matching pair, ``i = j``. 0 for one image; ``log N`` where all features agree.

    Args:
        f_mas, f_diff: ``[B, D]`` of any length, ``B`` the same on every rank.
        scale: ``1 / temperature``, a number or a scalar tensor (:class:`Temperature`).

    Returns:
        A scalar, float32 (float64 if both features are).

    Raises:
        ValueError: features that are not floating ``[B, D]``, or differ in shape, by name.
    """
    _check_features("f_mas", f_mas)
    _check_features("f_diff", f_diff)
    if f_mas.shape != f_diff.shape:
        raise ValueError(f"f_diff must have the shape of f_mas, {list(f_mas.shape)}, got {list(f_diff.shape)}")
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"scale must be one number, got shape {list(scale.shape)}")
    with torch.autocast(f_mas.device.type, enabled=False):
        mas, diff = gather_features(_unit(f_mas)), gather_features(_unit(f_diff))
        if mas.dtype != diff.dtype:
            mas, diff = mas.float(), diff.float()
        logits = mas @ diff.mT * (scale.to(mas.dtype).reshape(()) if isinstance(scale, Tensor) else scale)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """(7): cross entropy of the classes of degradation, or of states of a chain of them, ``mean -log p(class)``.

    Args:
        logits: ``[B, K]``.
        classes: int64 ``[B]`` in 0..K-1.

    Returns:
        A scalar, float32 (float64 if ``logits`` is).

    Raises:
        ValueError: a bad shape or type, by name. IndexError: a class beyond K, on the CPU.
    """
    _check_features("logits", logits)
    if classes.shape != logits.shape[:1] or classes.dtype != torch.int64:
        raise ValueError(f"classes must be int64 [{len(logits)}], got {classes.dtype} {list(classes.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(_wide(logits), classes, ignore_index=-1 << 62)  # no class is left out silently


def bridging_stage_loss(generation: Tensor, bridging: Tensor, classification: Tensor, weight: float = WEIGHT) -> Tensor:
    """(8): ``L_gen + lambda (L_bridge + L_deg_cls)``.

    Args:
        generation: (5), either variant; a scalar, like the others.
        bridging, classification: (6) and (7).
        weight: lambda.

    Raises:
        ValueError: a term is not a scalar, or ``weight`` is negative.
    """
    _check_terms(weight, generation=generation, bridging=bridging, classification=classification)
    return generation + weight * (bridging + classification)


def reconstruction_loss(restored: Tensor, x_0: Tensor) -> Tensor:
    """The first term of (9): ``mean |x_0_pred - x_0|``.

    Args:
        restored, x_0: predicted (``x_lq - res``) and clean images, ``[B, 3, H, W]``.

    Returns:
        A scalar, float32 (float64 if images are).

    Raises:
        ValueError: images that are not floating, are empty, or differ in shape, by name.
    """
    _check_images("x_0", x_0)
    _check_images("restored", restored, x_0)
    return (_wide(restored) - _wide(x_0)).abs().mean()


def restoration_loss(
    restored: Tensor, x_0: Tensor, bridging: Tensor, negative: Tensor, weight: float = WEIGHT
) -> Tensor:
    """(9): ``mean |x_0_pred - x_0| + lambda L_bridge + L_neg``.

    Args:
        restored, x_0: of :func:`reconstruction_loss`.
        bridging, negative: (6) and (10), scalars.
        weight: lambda.

    Returns:
        A scalar, float32 (float64 if images are).

    Raises:
        ValueError: shapes that differ, a term that is not a scalar, or a negative ``weight``.
    """
    _check_terms(weight, bridging=bridging, negative=negative)
    return reconstruction_loss(restored, x_0) + weight * bridging + negative


def negative_loss(f_mas: Tensor) -> Tensor:
    """(10): ``mean over i != j of 1 + cos(f^i, f^j)``: no two images of all ranks' batch are degraded alike.

    Least, ``(N - 2) / (N - 1)``, where the ``N`` unit vectors cancel. Their sum tells all cosines at once,
    ``sum over i != j of cos = |sum f|^2 - sum |f|^2``, so the cost is linear in ``N``.

    Args:
        f_mas: ``[B, D]`` of any length, ``B`` the same on every rank.

    Returns:
        A scalar, float32 (float64 if ``f_mas`` is); 0 for one image, which has no pair.

    Raises:
        ValueError: ``f_mas`` is not floating ``[B, D]``.
    """
    _check_features("f_mas", f_mas)
    with torch.autocast(f_mas.device.type, enabled=False):
        features = gather_features(_unit(f_mas))
        number = len(features)
        if number == 1:
            return features.sum() * 0
        cosines = features.sum(0).square().sum() - features.square().sum()
        return 1 + cosines / (number * (number - 1))


def frequency_loss(restored: Tensor, x_0: Tensor) -> Tensor:
    """``mean |F(x_0_pred) - F(x_0)|`` over real and imaginary parts of the orthonormal Fourier transform.

    Not of the paper. An error of brightness is in few coefficients, one of texture in all: beside (9)'s L1, where dark
    and hazy images drown the others, it has noise and rain be learned too. After Cho 2021 (arXiv 2108.05054, eq. 6).

    Args:
        restored, x_0: floating ``[B, C, H, W]`` in [-1, 1]; computed in float32 at least.

    Raises:
        ValueError: images that are not floating, are empty, or differ in shape, by name.
    """
    _check_images("restored", restored)
    _check_images("x_0", x_0, restored)
    return torch.view_as_real(torch.fft.rfft2(_wide(restored - x_0), norm="ortho")).abs().mean()


def gather_features(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks; ``x`` itself where there is one rank.

    The gradient of a rank's rows is the sum of what all ranks' losses say about them (see the module's docstring).

    Args:
        x: ``[B, ...]``, of the same shape and type on every rank.

    Returns:
        ``[ranks B, ...]``.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.narrow(0, ctx.rows * dist.get_rank(), ctx.rows)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_wide(x), dim=1, eps=SHORTEST)


def _errors(
    residual: Tensor | None, noise: Tensor | None, x_0: Tensor, x_lq: Tensor, eps: Tensor
) -> list[tuple[int, Tensor]]:
    """Errors of the heads that there are, with the column of the increments that weighs each."""
    if residual is None and noise is None:
        raise ValueError("residual or noise must be given, got neither")
    _check_images("x_0", x_0)
    for name, images in (("residual", residual), ("noise", noise), ("x_lq", x_lq), ("eps", eps)):
        if images is not None:
            _check_images(name, images, x_0)
    found = []
    if residual is not None:
        found.append((0, _wide(residual) - (_wide(x_lq) - _wide(x_0))))
    if noise is not None:
        found.append((1, _wide(noise) - _wide(eps)))
    return found


def _check_images(name: str, images: Tensor, like: Tensor | None = None) -> None:
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"{name} must be floating [B, C, H, W] and not empty, got {images.dtype} {list(images.shape)}")
    if like is not None and images.shape != like.shape:
        raise ValueError(f"{name} must have the shape of x_0, {list(like.shape)}, got {list(images.shape)}")


def _check_features(name: str, features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point() or features.numel() == 0:
        raise ValueError(f"{name} must be floating [B, D] and not empty, got {features.dtype} {list(features.shape)}")


def _check_terms(weight: float, **terms: Tensor) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must not be negative, got {weight}")
    for name, term in terms.items():
        if term.ndim:
            raise ValueError(f"{name} must be a scalar, got shape {list(term.shape)}")
