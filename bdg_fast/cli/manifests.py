"""What ``restore`` and ``glcm`` share where a manifest lists their images: options, runners, and the record."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from os.path import abspath, join, normpath, relpath
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bdg_fast.jobs import Item, Line, Record, Work, run_here, summary_of
from bdg_fast.jobs.cluster import require_ray, run_on_ray
from bdg_fast.ranks import shares

from .common import Failures

RAY = ("ray", "workers", "cpus_per_worker", "gpus_per_worker")


class _InsteadOf(argparse.Action):
    """An option that stands for positional arguments."""

    def __init__(self, *arguments: Any, positionals: Sequence[argparse.Action], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.positionals = positionals

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        for positional in self.positionals:
            positional.required = False


def add_arguments(parser: argparse.ArgumentParser, chunk: int, positionals: Sequence[argparse.Action]) -> Any:
    """Add what concerns manifests, which go without ``positionals``; returns the group."""
    group = parser.add_argument_group("manifests: lists of images, on one machine or many (docs/howto/cluster.md)")
    group.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        action=_InsteadOf,
        positionals=positionals,
        help=".jsonl, .csv or .parquet with a column path, perhaps id and output; results are recorded, and resumed",
    )
    group.add_argument("--chunk", type=int, default=chunk, metavar="N", help=f"most images of a task (default {chunk})")
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="on Ray's workers (extra: ray): started here, on the cluster of this machine (auto), or on that of an "
        "address",
    )
    group.add_argument("--workers", type=int, metavar="N", help="of Ray (default: as many as it has room for)")
    group.add_argument("--cpus-per-worker", type=float, metavar="N", help="default 1")
    group.add_argument("--gpus-per-worker", type=float, metavar="N", help="default: 1 where a GPU is meant, else 0")
    return group


def check(arguments: argparse.Namespace, instead: Sequence[str], output: str) -> None:
    """Before any work.

    Raises:
        ValueError: options that do not go together, or numbers that cannot be.
    """
    option = f"--{output.replace('_', '-')}"
    if arguments.manifest is None:
        given = [name for name in RAY if getattr(arguments, name) is not None]
        given += [output] if output == "output_dir" and arguments.output_dir is not None else []
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} needs --manifest")
        return
    for name in instead:
        if getattr(arguments, name):
            told = "--plot" if name == "plot" else "paths"
            raise ValueError(f"--manifest goes without {told}, got {getattr(arguments, name)}")
    if getattr(arguments, output) is None:
        raise ValueError(f"--manifest needs {option}")
    if arguments.chunk < 1:
        raise ValueError(f"--chunk must be at least 1, got {arguments.chunk}")
    if arguments.ray is None:
        if given := [name for name in RAY if getattr(arguments, name) is not None]:
            raise ValueError(f"--{given[0].replace('_', '-')} needs --ray")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--ray goes without torchrun: Ray starts the workers")
    if ":" in str(arguments.device):
        raise ValueError(f"--device must be without a number with --ray, which gives workers theirs; got "
                         f"{arguments.device}")  # fmt: skip
    for name, least in (("workers", 1), ("cpus_per_worker", 0), ("gpus_per_worker", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def run_job(
    arguments: argparse.Namespace,
    command: str,
    work: Work,
    settings: Callable[[], Mapping[str, Any]],
    items: Sequence[Item],
    base: Path,
    waiting: Callable[[Item, Line | None], Item | None],
    finish: Callable[[Sequence[Line]], None],
    failures: Failures,
    chunk: int | None = None,
) -> int:
    """Work through a manifest's images: in this process, in those of `torchrun`, or on Ray's workers.

    Args:
        arguments: of the command.
        command: its name.
        work: what is done.
        settings: tells what results depend on.
        items: its images; what their lines tell of them is filled in here.
        base: of the output manifest.
        waiting: of an item and its last line (None: it has none) makes what is to be done, or None.
        finish: makes what is made of all lines, in the order of the images.
        failures: takes what failed.
        chunk: most images of a call of the work, where Ray is not used; default: as ``arguments`` say.
    """
    if arguments.ray is not None:
        require_ray()
    record = Record(base)
    items = _sourced(items, base.parent)
    with contextlib.ExitStack() as leaving:
        share = leaving.enter_context(shares())
        if share.first:
            leaving.enter_context(record.claimed())
            pending = {item.id: _pending(item) for item in items if item.output} if arguments.force else {}
            record.begin(command, settings(), arguments.force, pending)
        share.wait()
        begin, known = time.monotonic(), record.lines()
        owners = {line["output"]: name for name, line in known.items() if "output" in line}
        last = (_last(item, known.get(item.id), owners, base.parent) for item in items)
        todo = [found for item, line in last if (found := waiting(item, line)) is not None]
        names = {item.id for item in todo}
        kept = {item.id: known[item.id] for item in items if item.id not in names and item.id in known}
        if kept and share.first:
            print(f"{len(kept)} of {len(items)} are done already; --force does them again")
        share.wait()  # all have read what workers now add to
        mine = todo[share.rank :: share.world]
        bar = tqdm(total=len(mine), desc=command, unit="image", disable=not sys.stderr.isatty())

        def progress(_: Line) -> None:
            bar.update()

        workers, name = share.world, f"rank-{share.rank}" if share.world > 1 else None
        if arguments.ray is not None:
            gpus = arguments.gpus_per_worker
            if mine:
                workers = run_on_ray(
                    work,
                    [item._replace(path=abspath(item.path), target=abspath(item.target)) for item in mine],
                    record.parts,
                    arguments.chunk,
                    address=arguments.ray,
                    workers=arguments.workers,
                    cpus=1 if arguments.cpus_per_worker is None else arguments.cpus_per_worker,
                    gpus=0 if gpus is None and str(arguments.device) == "cpu" else gpus,
                    progress=progress,
                )
        else:
            run_here(work, mine, record.parts, chunk or arguments.chunk, name, progress)
        bar.close()
        share.wait()
        code = 0
        if share.first:
            lines = record.join(kept, {item.id: item.source for item in items})
            runner = "ray" if arguments.ray is not None else "torchrun" if share.world > 1 else "local"
            summary = summary_of(lines, kept, time.monotonic() - begin, workers, runner)
            finish(lines)
            record.finish(summary)
            failures.messages += [line["error"] for line in lines if line["status"] == "failed"]
            code = failures.report()
            print(_told(record.table, summary))
        return int(share.collected(code)[0])  # `torchrun` ends all when one fails


def _sourced(items: Sequence[Item], folder: Path) -> list[Item]:
    """With their files as they are called from the folder, unless they are absolute."""
    here = relpath(os.curdir, folder)
    return [item._replace(source=normpath(join(here, item.path))) for item in items]


def _pending(item: Item) -> Line:
    told = {"id": item.id, "path": item.source, "output": item.output}
    return told | {"status": "failed", "error": f"{item.path}: not reached", "again": True}


def _last(item: Item, line: Line | None, owners: Mapping[str, str], folder: Path) -> tuple[Item, Line | None]:
    """An item and the last line of the same file and target; what is there is replaced where it is of others."""
    if line is not None and line["status"] == "failed" and "again" not in line:
        line = None  # it has made nothing
    called = item.source if line is None else line.get("path", "")
    if called != item.source and abspath(join(folder, called)) != abspath(item.path):
        return item._replace(again=True), None
    if item.output and owners.get(item.output, item.id) != item.id:
        return item._replace(again=True), None
    if line is not None and "again" in line:
        return item._replace(again=True), line
    if line is not None and item.output and line.get("output", item.output) != item.output:
        return item, None
    return item, line


def _told(table: Path, summary: Mapping[str, Any]) -> str:
    workers, done, found = summary["workers"], summary["done"], summary["found"]
    by = f"{workers} worker{'s' if workers > 1 else ''}"
    there = f", {found} found there" if found else ""
    if summary["images"] == summary["kept"]:
        return f"{table}: nothing was left to do"
    return (
        f"{table}: {done} of {summary['images'] - summary['kept']} images{there}, {summary['seconds']:.1f} s by {by}: "
        f"{summary['images_per_second']:.2f} images/s, {summary['images_per_second_and_worker']:.2f} a worker"
    )
