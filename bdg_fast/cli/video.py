"""The videos of ``bdg-fast restore``: clip by clip, each in parts that an interrupted run goes on behind."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bdg_fast.files import about
from bdg_fast.restorer import Restorer
from bdg_fast.video import CODECS, CONTAINERS, restore_video

from .common import Failures

STEADY = 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what concerns videos alone."""
    group = parser.add_argument_group("videos (extra: video)")
    group.add_argument(
        "--codec", choices=CODECS, help="default: h264, or vp9 in .webm, where it keeps the pixel format"
    )
    group.add_argument("--crf", type=int, metavar="N", help="quality, smaller is better (default: 17 for h264)")
    group.add_argument(
        "--steady",
        type=float,
        default=STEADY,
        metavar="W",
        help=f"weight of earlier frames in what a conditional network is told, 0 to below 1 (default {STEADY})",
    )


def check(arguments: argparse.Namespace, targets: Sequence[Path]) -> None:
    """Before any work.

    Raises:
        ValueError: an option that no clip, or one of ``targets``, allows.
    """
    if not 0 <= arguments.steady < 1:
        raise ValueError(f"--steady must be at least 0 and below 1, got {arguments.steady}")
    for target in targets:
        known = CONTAINERS[target.suffix.lower()]
        if arguments.codec is not None and arguments.codec not in known:
            raise ValueError(f"--codec must be one of {', '.join(known)} for {target}, got {arguments.codec}")
    worst = CODECS[arguments.codec or "vp9"].worst
    if arguments.crf is not None and not 0 <= arguments.crf <= worst:
        raise ValueError(f"--crf must be between 0 and {worst}, got {arguments.crf}")
    if arguments.crf is not None and arguments.codec is not None and CODECS[arguments.codec].crf is None:
        raise ValueError(f"--crf goes without --codec {arguments.codec}, which is lossless")


def restore_videos(
    arguments: argparse.Namespace, clips: Sequence[tuple[Path, Path]], restorer: Restorer, failures: Failures
) -> None:
    """Restore each source to its target; those that fail, or are read in part, are told."""
    begin, done, frames = time.monotonic(), 0, 0
    for source, target in clips:
        bar = tqdm(desc=source.name, unit="frame", disable=not sys.stderr.isatty())

        def progress(count: int, total: int, bar: tqdm = bar) -> None:
            nonlocal frames
            if bar.total is None:  # at first: what an earlier run has done
                bar.total, bar.initial, bar.n = total, count, count
            frames += count - bar.n
            bar.update(count - bar.n)
            bar.n = count  # also of a bar that is not shown

        try:
            found = restore_video(
                restorer,
                source,
                target,
                codec=arguments.codec,
                crf=arguments.crf,
                batch=arguments.batch,
                steady=arguments.steady,
                progress=progress,
            )
        except Exception as error:  # as of pictures: one file must not end the run
            failures.messages.append(about(source, error))
            continue
        finally:
            bar.close()
        done += 1
        for change in found.changed:
            print(f"bdg-fast: {target}: {change}", file=sys.stderr)
        if found.trouble:
            failures.messages.append(f"{source}, in part; the rest is in {target}: {', '.join(found.trouble)}")
    speed = frames / max(time.monotonic() - begin, 1e-9)
    print(f"{arguments.output}: {done} of {len(clips)} videos, {frames} frames, {speed:.2f} frames/s")
