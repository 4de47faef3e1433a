"""Checkpoints: a folder each, which is there whole or not at all.

    checkpoints/latest                     name of the newest, a text
    checkpoints/step-00001000/
        state.json                         counters, and size and SHA-256 of every other file
        parts.safetensors                  everything that is trained, in float32
        optimizer.safetensors              its moments, by parameter
        network/{config.json,model.safetensors}   the averaged network, as `from_pretrained` loads it

A folder is written under a hidden name, brought to the disk (fsync) and then renamed, as is the text ``latest``.
Whatever stops a process at any moment leaves every older checkpoint as it was; hidden remains are deleted when a run
goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bdg_fast.ranks import Ranks

from ..files import held, sha256_of
from ..models import Backbone
from ..models.checkpoints import CheckpointError, load_backbone, save_backbone
from .settings import differences

STATE, PARTS, OPTIMIZER = "state.json", "parts.safetensors", "optimizer.safetensors"
NETWORK, LATEST = "network", "latest"
NAME = re.compile(r"step-(\d{8,})")
WRITING, DELETING, DAMAGED = ".writing-", ".deleting-", "damaged-"
LOCK = ".run.lock"
FORMAT = 1


class FormatError(CheckpointError):
    """A checkpoint of another version of this package: nothing is wrong with it."""


class Saved(NamedTuple):
    """What a checkpoint holds."""

    folder: Path
    state: dict[str, Any]
    parts: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    network: dict[str, Tensor]  # averaged weights


@contextlib.contextmanager
def claimed(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other runs out of a run's folder, where files can be locked: each would remove what the other writes.

    Raises:
        RuntimeError: another run is in it; in all processes.
    """
    with contextlib.ExitStack() as leaving:
        mine = True
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            mine = leaving.enter_context(held(folder / LOCK))
        if not all(ranks.collected(mine)):
            raise RuntimeError(f"another process trains in {folder}: stop it first, or give another output")
        yield


def save(
    root: Path,
    state: Mapping[str, Any],
    parts: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    network: Backbone,
) -> Path:
    """Write the checkpoint of ``state["step"]`` below ``root``; one of the same step is replaced.

    Raises:
        OSError: it could not be written, on a full disk for example. Nothing is left of it, and older ones are whole.
    """
    step = int(state["step"])
    final = root / f"step-{step:08d}"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{WRITING}{final.name}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        _write(folder / PARTS, _packed(parts))
        _write(folder / OPTIMIZER, _packed(optimizer))
        save_backbone(network, folder / NETWORK)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            _to_disk(path)
        listed = {path.relative_to(folder).as_posix(): _identity(path) for path in files}
        text = json.dumps({"format": FORMAT, **state, "files": listed}, indent=1)
        _write(folder / STATE, text.encode())
        _to_disk(folder / NETWORK)
        _to_disk(folder)
        if final.exists():
            delete(final)
        os.rename(folder, final)
        _to_disk(root)
        pointer = root / f"{WRITING}{LATEST}-{secrets.token_hex(4)}"
        try:
            _write(pointer, f"{final.name}\n".encode())
            os.replace(pointer, root / LATEST)
        finally:
            pointer.unlink(missing_ok=True)
        _to_disk(root)
    except OSError as error:
        whole = max(steps(root), default=None)
        left = "no older one is there" if whole is None else f"that of step {whole} is whole"
        raise OSError(
            error.errno, f"checkpoint of step {step} not written below {root}: {error.strerror or error}; {left}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def newest(root: Path, ranks: Ranks) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint below ``root`` for all processes, and what was wrong with newer ones.

    What processes that were stopped have left is deleted; newer ones that are damaged are set aside, as they would be
    kept as the newest.

    Raises:
        CheckpointError: there are checkpoints and none is whole, one is of another version, or processes see different
            ones. OSError: one cannot be read now, which is no reason to pass it over.
    """
    if ranks.first:
        clean(root)
    ranks.wait()  # nobody reads before that
    saved, problems = load(root)
    found = ranks.collected(None if saved is None else saved.state["step"])
    if len(set(found)) > 1:  # machines need one folder that all of them see
        raise CheckpointError(f"the processes found checkpoints of different steps below {root}: {found}")
    if saved is None and problems:
        raise CheckpointError("no checkpoint is whole: " + "; ".join(problems))
    if saved is not None and ranks.first:
        set_aside(root, saved.state["step"])
    return saved, problems


def begin_with(init: str, *unets: Backbone) -> None:
    """Give networks of one kind the weights of a trained one, in place of random ones.

    Raises:
        ValueError: ``init`` is another network than theirs, and in what.
    """
    found = load_backbone(init, type(unets[0]))
    own, its = asdict(unets[0].config), asdict(found.config)
    del own["sampler_steps"], its["sampler_steps"]  # nothing that weights depend on
    if differing := differences(its, own):
        raise ValueError(f"init={init!r} is another network than the settings': {', '.join(differing)} differ")
    for unet in unets:
        unet.load_state_dict(found.state_dict())


def load(root: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint below ``root``, or None, and what is wrong with newer ones; raises as `newest`."""
    problems: list[str] = []
    for step in sorted(steps(root), reverse=True):
        try:
            return read(root / f"step-{step:08d}"), problems
        except FormatError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
        except OSError as error:
            raise OSError(
                error.errno, f"the checkpoint of step {step} below {root} cannot be read now, and may be whole: "
                f"{error.strerror or error}; move it away to go on with an older one",
            ) from error  # fmt: skip
    return None, problems


def read(folder: Path) -> Saved:
    """A checkpoint, after every file was compared with its size and hash.

    Raises:
        CheckpointError: something is missing or differs; the message names it. FormatError: it is of another version.
        OSError: a file that is there cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files, found = dict(state.pop("files")), state.pop("format")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE} is missing or damaged: {error}") from None
    if found != FORMAT:
        raise FormatError(f"{folder} has format {found}; this version reads {FORMAT}")
    needed = {PARTS, OPTIMIZER, f"{NETWORK}/model.safetensors", f"{NETWORK}/config.json"}
    if needed - files.keys():
        raise CheckpointError(f"{folder / STATE} does not list {', '.join(sorted(needed - files.keys()))}")
    for name, identity in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if _identity(path) != identity:
            raise CheckpointError(f"{path} is not what was written: its size or hash differs")
    try:
        tensors = [load_file(folder / name) for name in (PARTS, OPTIMIZER, f"{NETWORK}/model.safetensors")]
    except SafetensorError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    return Saved(folder, state, *tensors)


def steps(root: Path) -> list[int]:
    """Steps of all checkpoints below ``root``, whole or not."""
    return sorted(int(match[1]) for path in root.glob("step-*") if (match := NAME.fullmatch(path.name)))


def prune(root: Path, keep: int, best: int | None = None) -> None:
    """Delete all checkpoints but the last ``keep`` and that of step ``best``."""
    for step in steps(root)[:-keep]:
        if step != best:
            delete(root / f"step-{step:08d}")


def set_aside(root: Path, after: int) -> None:
    """Rename checkpoints of later steps, which are damaged, to ``damaged-step-...``; nothing deletes them."""
    for step in steps(root):
        if step > after:
            name = f"{DAMAGED}step-{step:08d}"
            taken = (root / name).exists()
            os.rename(root / f"step-{step:08d}", root / (f"{name}-{secrets.token_hex(4)}" if taken else name))


def delete(folder: Path) -> None:
    """Delete a checkpoint; what is half deleted has a hidden name."""
    hidden = folder.with_name(f"{DELETING}{folder.name}-{secrets.token_hex(4)}")
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clean(root: Path) -> None:
    """Delete what processes that were stopped have left."""
    for path in [*root.glob(f"{WRITING}*"), *root.glob(f"{DELETING}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _to_disk(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    number = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _identity(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
