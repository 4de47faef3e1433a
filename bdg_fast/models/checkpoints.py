"""Checkpoints: our own (safetensors and a configuration) and the published ones of DiffUIR and RDDM.

One key map serves both: official names are rewritten by :data:`RENAMES`, in order. Only safetensors, and ``.pt`` files
by ``weights_only=True``, are ever read.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; the message names the file and what is wrong with it."""


def our_name(official: str) -> str:
    """The name of a weight in :class:`UNet`, from the one in DiffUIR or RDDM without its prefixes."""
    name = official
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_unet(path: str | os.PathLike[str], **hub: Any) -> UNet:
    """A UNet in evaluation mode, from one of:

    - a folder that :meth:`UNet.save_pretrained` wrote, its ``model.safetensors`` alone, or the name of such a folder on
      the Hugging Face hub (``hub`` are arguments of ``huggingface_hub.snapshot_download``),
    - an official DiffUIR or RDDM file with one UNet (``.pt`` or ``.safetensors``: a training checkpoint, whose averaged
      weights are preferred, or a bare state dict). Its shape is read off the weights.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is none of these; keys are named.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        if path.suffix in (".pt", ".pth", ".safetensors") or len(path.parts) != 2:
            raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give a folder, a file, or a name on the hub")
        return _load_folder(_downloaded(path.as_posix(), **hub))
    config = _own_config(path)
    if config is not None:
        return _filled(config, _read_safetensors(path), path)
    official, delta_end = official_weights(path)
    weights = {our_name(name): tensor for name, tensor in official.items()}
    return _filled(infer_config(weights, path, delta_end), weights, path)


def _downloaded(name: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE], **hub))


def _load_folder(folder: Path) -> UNet:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: it was not written by save_pretrained")
    config = _parsed((folder / CONFIG_FILE).read_text(encoding="utf-8"), folder / CONFIG_FILE)
    return _filled(config, _read_safetensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)


def _parsed(text: str, source: Path) -> UNetConfig:
    try:
        return UNetConfig(**json.loads(text)["unet"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is no configuration of a UNet: {error}") from None


def _own_config(path: Path) -> UNetConfig | None:
    """The configuration in the header of a file that :func:`save_unet` wrote; None for any other file."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CONFIG_KEY)
    except Exception as error:  # safetensors raises its own type, without a common base
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    return None if text is None else _parsed(text, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None


def save_unet(unet: UNet, folder: str | os.PathLike[str]) -> None:
    """Write ``model.safetensors`` (which holds the configuration too) and ``config.json``, each whole or not at all."""
    from safetensors.torch import save

    if any(name.endswith(".conv1.weight") and not _standardized(unet, name) for name, _ in unet.named_parameters()):
        raise ValueError("a folded UNet cannot be saved: its weights no longer are those that were trained")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
    config = json.dumps({"unet": unet.to_dict()}, indent=1)
    _write(folder / WEIGHTS_FILE, save(weights, {"format": "pt", CONFIG_KEY: config}))
    _write(folder / CONFIG_FILE, config.encode() + b"\n")


def _standardized(unet: UNet, name: str) -> bool:
    from .blocks import StandardizedConv2d

    return isinstance(unet.get_submodule(name.removesuffix(".weight")), StandardizedConv2d)


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def official_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], float]:
    """Weights of an official file by their names without prefixes; averaged ones if the file has them.

    Also the last increment of its schedule's delta, the published 1.8e-3 if the file does not tell.

    Raises:
        CheckpointError: not readable by ``weights_only=True``, no weights in it, or two UNets.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read by torch.load(weights_only=True): {error}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = content
    if isinstance(content.get("ema"), Mapping):
        state = {k: v for k, v in content["ema"].items() if k.startswith("ema_model.")} or content["ema"]
    elif isinstance(content.get("model"), Mapping):
        state = content["model"]
    weights: dict[str, Tensor] = {}
    delta_end = 1.8e-3
    for key, tensor in state.items():
        name = str(key)
        while PREFIX.match(name):
            name = PREFIX.sub("", name, count=1)
        if name == "delta" and isinstance(tensor, Tensor):
            delta_end = round(tensor[-1].item(), 9)  # a float32 of a decimal number
        if IGNORED.search(name) or not isinstance(tensor, Tensor):
            continue
        if name.startswith("unet1."):
            raise CheckpointError(f"{path} holds two UNets (RDDM's num_unet=2), which one UNet cannot take")
        weights[name.removeprefix("unet0.")] = tensor
    if not weights:
        raise CheckpointError(f"{path} holds no weights; its keys begin with {', '.join(map(str, list(content)[:5]))}")
    return weights, delta_end


def infer_config(
    weights: Mapping[str, Tensor], path: object = "the checkpoint", delta_end: float = 1.8e-3
) -> UNetConfig:
    """Read the shape of an official UNet off its weights (our names).

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
    shared = "residual_head.weight" in weights
    heads = "both" if shared or channels == 6 else "residual"
    return UNetConfig(
        width=width,
        multipliers=multipliers,
        heads=heads,
        shared_encoder=shared,
        time="index" if shared else "scaled",
        family="rddm" if shared else "diffuir",
        delta_end=delta_end,
    )


def _filled(config: UNetConfig, weights: Mapping[str, Tensor], path: Path) -> UNet:
    with torch.device("meta"):
        unet = UNet(config)
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
    unet.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, assign=True)
    return unet.requires_grad_(True).eval()
