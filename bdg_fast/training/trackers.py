"""Where a run's curves and pictures go besides its folder: TensorBoard and Weights & Biases, both optional."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..files import write_atomically

FILE = "log.jsonl"
"""In a run's folder: everything that trackers get but pictures."""
RUN_ID = "wandb-id"
"""File in a run's folder: what Weights & Biases knows the run by."""


class Tracker(Protocol):
    """Takes the same numbers and pictures as the folder."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Of one step, ``stage/name`` to a number."""

    def picture(self, step: int, image: Tensor) -> None:
        """uint8 ``[3, H, W]``."""

    def close(self) -> None:
        """Bring everything to where it belongs."""


def installed(name: str) -> bool:
    """Whether a package can be imported; folders of its name, which Weights & Biases leaves about, are none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def require_trackers(tensorboard: bool | None, wandb: str | None) -> None:
    """ImportError that says what to install, unless what is asked for is."""
    if tensorboard and not installed("tensorboard"):
        raise ImportError("TensorBoard is not installed: pip install 'bdg-fast[training]', or log.tensorboard=false")
    if wandb is not None and not installed("wandb"):
        raise ImportError("Weights & Biases is not installed: pip install 'bdg-fast[wandb]', or log.wandb=null")


class Tolerant:
    """A tracker whose failures do not end a run: the first is a warning, after which it gets nothing more.

    The folder has everything anyhow, and a network or a server may go away at any time of a run of days.
    """

    def __init__(self, tracker: Tracker) -> None:
        """In place of ``tracker``."""
        self._tracker: Tracker | None = tracker

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._try("numbers", step, values)

    def picture(self, step: int, image: Tensor) -> None:
        """See :class:`Tracker`."""
        self._try("picture", step, image)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._try("close")

    def _try(self, method: str, *arguments: object) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:  # each has types of its own
            name, self._tracker = type(self._tracker).__name__, None
            told = f"{type(error).__name__}: {error}"
            warnings.warn(f"{name} failed and gets nothing more of this run, {FILE} has all: {told}", stacklevel=3)


class TensorBoard:
    """Files below ``tensorboard/`` of the run's ``folder``; what was written of steps after ``after`` is hidden."""

    def __init__(self, folder: Path, after: int) -> None:
        """Open them."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, image: Tensor) -> None:
        """See :class:`Tracker`."""
        self._writer.add_image("samples", image, step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one whenever the run in ``folder`` goes on.

    Args:
        folder: of the run; its name is what the run is called.
        project: that the run belongs to.
        settings: of the run, as JSON has them.
    """

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        """Begin or go on; ``WANDB_MODE=offline`` writes below ``wandb/`` of the folder alone."""
        import wandb

        path = folder / RUN_ID
        if not path.exists():
            write_atomically(path, lambda file: file.write_text(secrets.token_hex(8) + "\n", encoding="utf-8"))
        self._image = wandb.Image
        self._run: Any = wandb.init(
            project=project, id=path.read_text(encoding="utf-8").strip(), resume="allow",
            name=folder.resolve().name, dir=str(folder), config=dict(settings),
        )  # fmt: skip
        # steps of its own: those that come again after a stop would be refused as past ones
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, image: Tensor) -> None:
        """See :class:`Tracker`."""
        self._run.log({"step": step, "samples": self._image(image.permute(1, 2, 0).contiguous().numpy())})

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()
