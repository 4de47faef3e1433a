"""What a run tells: a line on the terminal and one of JSON every so often, pictures, and what trackers get."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_atomically
from .config import TrainConfig
from .settings import as_dict
from .trackers import FILE, TensorBoard, Tolerant, Tracker, WeightsAndBiases, installed


class RunLog:
    """Numbers of steps, in ``log.jsonl`` (JSON of a step a line, of exact values), on the terminal and for trackers.

    Args:
        folder: of the run.
        after: the last step that the run goes on from: what was logged of later ones is removed, as they come again.
        config: of the run, which names the trackers.
        quiet: nothing on the terminal.
    """

    def __init__(self, folder: Path, after: int, config: TrainConfig, quiet: bool = False) -> None:
        """Open the files."""
        self.folder, self.quiet = folder, quiet
        path = folder / FILE
        kept = [line for line in _lines(path) if line["step"] <= after]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        self._trackers: list[Tracker] = []
        wanted = config.log.tensorboard
        if installed("tensorboard") if wanted is None else wanted:
            self._trackers.append(Tolerant(TensorBoard(folder, after)))
        if config.log.wandb is not None:
            self._trackers.append(Tolerant(WeightsAndBiases(folder, config.log.wandb, as_dict(config))))

    def numbers(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Of one step: losses, learning rate, speed, or measures of validation; in the file null if not finite."""
        told = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "stage": stage, **told}) + "\n")
        self._file.flush()
        if not self.quiet:
            print(
                f"step {step} {stage}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()),
                flush=True,
            )
        for tracker in self._trackers:
            tracker.numbers(step, {f"{stage}/{name}": value for name, value in values.items()})

    def picture(self, step: int, image: Tensor) -> None:
        """Write ``samples/step-N.png``; ``image`` is uint8 ``[3, H, W]``."""
        from PIL import Image

        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        write_atomically(folder / f"step-{step:08d}.png", lambda file: Image.fromarray(pixels).save(file))
        for tracker in self._trackers:
            tracker.picture(step, image)

    def say(self, text: str) -> None:
        """A line on the terminal."""
        if not self.quiet:
            print(text, flush=True)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All that was logged of a run, a dictionary a line, in order."""
    return _lines(Path(folder) / FILE)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; one that a stop has cut off is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
