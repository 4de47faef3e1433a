"""UNets of the `diffusers` library (extra: diffusers) as networks of this project."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone, BackboneConfig, UNetOutput

MODELS = ("UNet2DModel", "UNet2DConditionModel")
BYTES_PER_CHANNEL = 90
"""Peak memory of a forward a pixel in float32, by channels of the first level: 5.6 KB were measured of 64."""
OURS = ("in_channels", "out_channels")
"""Options that follow from channels and heads."""
PLAIN: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "attention_type": ("default",),
    "time_cond_proj_dim": (None,),
}
"""What options must be for those inputs that images have: other values ask for more, or for other times."""


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(BackboneConfig):
    """A UNet of `diffusers`, and what `BackboneConfig` asks of all networks.

    Attributes:
        model: ``"UNet2DModel"`` or ``"UNet2DConditionModel"``.
        options: arguments of its class as JSON has them, but for ``in_channels`` and ``out_channels``, which
            ``channels`` and ``heads`` tell.
        tokens: of the text that ``"UNet2DConditionModel"`` always reads: learnt vectors that begin at 0. There is no
            prompt to restore an image by; of one token cross-attention is a learnt bias, and at 0 it is none, so that
            nothing is there that the network did not learn of images.
        kind: ``"diffusers"``, as settings name it.
    """

    model: str = "UNet2DModel"
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 1
    kind: str = "diffusers"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, by name; names of options are checked when it is built."""
        BackboneConfig.__post_init__(self)
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(map(repr, MODELS))}, got {self.model!r}")
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        if self.kind != "diffusers":
            raise ValueError(f"kind must be 'diffusers', got {self.kind!r}")
        try:
            plain = json.loads(json.dumps(self.options))  # as it comes back from a file
        except TypeError as error:
            raise ValueError(f"options must be numbers, texts and lists of them by name: {error}") from None
        for name, value in plain.items():
            if name in OURS:
                raise ValueError(f"options.{name} must not be given: it follows from channels and heads")
            if name in PLAIN and value not in PLAIN[name]:
                raise ValueError(f"options.{name} must be {PLAIN[name][0]!r}, the one that is supported, got {value!r}")
        for name in ("down_block_types", "up_block_types"):
            odd = [each for each in plain.get(name) or () if str(each).startswith("Skip")]
            if odd:
                raise ValueError(f"options.{name} must be of blocks without skips of images, got {odd[0]!r}")
        object.__setattr__(self, "options", plain)


class DiffusersUNet(Backbone):
    """A UNet of `diffusers`: images joined go in, ``heads`` come out, and features of its middle block.

    Its blocks are called one by one, so that features need no hook (which `torch.compile` and sharding would meet).

    Example:
        >>> shape = {"block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        ...     "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}  # doctest: +SKIP
        >>> unet = DiffusersUNet(DiffusersConfig(options=shape))  # doctest: +SKIP
    """

    config_class = DiffusersConfig
    one_time = True
    config: DiffusersConfig

    def __init__(self, config: DiffusersConfig | None = None) -> None:
        """A network of random weights; :meth:`from_diffusers` takes trained ones.

        Raises:
            ImportError: `diffusers` is not installed. ValueError: an option that the class does not have or take.
        """
        super().__init__()
        self.config = config = config or DiffusersConfig()
        model = _class(config.model)
        known = list(inspect.signature(model.__init__).parameters)[1:]
        for name in config.options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"options.{name} is no option of {config.model}" + (f"; did you mean {near[0]}?" if near else "")
                )
        heads = 2 if config.heads == "both" else 1
        try:
            self.net: Any = model(
                in_channels=2 * config.channels, out_channels=heads * config.channels, **config.options
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"options must be what {config.model} takes, got {config.options}: {error}") from error
        shape = self.net.config
        self.text: nn.Parameter | None = None
        if config.model == "UNet2DConditionModel" and not isinstance(shape.cross_attention_dim, int):
            raise ValueError(
                f"options.cross_attention_dim must be one width for all blocks, got {shape.cross_attention_dim}"
            )
        if any(getattr(block, "has_cross_attention", False) for block in self._blocks()):
            self.text = nn.Parameter(torch.zeros(1, config.tokens, shape.cross_attention_dim))
        widths = shape.block_out_channels
        self.feature_channels, self.multiple = widths[-1], 2 ** (len(widths) - 1)
        self.bytes_per_pixel = BYTES_PER_CHANNEL * widths[0]

    @classmethod
    def from_diffusers(
        cls,
        path: str | Path,
        *,
        heads: str = "residual",
        subfolder: str | None = None,
        hub: dict[str, Any] | None = None,
        **settings: Any,
    ) -> DiffusersUNet:
        """Begin with the weights of a UNet that `diffusers` has written, of safetensors alone.

        Its first convolution gets further channels for the degraded image, of zeros. Where ``heads`` has noise, its
        last one predicts noise as it did; what predicts the residual begins at 0, at ``x_0 = x_lq``.

        Args:
            path: a folder, or a name on the Hugging Face hub; of a whole pipeline with ``subfolder="unet"``.
            heads: what is predicted.
            subfolder: below ``path``.
            hub: further arguments of ``from_pretrained`` of `diffusers`, ``{"variant": "fp16"}`` for example.
            settings: of `DiffusersConfig`.

        Raises:
            FileNotFoundError: no UNet, or none in safetensors, is there. ValueError: it is one that is not supported.
        """
        more = {**(hub or {}), **({"subfolder": subfolder} if subfolder else {})}
        try:
            found = dict(_class("UNet2DModel").load_config(str(path), **more))
        except OSError as error:
            raise FileNotFoundError(f"no UNet of diffusers at {str(path)!r}: {_first(error)}") from None
        name = str(found.get("_class_name"))
        if name not in MODELS:
            raise ValueError(f"{path} must hold one of {', '.join(MODELS)}, and holds {name}")
        model = _class(name)
        try:
            source, info = model.from_pretrained(
                str(path), use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True, **more
            )
        except OSError as error:
            raise FileNotFoundError(f"no weights in safetensors at {str(path)!r}: {_first(error)}") from None
        if odd := [*info.get("missing_keys", ()), *info.get("unexpected_keys", ()), *info.get("mismatched_keys", ())]:
            raise ValueError(f"{path} has weights that do not fit its configuration: {len(odd)} keys, {odd[0]} first")
        came, left = source.conv_in.in_channels, source.conv_out.out_channels
        channels = left if came == 2 * left else came
        if left not in (channels, 2 * channels):  # as many again tell a variance
            raise ValueError(f"{path} must map C channels, or 2 C, to C, and maps {came} to {left}")
        known = set(inspect.signature(model.__init__).parameters) - set(OURS)
        options = {key: value for key, value in source.config.items() if key in known}  # null is no default
        config = DiffusersConfig(heads=heads, channels=channels, model=name, options=options, **settings)
        network = cls(config)
        weights, own = source.state_dict(), network.net.state_dict()
        first = torch.zeros_like(own["conv_in.weight"])
        first[:, :came] = weights["conv_in.weight"]
        weights["conv_in.weight"] = first
        for key in ("conv_out.weight", "conv_out.bias"):
            last = torch.zeros_like(own[key])
            if heads != "residual":
                last[-channels:] = weights[key][:channels]
            weights[key] = last
        network.net.load_state_dict(weights)
        return network.eval()

    def evaluate(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """See :meth:`Backbone.evaluate`."""
        net = self.net
        embedding = net.time_embedding(net.time_proj(time).to(x.dtype))
        if getattr(net, "time_embed_act", None) is not None:
            embedding = net.time_embed_act(embedding)
        text = None if self.text is None else self.text.expand(len(x), -1, -1)
        x = net.conv_in(x)
        skips = [x]
        for block in net.down_blocks:
            x, made = block(hidden_states=x, temb=embedding, **_reading(block, text))
            skips += made
        if net.mid_block is not None:
            x = net.mid_block(x, embedding, **_reading(net.mid_block, text))
        features = x
        for block in net.up_blocks:
            count = len(block.resnets)
            taken, skips = tuple(skips[-count:]), skips[:-count]
            x = block(hidden_states=x, temb=embedding, res_hidden_states_tuple=taken, **_reading(block, text))
        if net.conv_norm_out is not None:
            x = net.conv_act(net.conv_norm_out(x))
        found, channels, heads = net.conv_out(x), self.config.channels, self.config.heads
        residual = found[:, :channels] if heads != "noise" else None
        noise = found[:, -channels:] if heads != "residual" else None
        return UNetOutput(residual, noise, features)

    def last_layers(self) -> Sequence[nn.Module]:
        """The last convolution."""
        return [self.net.conv_out]

    def shards(self) -> Sequence[Sequence[nn.Module]]:
        """Its blocks, each alone."""
        return [[block] for block in self._blocks()]

    def _blocks(self) -> list[nn.Module]:
        middle = [] if self.net.mid_block is None else [self.net.mid_block]
        return [*self.net.down_blocks, *middle, *self.net.up_blocks]


def _reading(block: nn.Module, text: Tensor | None) -> dict[str, Tensor | None]:
    """What a block that reads text is given besides."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def _class(name: str) -> Any:
    """A class of `diffusers`."""
    try:
        import diffusers
    except ImportError:
        raise ImportError(
            "diffusers is not installed, whose UNets were asked for: pip install 'bdg-fast[diffusers]'"
        ) from None
    return getattr(diffusers, name)


def _first(error: Exception) -> str:
    """The first line of its text."""
    return next(iter(str(error).splitlines()), type(error).__name__)
