"""The specification: one ``index_add`` per offset and corner, differentiated by autograd.

t(p) = l + f, l = min(floor t, levels - 2):   w_l = 1 - f, w_(l+1) = f
M_d(i, j) = sum_p w_i(p) w_j(p + d) over the pairs with both pixels valid
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..mas_glcm.reference import shifted
from ..mas_glcm.spec import Request


def forward(position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm`, whose arguments these are."""
    batch = position.shape[0]
    image = torch.arange(batch, device=position.device).view(-1, 1, 1)
    slots: list[Tensor | None] = [None] * request.slot_count
    for dy, dx, slot in request.entries:
        here, there = shifted(position, dy, dx)
        pairs: Tensor | int = here.shape[1] * here.shape[2]
        valid = torch.ones_like(here)
        if mask is not None:
            valid_here, valid_there = shifted(mask, dy, dx)
            valid = (valid_here & valid_there).to(position.dtype)
            pairs = valid.sum((1, 2))
        i, j = (side.detach().floor().clamp(max=levels - 2).to(torch.int64) for side in (here, there))
        f, g = here - i, there - j
        matrix = position.new_zeros(batch * levels * levels)
        for di, a in ((0, 1 - f), (1, f)):
            for dj, b in ((0, 1 - g), (1, g)):
                code = (image * levels + i + di) * levels + j + dj
                matrix = matrix.index_add(0, code.flatten(), (a * b * valid).flatten())
        matrix = matrix.view(batch, levels, levels)
        if normalize:
            count = torch.as_tensor(pairs, dtype=position.dtype, device=position.device).clamp(min=1)
            matrix = matrix / (count.view(-1, 1, 1) * request.slots.count(slot))
        before = slots[slot]
        slots[slot] = matrix if before is None else before + matrix
    return torch.stack([matrix for matrix in slots if matrix is not None], 1)


def backward(
    grad: Tensor, position: Tensor, mask: Tensor | None, request: Request, levels: int, normalize: bool
) -> Tensor:
    """See :func:`bdg_fast.kernels.soft_glcm.ops.soft_glcm_backward`, whose arguments these are."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = position.detach().clone().requires_grad_()
        out = forward(leaf, mask, request, levels, normalize)
        (found,) = torch.autograd.grad(out, leaf, grad.clone())
    return found
