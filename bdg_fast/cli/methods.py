"""What ``bdg-fast evaluate`` compares: checkpoints, and folders of results."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bdg_fast.evaluation.evaluate import Folder, Input, Method, Network
from bdg_fast.evaluation.store import identity
from bdg_fast.memory import keep_freed_memory
from bdg_fast.models import checkpoint_at
from bdg_fast.models.kinds import find_backbone
from bdg_fast.restorer import Restorer


class Made(NamedTuple):
    """A method, the files that it depends on, and what of its own it is loaded with."""

    method: Method
    source: str | None = None
    given: Mapping[str, str] = {}

    @property
    def identity(self) -> object:
        """Equal for methods of the same results, as far as files tell: those of a class of one's own too."""
        own = identity(self.source)
        if not self.given:
            return own
        kind = self.given.get("backbone")
        code = None if kind is None else inspect.getsourcefile(find_backbone(kind))
        return [own, kind, identity(code), identity(self.given.get("vae"))]


def add_arguments(parser: Any) -> None:
    """The options that :func:`methods` reads."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="trained weights; small: those that come along",
    )
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="[NAME=]MODULE:CLASS",
        help="class of a checkpoint's network that is not ours",
    )
    parser.add_argument(
        "--vae",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="of a network of latents, if its VAE is not where it was",
    )
    parser.add_argument(
        "--results", action="append", default=[], metavar="[NAME=]DIR", help="results of others, as images"
    )


def methods(arguments: argparse.Namespace) -> list[Made]:
    """The input, checkpoints and results."""
    made = [Made(Input())]
    if arguments.checkpoint:
        keep_freed_memory()
    checkpoints = [_named(text) for text in arguments.checkpoint]
    own = {
        option: _by_name(option, getattr(arguments, option), [name for name, _ in checkpoints])
        for option in ("backbone", "vae")
    }
    for name, path in checkpoints:
        path = str(checkpoint_at(path))
        if not Path(path).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):  # as on the hub
            raise FileNotFoundError(f"--checkpoint must be a file or folder of weights, got {path}")
        given = {option: values[name] for option, values in own.items() if name in values}
        if "backbone" in given:
            find_backbone(given["backbone"])
        options = ("steps", "device", "dtype", "backend", "tile", "seed")
        open_ = partial(_restorer, path, **{option: getattr(arguments, option) for option in options}, **given)
        made.append(Made(Network(name, open_, arguments.batch), path, given))
    for name, path in map(_named, arguments.results):
        made.append(Made(Folder(name, path), path))
    names = [one.method.name for one in made]
    for name in names:
        if names.count(name) > 1 or name == "clean" or "/" in name or name.startswith("."):
            raise ValueError(
                f"methods must have names of their own, as NAME=PATH gives them; got {', '.join(names[1:])}"
            )
    return made


def _by_name(option: str, texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` of checkpoints by name; the only checkpoint's may go without a name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name in names):
            if len(names) != 1:
                allowed = f"one of {', '.join(names)}" if names else "that of a --checkpoint, and there is none"
                raise ValueError(f"--{option} must be NAME=..., with the name {allowed}; got {text}")
            name, value = names[0], text
        if name in found:
            raise ValueError(f"--{option} must be given once for {name}, got {found[name]} and {value}")
        found[name] = value
    return found


def _restorer(path: str, **options: Any) -> Restorer:
    """Of a checkpoint, whose results can be compared with clean images."""
    found = Restorer.from_pretrained(path, **options)
    if found.scale != 1:
        raise ValueError(f"{path} enlarges pictures by {found.scale}: restore them and measure the folder by --results")
    return found


def _named(text: str) -> tuple[str, str]:
    """``NAME=PATH``, or a path, which is called after its last part."""
    name, equals, path = text.partition("=")
    if equals and name and path and not Path(text).exists():
        return name, path
    return Path(text).resolve().stem, text
