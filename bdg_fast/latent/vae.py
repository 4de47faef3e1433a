"""VAEs of `diffusers`: where they are, and loading them from safetensors alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..files import sha256_of
from ..models.checkpoints import CheckpointError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
SUBFOLDER = "vae"
"""Of a pipeline's folder, or of one of our checkpoints."""
KIND = "AutoencoderKL"


def find_vae(name: str | os.PathLike[str], **hub: Any) -> Path:
    """The folder of a VAE's ``config.json`` and ``diffusion_pytorch_model.safetensors``.

    Args:
        name: that folder, one with a folder ``vae`` (a pipeline such as Stable Diffusion), or the name of either on the
            Hugging Face hub, of which nothing but these two files is downloaded.
        hub: arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: there is no such folder. CheckpointError: it is of something else, or has pickled weights.
    """
    path = Path(name)
    if not path.exists():
        if len(path.parts) != 2 or path.is_absolute():
            raise FileNotFoundError(f"no VAE at {str(path)!r}: give a folder, or a name on the hub")
        path = _downloaded(path.as_posix(), **hub)
    folder = path / SUBFOLDER if (path / SUBFOLDER).is_dir() else path
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: it is no folder of a VAE of diffusers")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{config} is no configuration of a VAE: {error}") from None
    if kind != KIND:
        raise CheckpointError(f"{config} must be of an {KIND}, and is of {kind}")
    if not (folder / WEIGHTS_FILE).is_file():
        if pickled := sorted(file.name for file in folder.glob("*.bin")):
            raise CheckpointError(
                f"{folder} holds pickled weights alone ({', '.join(pickled)}), which may run code and are not loaded: "
                f"{WEIGHTS_FILE} is needed"
            )
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS_FILE}")
    return folder


def _downloaded(name: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    files = [f"{folder}{file}" for folder in ("", f"{SUBFOLDER}/") for file in (CONFIG_FILE, WEIGHTS_FILE)]
    try:
        return Path(snapshot_download(name, allow_patterns=files, **hub))
    except TypeError:  # an option that it does not know
        raise
    except Exception as error:  # of the hub, its client, the network
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(f"no VAE at {name!r}, and the hub did not give it either: {reason}") from error


def load_vae(folder: Path) -> Any:
    """`diffusers.AutoencoderKL`, float32, of what :func:`find_vae` found.

    Raises:
        ImportError: diffusers is not installed. CheckpointError: weights that are damaged or do not fit.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        told = "diffusers is not installed, which latent networks need: pip install 'bdg-fast[diffusers]'"
        raise ImportError(f"{told} ({error})") from None
    model: Any = AutoencoderKL
    try:
        vae, info = model.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except Exception as error:  # of many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} cannot be read as an {KIND}: {reason}") from None
    if odd := [*info.get("missing_keys", ()), *info.get("unexpected_keys", ()), *info.get("mismatched_keys", ())]:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {len(odd)} keys, {odd[0]} first"
        )
    return vae


def digest(folder: Path) -> str:
    """SHA-256 of a VAE's file of weights, by which a checkpoint knows its VAE again."""
    return sha256_of(folder / WEIGHTS_FILE)
