"""The optimizer's groups, learning rates, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models import Backbone
from .config import Optimizer
from .config_stage import Stage
from .parallel import as_shard, local, shard_as


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this one: weights of products and convolutions, which have two dimensions or more."""
    return parameter.ndim > 1 and not name.endswith((".bias", ".gain", ".logit"))


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: Optimizer, lr: float) -> torch.optim.AdamW:
    """AdamW in two groups, with weight decay and without."""
    groups = [
        {"params": [p for name, p in parameters.items() if decays(name, p) == wanted], "weight_decay": decay}
        for wanted, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    on_gpu = any(p.device.type == "cuda" for p in parameters.values())
    fused = on_gpu if settings.fused is None else settings.fused
    first, second = settings.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=(first, second), eps=settings.eps, fused=fused
    )


def moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], own: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state, ``<parameter>/<moment>`` to a tensor, in shards where the parameters are.

    Args:
        optimizer: of ``own``.
        parameters: that are trained, by name.
        own: of each what this process updates (`parallel.Parallel.own`).
    """
    return {
        f"{name}/{key}": as_shard(value, parameters[name])
        for name, parameter in own.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    own: Mapping[str, nn.Parameter],
    saved: Mapping[str, Tensor],
) -> None:
    """Put back what :func:`moments` gave, made whole; parameters without a state stay without one.

    Raises:
        ValueError: a moment of no parameter, or of another shape.
    """
    for full, value in saved.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise ValueError(f"the optimizer's {full} {list(value.shape)} fits no parameter that is trained")
        if value.ndim:
            kept = torch.empty_like(own[name], requires_grad=False)
            kept.copy_(local(shard_as(value, parameter)))
        else:  # the count of steps lies beside the parameter where one launch updates all
            fused = optimizer.param_groups[0].get("fused")
            kept = value.clone().to(parameter.device if fused else "cpu")
        optimizer.state[own[name]][key] = kept


def learning_rate(stage: Stage, step: int) -> float:
    """Of the stage's step ``step``, from 0."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / (stage.warmup + 1)
    if stage.schedule == "constant":
        return stage.lr
    share = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.lr_end + (stage.lr - stage.lr_end) * (1 + math.cos(math.pi * share)) / 2


class Average:
    """The network with exponentially averaged weights, which is what is restored with and exported.

    Its weights may be sharded (`parallel.Parallel.shard`) as those that it follows.

    After ``n`` updates the decay is ``(1 + n) / (10 + n)``, at most ``decay``, so that the first weights are forgotten.
    """

    def __init__(self, unet: Backbone, decay: float) -> None:
        """Begin with the weights of ``unet``."""
        self.decay = decay
        self.unet = copy.deepcopy(unet).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, unet: Backbone, updates: int) -> None:
        """Move towards the weights of ``unet``, after ``updates`` others."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        mine, theirs = ([local(p.detach()) for p in each.parameters()] for each in (self.unet, unet))
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, found in zip(self.unet.buffers(), unet.buffers(), strict=True):  # statistics, where a network has any
            kept.copy_(found)
