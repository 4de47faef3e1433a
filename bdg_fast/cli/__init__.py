"""The command ``bdg-fast``: arguments to calls, nothing else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bdg_fast import __version__
from bdg_fast.data.images import ImageReadError

from . import analyse, demo, evaluate, fingerprints, glcm, probe, restore, search, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 1 some files failed, 2 bad usage, 130 interrupted, 141 the output was closed.
    """
    parser = argparse.ArgumentParser(
        prog="bdg-fast",
        description="Restores degraded images, and tells how they are degraded (gray-level co-occurrence matrices).",
        epilog="`bdg-fast COMMAND --help` explains a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"bdg-fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (restore, analyse, evaluate, train, glcm, fingerprints, search, probe, demo):
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("bdg-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, ImageReadError) as error:
        print(f"bdg-fast: {error}", file=sys.stderr)
        return 2
