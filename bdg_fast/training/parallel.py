"""How processes share what is trained: a copy each (DDP), or a shard of every weight each (FSDP).

Checkpoints hold whole tensors in either case, so a run may go on in the other, or in one process.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bdg_fast.ranks import Ranks

from ..models import Backbone
from .stages import Parts, StageModule

KINDS = ("ddp", "fsdp")
Forward = Callable[..., dict[str, Tensor]]
M = TypeVar("M", bound=nn.Module)


class Parallel:
    """What is trained, on its processes. One process alone has all of it, whatever ``kind``.

    Args:
        parts: with the weights to begin with, on the device; FSDP shards them in place.
        ranks: of the run.
        kind: of :data:`KINDS`.
    """

    def __init__(self, parts: Parts, ranks: Ranks, kind: str) -> None:
        """Shard the parts, if that is wanted."""
        self.parts, self.ranks = parts, ranks
        self.sharded = kind == "fsdp" and ranks.world > 1
        if self.sharded:
            self.mesh = init_device_mesh(ranks.device.type, (ranks.world,))
            for group in _groups(parts):
                fully_shard(group, mesh=self.mesh)
            # a scalar has nothing to shard: see `gradients`
            fully_shard(parts, mesh=self.mesh, ignored_params={p for p in parts.parameters() if p.ndim == 0})

    def shard(self, module: M) -> M:
        """A module that is not evaluated, sharded as the parts are, in place."""
        if self.sharded:
            for inner in module.modules():
                for name, p in list(inner.named_parameters(recurse=False)):
                    own = distribute_tensor(p.detach(), self.mesh, [Shard(0)], src_data_rank=None)
                    setattr(inner, name, nn.Parameter(own, requires_grad=p.requires_grad))
        return module

    def forward_of(self, module: StageModule) -> Forward:
        """A stage's ``forward``, after which gradients are means over all processes."""
        if self.sharded:
            return functools.partial(self.parts, module)
        return DistributedDataParallel(module) if self.ranks.world > 1 else module

    @contextlib.contextmanager
    def alone(self, forward: Forward) -> Iterator[None]:
        """Within it gradients add up in each process, and are not averaged yet."""
        with contextlib.ExitStack() as stack:
            if isinstance(forward, DistributedDataParallel):
                stack.enter_context(forward.no_sync())
            elif isinstance(self.parts, FSDPModule):
                self.parts.set_requires_gradient_sync(False)
                stack.callback(self.parts.set_requires_gradient_sync, True)
            yield

    def own(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What this process updates: the parameters, or its shards of them as plain ones in the same memory.

        Of distributed tensors an optimizer would do the bookkeeping anew in every step, tensor by tensor.
        """
        if not self.sharded:
            return dict(parameters)
        return {name: nn.Parameter(local(p.detach())) for name, p in parameters.items()}

    def gradients(self, parameters: Mapping[str, nn.Parameter], own: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Gradients of :meth:`own`, which have them then; after the last part of a step, in all processes."""
        found = {}
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                found[name] = own[name].grad = local(parameter.grad)
                if self.sharded and parameter.ndim == 0:
                    self.ranks.mean(found[name])
        return found

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Of all :meth:`gradients` of all processes together, a scalar."""
        gradients = list(gradients)
        if not self.sharded:
            return nn.utils.get_total_norm(gradients)
        shards, scalars = ([g for g in gradients if bool(g.ndim) == wanted] for wanted in (True, False))
        square = self.ranks.sum(nn.utils.get_total_norm(shards).double().square())
        return (square + nn.utils.get_total_norm(scalars).double().square()).sqrt()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of the first process; the others get none. For all processes to call."""
        found = whole(tensors)
        return {name: tensor.detach().cpu() for name, tensor in found.items()} if self.ranks.first else {}


def whole_unet(unet: Backbone) -> Backbone:
    """The network itself, or a copy with all weights where it has shards of them. For all processes to call."""
    if not any(isinstance(p, DTensor) for p in unet.parameters()):
        return unet
    own = dict(unet.named_parameters())
    filled = {id(own[name]): nn.Parameter(full, requires_grad=False) for name, full in whole(own).items()}
    return copy.deepcopy(unet, filled).eval()


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor, by one message instead of hundreds that wait for each other. For all processes to call."""
    found = dict(tensors)
    sharded = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    if not sharded:
        return found
    world = next(iter(sharded.values())).device_mesh.size()
    # each process has as many rows of a tensor as any, but for the last ones: these are filled up
    rows = {name: -(-len(tensor) // world) for name, tensor in sharded.items()}
    filled = [
        F.pad(own.flatten(), (0, rows[name] * tensor.shape[1:].numel() - own.numel()))
        for name, tensor in sharded.items()
        for own in [local(tensor)]
    ]
    sizes = [len(own) for own in filled]
    gathered = filled[0].new_empty(world * sum(sizes))
    dist.all_gather_into_tensor(gathered, torch.cat(filled))
    for (name, tensor), part in zip(sharded.items(), torch.split(gathered.view(world, -1), sizes, 1), strict=True):
        found[name] = part.reshape(world * rows[name], *tensor.shape[1:])[: len(tensor)]
    return found


def as_shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """What a process has of a tensor of the shape of ``parameter``, sharded if that is; scalars stay as they are."""
    if not isinstance(parameter, DTensor) or tensor.ndim == 0:
        return tensor
    return DTensor.from_local(
        tensor, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def shard_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole ``tensor`` that all processes have, on the device of ``parameter`` and sharded as it is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def limit(gradients: Iterable[Tensor], most: float, norm: Tensor) -> None:
    """Scale :meth:`Parallel.gradients` so that their ``norm`` is ``most``, if it is larger."""
    torch._foreach_mul_(list(gradients), (most / (norm + 1e-6)).clamp_max(1).float())


def _groups(parts: Parts) -> list[list[nn.Module]]:
    """Modules whose weights are gathered together, as the network tells.

    What is left (of a `UNet` the stem, the time, the head, and the projections) stays gathered throughout a step.
    """
    groups = [list(group) for group in parts.unet.shards()]
    return groups if parts.encoder is None else [*groups, [parts.encoder]]
