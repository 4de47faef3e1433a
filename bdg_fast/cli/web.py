"""``bdg-fast demo --web``: a page in a browser that reports degradations and restores pictures."""

from __future__ import annotations

import argparse
import ipaddress
import sys

from bdg_fast.analysis import Analyser
from bdg_fast.memory import keep_freed_memory
from bdg_fast.restorer import Restorer
from bdg_fast.web import Limits, serve

LIMITS = {
    "megabytes": ("--max-megabytes", "of an uploaded file"),
    "megapixels": ("--max-megapixels", "of a picture"),
    "seconds": ("--time-limit", "seconds to restore a picture in"),
    "minutes": ("--keep-minutes", "after which files are deleted"),
}
"""Options of `Limits`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the page's options to the demo's, which has ``IMAGE`` and those of the network."""
    group = parser.add_argument_group("web page")
    group.add_argument("--web", action="store_true", help="serve a page for pictures of one's own (extra: web)")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    group.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes a free one")
    for name, (option, told) in LIMITS.items():
        value = getattr(Limits(), name)
        group.add_argument(option, type=float, default=value, metavar="N", dest=name, help=f"{told} (default {value})")


def run(arguments: argparse.Namespace) -> int:
    """Load the network and serve the page until it is interrupted."""
    if arguments.image is not None:
        raise ValueError(f"IMAGE goes without --web, whose visitors choose theirs in the page, got {arguments.image}")
    try:
        limits = Limits(**{name: getattr(arguments, name) for name in LIMITS})
    except ValueError as error:  # it begins with the name
        name, _, told = str(error).partition(" ")
        raise ValueError(f"{LIMITS[name][0]} {told}") from None
    restorer = load(arguments)
    if not _is_local(arguments.host):
        print(f"bdg-fast: whoever reaches {arguments.host} can use the page: it has no password", file=sys.stderr)
    serve(restorer, Analyser.from_pretrained(), host=arguments.host, port=arguments.port, limits=limits)
    return 0


def load(arguments: argparse.Namespace) -> Restorer:
    """The network. What enlarges pictures is refused: they are shown beside what came, and limits are of that."""
    keep_freed_memory()
    options = {name: getattr(arguments, name) for name in ("backbone", "steps", "tile")}
    restorer = Restorer.from_pretrained(arguments.checkpoint, **options)
    if restorer.scale != 1:
        told = f"got one that enlarges them by {restorer.scale}, for bdg-fast restore"
        raise ValueError(f"--checkpoint must keep the size of pictures, {told}")
    return restorer


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
