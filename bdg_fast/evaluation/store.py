"""What an evaluation leaves on the disk while it runs: scores, so that it goes on where it stopped, and images."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..files import write_atomically
from .cases import Case
from .evaluate import Folders, Keep, Row

PERIOD = 30.0
"""Seconds between two writes of scores."""
CLEAN = "clean"
"""Folder of the clean images as they were compared."""


class Store:
    """Scores in ``scores/METHOD.json``, images in ``images/METHOD/degradation/set/``.

    Args:
        folder: where; it is made. None: nothing is kept.
        settings: what scores depend on beside the method; others' scores are not taken for ours.
        images: keep restored and clean ones.
        force: measure again what is there.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], *, images: bool, force: bool = False) -> None:
        self.folder, self._settings, self._force = folder, json.loads(json.dumps(settings)), force
        self._images = None if folder is None or not images else folder / "images"
        self._written: set[Path] = set()
        self._others: dict[str, list[Any]] = {}  # what was measured of cases that are not asked for now
        self._last = time.monotonic()

    def known(self, method: str, identity: object, cases: Sequence[Case]) -> list[Row]:
        """Rows of an earlier run of the same settings and the same method."""
        path = self._path(method)
        if path is None or self._force or not path.is_file():
            return []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # of another program, or damaged: measured again
            return []
        if not isinstance(content, dict) or content.get("key") != self._key(identity):
            return []
        by_key = {(row["degradation"], row["set"], row["image"]): row for row in content["images"]}
        asked = {case.key for case in cases}
        self._others[method] = [row for key, row in by_key.items() if key not in asked]
        rows = [Row(case, by_key[case.key]["scores"]) for case in cases if case.key in by_key]
        return [row for row in rows if self._images is None or self._file(method, row.case).is_file()]

    def save(self, method: str, identity: object, rows: Iterable[Row], *, now: bool = True) -> None:
        """Write rows; without ``now`` only once in a while. What failed is left out, so that it is tried again."""
        path = self._path(method)
        if path is None or not (now or time.monotonic() - self._last > PERIOD):
            return
        self._last = time.monotonic()
        images = [
            {"degradation": row.case.kind, "set": row.case.set, "image": row.case.name, "scores": row.scores}
            for row in rows
            if not any(math.isnan(value) for value in row.scores.values())
        ]
        images += self._others.get(method, [])
        content = json.dumps({"key": self._key(identity), "images": images}, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write_text(content, encoding="utf-8"))

    def keeper(self, method: str) -> Keep | None:
        """What keeps the images of a method, and the clean ones once."""
        if self._images is None:
            return None

        def keep(case: Case, restored: Tensor, target: Tensor) -> None:
            for name, image in ((method, restored), (CLEAN, target)):
                path = self._file(name, case)
                if path not in self._written:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
                    write_atomically(path, lambda file, picture=picture: picture.save(file))  # type: ignore[misc]
                    self._written.add(path)

        return keep

    @contextlib.contextmanager
    def folders(self, method: str, rows: Sequence[Row]) -> Iterator[Folders]:
        """Of every test set: folders of the restored and clean images of ``rows`` alone, and how many there are.

        They are links beside :attr:`folder`'s images, which may be of more rows, and are deleted at last.
        """
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".bdg-") as place:
            found: Folders = {}
            for row in rows:
                key = row.case.kind, row.case.set, row.case.counted
                both = Path(place, "restored", *key[:2]), Path(place, CLEAN, *key[:2])
                for name, folder in zip((method, CLEAN), both, strict=True):
                    folder.mkdir(parents=True, exist_ok=True)
                    file = self._file(name, row.case)
                    _link(file, folder / file.name)
                found[key] = *both, found[key][2] + 1 if key in found else 1
            yield found

    def _key(self, identity: object) -> Any:
        return json.loads(json.dumps({"settings": self._settings, "method": identity}))

    def _path(self, method: str) -> Path | None:
        return None if self.folder is None else self.folder / "scores" / f"{method}.json"

    def _file(self, method: str, case: Case) -> Path:
        assert self._images is not None
        return self._images / method / case.kind / case.set / f"{case.name.replace('/', '__')}.png"


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except OSError:  # where the file system has none
        shutil.copyfile(file, link)


def identity(path: str | Path | None) -> object:
    """What changes when the files of a method do: their number, sizes and times."""
    if path is None:
        return None
    place = Path(path)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    stats = [file.stat() for file in files]
    return [
        str(path),
        len(files),
        sum(one.st_size for one in stats),
        max((one.st_mtime_ns for one in stats), default=0),
    ]
