"""Whose file is whose: a browser is given files of its own, and none of another's.

Who has the secret of a session, which lies in a cookie, has its files. A secret is not stored, and in addresses a
folder's name stands for it, from which it cannot be computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from pathlib import Path

SECRET = r"[\w-]{43}"
"""Pattern of what :meth:`Sessions.new` gives, 256 bits."""


class Sessions:
    """Files of all sessions, below one folder."""

    def __init__(self, root: Path) -> None:
        """``root``: that nothing else writes to but what receives uploads."""
        self.root = root.resolve()
        self._uploaded: dict[Path, set[str]] = {}  # by file; whoever sends the same file gets the same path
        self._lock = threading.Lock()

    @staticmethod
    def new() -> str:
        """A secret for a browser that has none."""
        return secrets.token_urlsafe(32)

    def uploaded(self, secret: str, path: Path) -> None:
        """``path`` was received from this session."""
        with self._lock:
            self._uploaded.setdefault(path.resolve(), set()).add(_name(secret))

    def owns(self, secret: str, path: Path) -> bool:
        """Whether this session sent the file, or it was made for it."""
        try:
            path = path.resolve()
        except (OSError, ValueError, RuntimeError):  # too long, with a null byte, a loop of links
            return False
        if path.is_relative_to(self.root / _name(secret)):
            return True
        with self._lock:
            return _name(secret) in self._uploaded.get(path, ())

    def new_path(self, secret: str, name: str) -> Path:
        """For a file of this session, in a folder of its own whose name nobody guesses."""
        folder = self.root / _name(secret) / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name

    def size(self) -> int:
        """Of all files, in bytes."""
        total = 0
        for path in self.root.rglob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                total += path.stat().st_size if path.is_file() else 0
        return total

    def sweep(self, seconds: float) -> None:
        """Delete files and empty folders that are older."""
        latest = time.time() - seconds
        for path in sorted(self.root.rglob("*"), reverse=True):  # what lies in a folder comes before it
            with contextlib.suppress(OSError):  # gone meanwhile, or not empty
                if path.lstat().st_mtime <= latest:
                    path.rmdir() if path.is_dir() else path.unlink()
        with self._lock:
            for path in [path for path in self._uploaded if not path.exists()]:
                del self._uploaded[path]


def _name(secret: str) -> str:
    """Of a session's folder."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32]
