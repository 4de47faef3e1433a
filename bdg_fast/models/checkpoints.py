"""Checkpoints: our own (safetensors, and a network's kind and configuration), and those published of DiffUIR and RDDM.

One key map serves both: official names are rewritten by :data:`RENAMES`, in order. Only safetensors, and ``.pt`` files
by ``weights_only=True``, are ever read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from ..files import write_atomically
from .backbone import Backbone, BackboneConfig
from .kinds import KINDS, kind_of
from .unet import UNet, UNetConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CONFIG_KEY = "bdg_fast"
"""Of the configuration in the header of the weights, for a file that has lost its folder."""
PREFIX = re.compile(r"^(ema_model|online_model|module|model|_orig_mod)\.")
IGNORED = re.compile(
    r"^(initted|step|(alphas|betas2?|delta)(_cumsum)?|one_minus_alphas_cumsum|posterior_\w+)$"
    r"|(^|\.)total_(ops|params)$"
)
"""Schedule buffers and counters that official files hold beside the weights."""
RENAMES = (
    (r"^init_conv\.", "stem."),
    (r"^time_mlp\.1\.", "time.linear1."),
    (r"^time_mlp\.3\.", "time.linear2."),
    (r"^downs\.", "encoder."),
    (r"^ups_no_skip\.", "residual_decoder."),
    (r"^ups\.", "decoder."),
    (r"^mid_block([12])\.", r"middle\1."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^final_res_block_1\.", "residual_final."),
    (r"^final_conv_1\.", "residual_head."),
    (r"^final_res_block(_2)?\.", "final."),
    (r"^final_conv(_2)?\.", "head."),
    (r"coder\.(\d+)\.0\.", r"coder.\1.block1."),
    (r"coder\.(\d+)\.1\.", r"coder.\1.block2."),
    (r"coder\.(\d+)\.2\.", r"coder.\1.attention."),
    (r"coder\.(\d+)\.3\.(1\.)?", r"coder.\1.resample."),
    (r"\.fn\.norm\.g$", ".norm.gain"),
    (r"\.fn\.fn\.to_qkv\.", ".qkv."),
    (r"\.fn\.fn\.to_out\.1\.g$", ".out_norm.gain"),
    (r"\.fn\.fn\.to_out\.(0\.)?", ".out."),
    (r"\.mlp\.1\.", ".modulation."),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".norm\1."),
    (r"\.res_conv\.", ".shortcut."),
)
"""Official name to ours, all that match applied in turn."""


B = TypeVar("B", bound=Backbone)


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; the message names the file and what is wrong with it."""


def our_name(official: str) -> str:
    """The name of a weight in :class:`UNet`, from the one in DiffUIR or RDDM without its prefixes."""
    name = official
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


@overload
def load_backbone(path: str | os.PathLike[str], backbone: None = None, **hub: Any) -> Backbone: ...


@overload
def load_backbone(path: str | os.PathLike[str], backbone: type[B], **hub: Any) -> B: ...


def load_backbone(path: str | os.PathLike[str], backbone: type[Backbone] | None = None, **hub: Any) -> Backbone:
    """A network in evaluation mode, of any kind, from what ``save_pretrained`` wrote; `UNet`'s as :func:`load_unet`.

    Code that a checkpoint names is never imported: the class of a kind that is not ours is given, as ``backbone``.

    Args:
        path: a folder, its ``model.safetensors`` alone, or the name of such a folder on the Hugging Face hub.
        backbone: the class of the network; default: ours that the checkpoint names.
        hub: arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is none of these, of another class than
            ``backbone``, or of one that must be given. TypeError: options of the hub for a local path.
    """
    path = _found(path, **hub)
    content, told = _load_folder(path) if path.is_dir() else _load_file(path)
    if told is None:
        if backbone is None or backbone is UNet:
            return _official(content, path, None)
        raise CheckpointError(f"{path} holds weights but no configuration of a {backbone.__name__}")
    kind, values = told
    if backbone is None:
        if kind not in KINDS:
            raise CheckpointError(
                f"{path} is of a network {kind!r}, which is not ours, and no code is imported because a file names it: "
                "give the class, backbone=Class (bdg-fast restore --backbone package.module:Class)"
            )
        backbone = KINDS[kind]
    elif kind != (own := kind_of(backbone)) and (own in KINDS or not issubclass(backbone, KINDS.get(kind, Backbone))):
        # a class of one's own may have been renamed, or be made of ours that is named
        raise CheckpointError(f"{path} is of a network {kind!r}, not of {own!r}")
    return _filled(backbone, _config(backbone, values, path), content, path)


def load_unet(path: str | os.PathLike[str], *, config: UNetConfig | None = None, **hub: Any) -> UNet:
    """A UNet in evaluation mode, from one of:

    - a folder that :meth:`UNet.save_pretrained` wrote, its ``model.safetensors`` alone, or the name of such a folder on
      the Hugging Face hub (``hub`` are arguments of ``huggingface_hub.snapshot_download``),
    - an official DiffUIR or RDDM file with one UNet (``.pt`` or ``.safetensors``: a training checkpoint, whose averaged
      weights are preferred, or a bare state dict). Its shape is read off the weights, its family off the schedule,
    - a state dict of :class:`UNet` with its ``config``, which replaces what an official file tells too.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is none of these; keys are named.
        TypeError: options of the hub for a local path. ValueError: ``config`` for what has its own.
    """
    if config is None:
        return load_backbone(path, UNet, **hub)
    path = _found(path, **hub)
    content, told = _load_folder(path) if path.is_dir() else _load_file(path)
    if told is not None:
        raise ValueError(f"config must not be given for {str(path)!r}, which has its own")
    return _official(content, path, config)


def _official(content: object, path: Path, config: UNetConfig | None) -> UNet:
    official, tables = official_weights(content, path)
    weights = {our_name(name): tensor for name, tensor in official.items()}
    if config is None:
        if "stem.weight" in official:
            raise CheckpointError(f"{path} holds weights of a UNet but no configuration: give config=UNetConfig(...)")
        config = infer_config(weights, path, tables)
    return _filled(UNet, config, weights, path)


def _found(path: str | os.PathLike[str], **hub: Any) -> Path:
    path = Path(path)
    if not path.exists():
        if path.suffix in (".pt", ".pth", ".safetensors") or len(path.parts) != 2:
            raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give a folder, a file, or a name on the hub")
        return _downloaded(path.as_posix(), **hub)
    if hub:
        raise TypeError(f"{', '.join(hub)}: only a name on the hub takes options, and {str(path)!r} is a local path")
    return path


def _downloaded(name: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE], **hub))
    except TypeError:  # an option that it does not know
        raise
    except Exception as error:  # of the hub, its client, the network
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(f"no folder or file {name!r}, and the hub did not give it either: {reason}") from error


Told = tuple[str, Any]
"""Of a file: the kind of its network, and the values of its configuration."""


def _load_folder(folder: Path) -> tuple[dict[str, Tensor], Told]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: it was not written by save_pretrained")
    told = _parsed((folder / CONFIG_FILE).read_text(encoding="utf-8"), folder / CONFIG_FILE)
    return _load_file(folder / WEIGHTS_FILE)[0], told


def _load_file(path: Path) -> tuple[Any, Told | None]:
    """What a file holds; also what the header of one that :func:`save_backbone` wrote tells."""
    if path.suffix != ".safetensors":
        try:
            return torch.load(path, map_location="cpu", weights_only=True), None
        except Exception as error:  # of many types
            # of torch's text the first sentence alone: the rest advises to load what may run code
            reason = str(error).partition(". ")[0].strip() or type(error).__name__
            raise CheckpointError(f"{path} cannot be read by torch.load(weights_only=True): {reason}") from None
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CONFIG_KEY)
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except Exception as error:  # safetensors raises its own type, without a common base
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    return content, None if text is None else _parsed(text, path)


def _parsed(text: str, source: Path) -> Told:
    """The kind, which is the one name in a file of ours, and what is below it."""
    try:
        values = json.loads(text)
        kind = "unet" if "unet" in values else next(name for name in values if isinstance(values[name], dict))
        return kind, values[kind]
    except (StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is no configuration of a network: {error}") from None


def _config(backbone: type[Backbone], values: Any, source: Path) -> BackboneConfig:
    try:
        return backbone.config_class(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is no configuration of a {backbone.__name__}: {error}") from None


def save_backbone(unet: Backbone, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write ``model.safetensors`` (which holds the configuration too) and ``config.json``, each whole or not at all.

    Args:
        unet: not folded.
        folder: made where it is missing.
        dtype: floating, of the weights in the file; default: their own. Loaded weights are float32 again.

    Raises:
        ValueError: a folded network; weights too large for ``dtype``. TypeError: ``dtype`` is not floating.
    """
    from safetensors.torch import save

    if unet.folded:
        raise ValueError("a folded UNet cannot be saved: its weights no longer are those that were trained")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in unet.state_dict().items()
    }
    if dtype is not None:
        beyond = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
        if beyond:
            raise ValueError(f"dtype={dtype} cannot hold {', '.join(beyond)}")
    config = json.dumps({kind_of(type(unet)): asdict(unet.config)}, indent=1)
    content = save(weights, {"format": "pt", CONFIG_KEY: config})
    write_atomically(folder / WEIGHTS_FILE, lambda file: file.write_bytes(content))
    write_atomically(folder / CONFIG_FILE, lambda file: file.write_text(config + "\n", encoding="utf-8"))


def official_weights(content: object, path: object = "the checkpoint") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of what a file holds, the weights and the tables of the schedule, by their names without prefixes.

    Averaged weights are preferred; what is empty is passed over.

    Raises:
        CheckpointError: no state dict, no weights in it, or two UNets.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    ema, model = (found if isinstance(found, Mapping) else {} for found in map(content.get, ("ema", "model")))
    averaged = {key: tensor for key, tensor in ema.items() if str(key).startswith("ema_model.")}
    for state in (averaged, ema, model, content):
        weights: dict[str, Tensor] = {}
        tables: dict[str, Tensor] = {}
        for key, tensor in state.items():
            name = str(key)
            while PREFIX.match(name):
                name = PREFIX.sub("", name, count=1)
            if isinstance(tensor, Tensor):
                (tables if IGNORED.search(name) else weights)[name.removeprefix("unet0.")] = tensor
        if any(name.startswith("unet1.") for name in weights):
            raise CheckpointError(f"{path} holds two UNets (RDDM's num_unet=2), which one UNet cannot take")
        if weights:
            return weights, tables
    raise CheckpointError(f"{path} holds no weights; its keys begin with {', '.join(map(str, list(content)[:5]))}")


def infer_config(
    weights: Mapping[str, Tensor], path: object = "the checkpoint", tables: Mapping[str, Tensor] | None = None
) -> UNetConfig:
    """Read the shape of an official UNet off its weights (our names), and its sampler off the schedule's tables.

    Raises:
        CheckpointError: they are not those of such a UNet.
    """
    try:
        width = weights["stem.weight"].shape[0]
        levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("encoder."))
        multipliers = tuple(weights[f"encoder.{i}.resample.weight"].shape[0] // width for i in range(levels))
        channels = weights["head.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no residual-diffusion UNet: {error} not found among its keys") from None
    # float32 numbers that were decimal ones; official tables have them as their last
    last = {name: round(table.flatten()[-1].item(), 9) for name, table in (tables or {}).items() if table.numel()}
    shared = "residual_head.weight" in weights
    config = UNetConfig(
        width=width,
        multipliers=multipliers,
        heads="both" if shared or channels == 6 else "residual",
        shared_encoder=shared,
        family="diffuir",
        delta_end=last.get("delta", 1.8e-3),
    )
    if not shared and ("alphas_cumsum" not in last or {"delta", "delta_cumsum"} & last.keys()):
        return config
    if shared or last["alphas_cumsum"] > 0.999:
        return replace(config, family="rddm", time="index", sum_scale=last.get("betas2_cumsum", 1.0))
    # of its later code, over the linear tables, which do not tell the noise at the start
    return replace(config, family="rddm", sum_scale=0.01)


def _filled(backbone: type[B], config: BackboneConfig, weights: Mapping[str, Tensor], path: object) -> B:
    if backbone is UNet:
        with torch.device("meta"):
            unet = backbone(config)
    else:  # of others nobody knows what they do to be made, or what they have beside weights
        with torch.random.fork_rng(devices=[]):
            unet = backbone(config)
    expected = unet.state_dict()
    # gains are [1, C, 1, 1] in official files
    weights = {k: v.reshape(-1) if k.endswith(".gain") and v.ndim == 4 else v for k, v in weights.items()}
    problems = {
        "missing": [name for name in expected if name not in weights],
        "surplus": [name for name in weights if name not in expected],
        "misshaped": [
            f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise CheckpointError(f"{path} does not fit {config}: {listed}")
    floats = {n: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for n, tensor in weights.items()}
    unet.load_state_dict(floats, assign=True)
    return unet.requires_grad_(True).eval()
