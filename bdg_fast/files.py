"""Files that appear whole or not at all, and what errors tell of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path


def about(name: object, error: object) -> str:
    """What an error tells, with the name of what it happened to, unless it tells that itself."""
    told = str(error) or type(error).__name__
    return told if str(name) in told else f"{name}: {told}"


def sha256_of(*paths: Path) -> str:
    """SHA-256 of what files hold, one after the other; a piece of them is held at a time."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


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
    except OSError as error:  # a full disk tells no name
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process holds the file ``path``, which is made, and removed at the end.

    A process that ends, however, lets go of it. Always true where there are no locks (Windows, some network drives).

    Args:
        path: in a folder that exists.
        wait: until nobody else does.
    """
    try:
        import fcntl
    except ImportError:  # of POSIX alone
        yield True
        return
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError:  # no locks there
                pass
            if not _is_at(number, path):  # whoever held it has removed it meanwhile
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(number)


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False
