"""A UNet's inference on the CPU by compiled loops: what the network computes, in fewer operations and passes."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.unet import CHANNELS, parts, unavailable
from .backbone import Backbone, UNetOutput, padded
from .blocks import Level, ResidualBlock, StandardizedConv2d
from .unet import UNet, _levels


class NativeUNet:
    """Evaluates a :class:`UNet`: ``native(x_t, x_lq, time) -> UNetOutput``.

    3 x 3 convolutions by Winograd's minimal filtering, norms and activations within the convolutions around them,
    linear attention that writes nothing of the image's size but its result. float32 on the CPU; differences to the
    network itself are those of rounding (docs/restoration.md). Weights are held a second time, the convolutions' in
    four times their size, and memory for images of the last size is kept until :meth:`release`.

    Example:
        >>> unet = UNet()
        >>> image = torch.rand(1, 3, 40, 60) * 2 - 1
        >>> fast = NativeUNet(unet)(image, image, torch.tensor([500.0])).residual
        >>> torch.allclose(fast, unet(image, image, torch.tensor([500.0])).residual, atol=1e-4)
        True
    """

    def __init__(self, unet: UNet, impl: str = "cpu") -> None:
        """Prepare the weights of ``unet``; where they change later, that is done again at the next call.

        Args:
            unet: folded or not.
            impl: of the parts: ``"cpu"``, compiled, or ``"reference"``, plain PyTorch.

        Raises:
            ValueError: the network, or ``impl``, is none that this takes, and why.
        """
        if impl == "cpu":
            reason = unsupported(unet, unet.stem.weight.device, unet.stem.weight.dtype)
            if reason is not None:
                raise ValueError(f"unet must be one that compiled loops can evaluate: {reason}")
        self.unet, self.impl = unet, impl
        self._parts, self._lock = parts(impl), threading.Lock()
        self._buffers, self._shape = self._parts.Buffers(), torch.Size()
        self._prepare()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made from the network."""
        return NativeUNet, (self.unet, self.impl)

    @property
    def held(self) -> int:
        """Bytes of memory for images that are kept for the next call."""
        return int(self._buffers.held)

    def release(self) -> None:
        """Free the memory that is kept for images of the last size."""
        with self._lock:
            self._buffers.clear()

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """As :meth:`UNet.forward`, without gradients; one thread at a time evaluates, others wait.

        Raises:
            ValueError: images that are not float32 ``[B, 3, H, W]`` of one shape on the CPU, or a time that is neither
                ``[1]`` nor ``[B]``.
        """
        for name, image in (("x_t", x_t), ("x_lq", x_lq)):
            if image.dtype != torch.float32 and self.impl == "cpu":
                raise ValueError(f"{name} must be float32, got {image.dtype}")
            if image.device.type != "cpu":
                raise ValueError(f"{name} must be on the CPU, got a tensor on {image.device}")
            if image.dim() != 4 or image.shape[1] != 3 or image.shape != x_t.shape:
                raise ValueError(f"{name} must be [B, 3, H, W], both of one shape, got {list(image.shape)}")
        if time.dim() != 1 or len(time) not in (1, len(x_t)):
            raise ValueError(f"time must be [1] or [B] = [{len(x_t)}], got {list(time.shape)}")
        if not x_t.numel():
            return self.unet(x_t, x_lq, time, condition)  # type: ignore[no-any-return]
        # what surrounds the call must not choose types: loops get addresses
        with self._lock, torch.no_grad(), torch.autocast("cpu", enabled=False):
            if self._state != _state(self.unet):
                self._prepare()
            condition = self.unet.told(x_lq) if condition is None else condition
            return self._forward(x_t, x_lq, time, condition)

    def _prepare(self) -> None:
        unet, make = self.unet, self._parts
        with torch.no_grad():
            self._stem = make.DirectConv(unet.stem.weight, unet.stem.bias, 1, 0)
            self._encoder = [_Level(make, level) for level in _levels(unet.encoder)]
            self._middle1, self._middle2 = _Block(make, unet.middle1), _Block(make, unet.middle2)
            self._decoder = [_Level(make, level) for level in _levels(unet.decoder)]
            self._final = _Block(make, unet.final)
            if unet.config.shared_encoder:
                self._residual_decoder = [_Level(make, level) for level in _levels(unet.residual_decoder)]
                self._residual_final = _Block(make, unet.residual_final)
        self._state = _state(unet)

    def _forward(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None) -> UNetOutput:
        unet, buffers = self.unet, self._buffers
        x = padded(torch.cat((x_t, x_lq), 1), 2 ** len(unet.encoder))
        if x.shape != self._shape:
            buffers.clear()
            self._shape = x.shape
        embedding = F.silu(unet.embedding(time[:1] if time.stride(0) == 0 else time, condition))
        x = first = self._stem(buffers, F.pad(x, (3, 3, 3, 3)).permute(0, 2, 3, 1).contiguous())
        skips: list[Tensor] = []
        for level in self._encoder:
            before = x
            x = level.block1(buffers, before, embedding)
            if before is not first:
                buffers.give(before)
            skips.append(x)
            x = level.attention(buffers, level.block2(buffers, x, embedding))
            skips.append(x)
            x = level.resampled(buffers, x)
        before = x
        x = self._middle1(buffers, before, embedding)
        attended = unet.middle_attention(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        buffers.give(before, x)
        middle = self._middle2(buffers, attended, embedding)
        features = middle.permute(0, 3, 1, 2).contiguous()
        x = self._decoded(self._decoder, middle, embedding, skips)
        found = self._finished(self._final, unet.head, x, embedding, first, x_t)
        buffers.give(first)
        if not unet.config.shared_encoder:
            buffers.give(middle)
            residual = found[:, :3] if unet.config.heads != "noise" else None
            noise = found[:, -3:] if unet.config.heads != "residual" else None
            return UNetOutput(residual, noise, features)
        x = self._decoded(self._residual_decoder, middle, embedding, [])
        buffers.give(middle)
        residual = self._finished(self._residual_final, unet.residual_head, x, embedding, None, x_t)
        return UNetOutput(residual, found, features)

    def _decoded(self, levels: list[_Level], middle: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """A decoder's result; gives the skips back, not the middle."""
        x, buffers = middle, self._buffers
        for level in levels:
            for block in (level.block1, level.block2):
                before, skip = x, skips.pop() if skips else None
                x = block(buffers, before, embedding, skip)
                buffers.give(*(image for image in (before, skip) if image is not None and image is not middle))
            before = level.attention(buffers, x)
            x = level.resampled(buffers, before)
            buffers.give(before)
        return x

    def _finished(
        self, block: _Block, head: Any, x: Tensor, embedding: Tensor, first: Tensor | None, like: Tensor
    ) -> Tensor:
        """What a head predicts; gives ``x`` back."""
        made = block(self._buffers, x, embedding, first)
        found = F.linear(made, head.weight.flatten(1), head.bias).permute(0, 3, 1, 2)
        self._buffers.give(x, made)
        return found[:, :, : like.shape[2], : like.shape[3]].contiguous()


class _Block:
    """A residual block; gives back nothing of what it is called with."""

    def __init__(self, make: Any, block: ResidualBlock) -> None:
        self.block, self.group_norm = block, make.group_norm
        self.conv1, self.conv2 = (
            make.Conv3x3(conv.standardized() if isinstance(conv, StandardizedConv2d) else conv.weight, conv.bias)
            for conv in (block.conv1, block.conv2)
        )
        shortcut = block.shortcut
        if isinstance(shortcut, torch.nn.Conv2d):
            self.epilogue = make.Epilogue(shortcut.weight.flatten(1), shortcut.bias)
        else:
            self.epilogue = make.Epilogue(None, None)

    def __call__(self, buffers: Any, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        norm1, norm2 = self.block.norm1, self.block.norm2
        scale, shift = self.block.modulation(time).chunk(2, dim=1)
        gain, offset = norm1.weight * (scale + 1), norm1.bias * (scale + 1) + shift
        first = self.conv1(buffers, x, skip)
        second = self.conv2(buffers, first.image, affine=self.group_norm(first, norm1.num_groups, gain, offset))
        buffers.give(first.image)
        affine = self.group_norm(second, norm2.num_groups, norm2.weight[None], norm2.bias[None])
        made: Tensor = self.epilogue(buffers, second.image, affine, x, skip)
        return made


class _Level:
    """A level of the encoder or a decoder."""

    def __init__(self, make: Any, level: Level) -> None:
        self.block1, self.block2 = _Block(make, level.block1), _Block(make, level.block2)
        attention, resample = level.attention, level.resample
        self.attention = make.LinearAttention(
            attention.norm.gain, attention.qkv.weight.flatten(1), attention.out.weight.flatten(1),
            attention.out.bias, attention.out_norm.gain,
        )  # fmt: skip
        self.up, self.down = level.up, resample.stride == (2, 2)
        if self.down:
            self.resample = make.DirectConv(resample.weight, resample.bias, 2, 1)
        else:
            self.resample = make.Conv3x3(resample.weight, resample.bias)

    def resampled(self, buffers: Any, x: Tensor) -> Tensor:
        """Half, double or the same size."""
        if self.down:
            return self.resample(buffers, x)  # type: ignore[no-any-return]
        return self.resample(buffers, x, up=self.up, moments=False).image  # type: ignore[no-any-return]


def unsupported(unet: Backbone, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a network cannot be evaluated by :class:`NativeUNet` on a device and in a type; None if it can."""
    if device.type != "cpu":
        return f"its compiled loops are for the CPU, not for {device.type}"
    if dtype != torch.float32:
        return f"it computes in float32, not in {str(dtype).removeprefix('torch.')}"
    if type(unet) is not UNet or any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules()):
        return "the network must be a UNet itself, without forward hooks"
    if unet.config.channels != 3:
        return f"the network must be one of pixels, and has {unet.config.channels} channels"
    if unet.stem.weight.dtype != torch.float32:
        return f"the network's weights must be float32, and are {str(unet.stem.weight.dtype).removeprefix('torch.')}"
    if unet.config.width % CHANNELS:
        return f"the network's width must be a multiple of {CHANNELS}, and is {unet.config.width}"
    return unavailable("cpu")


def _state(unet: UNet) -> tuple[tuple[int, int], ...]:
    """What changes when weights do; those of inference mode cannot."""
    return tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version) for parameter in unet.parameters()
    )
