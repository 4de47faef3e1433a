"""A job on Ray's workers, on this machine or on a cluster whose machines see the same files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .record import Line
from .work import Item, Work, Worker

LOCAL = "local"
"""The address of a Ray that is started here, and ended with the job."""
STORE = 100 << 20
"""Bytes of its object store: only names and lines go through."""
MOST_TASKS = 20_000
"""Ray keeps books on each: chunks of longer jobs are larger."""


def require_ray() -> Any:
    """The module ``ray``, with ``ray.data``.

    Raises:
        ImportError: says how to install it.
    """
    try:
        import ray  # optional
        import ray.data
    except ImportError as error:
        raise ImportError("--ray needs Ray Data: pip install 'bdg-fast[ray]'") from error
    return ray


def run_on_ray(
    work: Work,
    items: Sequence[Item],
    parts: Path,
    chunk: int,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    progress: Callable[[Line], object] = lambda line: None,
) -> int:
    """Work through images on Ray's workers, each of which loads once; returns how many there were.

    A worker that dies is started again by Ray, and its chunk is tried again: see :data:`bdg_fast.jobs.work.ATTEMPTS`.

    Args:
        work: what is done; workers have a working folder of their own, so its paths are absolute.
        items: of the job, with absolute paths.
        parts: folder of the lines, which all machines see.
        chunk: images of a task, at most.
        address: ``"local"`` starts Ray here, ``"auto"`` is the cluster this machine belongs to; or a cluster's. A Ray
            that this process is connected to already is used, and stays.
        workers: how many; None: one for each ``gpus``, or ``cpus``, that Ray has.
        cpus, gpus: of a worker. None: one GPU if Ray has any.
        progress: called with each line.

    Raises:
        ImportError: no Ray. ConnectionError: no cluster there. ValueError: it has not what workers need, or the work's
            settings are bad. RuntimeError: workers die before they begin, or Ray gave up.
    """
    ray = require_ray()
    with _connected(ray, address):
        has = ray.cluster_resources()
        gpus = min(1.0, has.get("GPU", 0.0)) if gpus is None else gpus
        fit = [int(has.get(kind, 0.0) / need) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need]
        most = min(fit, default=1)
        wanted = workers or 1
        if wanted > most and (workers is None or address == LOCAL):  # a cluster may grow
            told = f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
            raise ValueError(f"{wanted} workers of {cpus:g} CPUs and {gpus:g} GPUs are more than Ray has: {told}")
        workers = min(workers or most, len(items))
        # a few tasks a worker, so that all end together
        size = max(1, min(chunk, -(-len(items) // (2 * workers))), -(-len(items) // MOST_TASKS))
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        tasks = [{"items": json.dumps(part), "token": secrets.token_hex(8)} for part in chunks]
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a chunk of large pictures may take an hour
        with ray.data.DataContext.current(context):
            found = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
                _Actor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                fn_constructor_args=(work, str(parts.resolve())),
                num_cpus=cpus,
                num_gpus=gpus,
            )
            try:
                for row in found.iter_rows():
                    if row["fatal"]:
                        raise RuntimeError(row["fatal"])
                    for line in json.loads(row["lines"]):
                        progress(line)
            except ray.exceptions.RayError as error:
                raise RuntimeError(f"Ray gave up: {error}") from error
    return workers


class _Actor:
    """What Ray keeps in a worker. Nothing is loaded at first: a process that dies then is restarted for ever."""

    def __init__(self, work: Work, parts: str) -> None:
        self.worker = Worker(work, Path(parts))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """A task: JSON of its items to JSON of their lines, or what ends the job."""
        items = [Item(*fields) for fields in json.loads(str(batch["items"][0]))]
        try:
            lines, fatal = list(self.worker(items, str(batch["token"][0]))), ""
        except Exception as error:  # of loading: any type
            lines, fatal = [], str(error) or type(error).__name__
        return {"lines": [json.dumps(lines)], "fatal": [fatal]}


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    more = {"include_dashboard": False, "object_store_memory": STORE} if address == LOCAL else {}
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    try:
        yield
    finally:
        ray.shutdown()
