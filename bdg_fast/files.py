"""Files that appear whole or not at all, and what errors tell of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def about(name: object, error: object) -> str:
    """What an error tells, with the name of what it happened to, unless it tells that itself."""
    told = str(error) or type(error).__name__
    return told if str(name) in told else f"{name}: {told}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with the name of a temporary file beside ``path``, and move it there when it is complete."""
    # short, as ``path`` may have a name of the most bytes; hidden, so that what a crash leaves is no input
    temporary = path.with_name(f".bdg-{secrets.token_hex(6)}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as of any new file; some writers make theirs private
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
