"""``bdg-fast fingerprints``: a table of the fingerprints of a collection."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .common import Failures

EXAMPLES = """examples:
  bdg-fast fingerprints photos/ --output table/                   a folder of images and of tar files
  bdg-fast fingerprints 'shards/*.tar' --output table.parquet     tar files as webdataset has them (extra: table)
  bdg-fast fingerprints list.txt --output table/ --project --analyse   33 numbers an image; kind, level, confidence
  torchrun --nproc-per-node 8 -m bdg_fast.cli fingerprints photos/ --output table/   on 8 processors

A list (.txt) has a path on each line, from its own folder. The table is a folder of files of up to --per-part images
each and a manifest. The same command goes on where it stopped; the finished table is that of an uninterrupted run.
Images of the same name are taken for the same. Pictures have at least 32 x 32 pixels.

exit code: 0 done, 1 some images failed (named at the end; the rest is done), 2 bad usage
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "fingerprints",
        help="a table of the fingerprints of a collection, of any size",
        description="A table of the fingerprints of all images, in constant memory. Resumes where it stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="folder, image, .tar, .txt list, or quoted glob")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the table (is made)")
    parser.add_argument(
        "--format", choices=("safetensors", "parquet"), help="default: parquet if --output ends in .parquet"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default float16")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--crop", type=int, metavar="N", help="look at the middle N x N pixels")
    size.add_argument("--max-side", type=int, metavar="N", help="shrink larger pictures (hides noise, compression)")
    parser.add_argument("--project", action="store_true", help="33 coordinates instead of 2048 numbers")
    parser.add_argument("--analyse", action="store_true", help="also kind, level and confidence, as bdg-fast analyse")
    parser.add_argument("--index", type=Path, metavar="FILE", help="index of your own for --project and --analyse")
    parser.add_argument("--per-part", type=int, default=1000, metavar="N", help="images of a file (default 1000)")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="do the I-th of N shares, from 0 (default: as torchrun says)"
    )
    parser.add_argument("--force", action="store_true", help="make all of an existing table anew")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the table, and name the images that failed."""
    import torch.distributed as dist

    from bdg_fast.ranks import Ranks, shares
    from bdg_fast.table import Settings, build

    parquet = arguments.output.suffix.lower() == ".parquet"
    settings = Settings(
        format=arguments.format or ("parquet" if parquet else "safetensors"),
        dtype=arguments.dtype,
        crop=arguments.crop,
        max_side=arguments.max_side,
        project=arguments.project,
        analyse=arguments.analyse,
        per_part=arguments.per_part,
    )
    if arguments.index is not None and not (arguments.project or arguments.analyse):
        raise ValueError(f"--index needs --project or --analyse, got {arguments.index}")
    shard = arguments.shard or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    failures = Failures()
    launched = arguments.shard is None and dist.is_torchelastic_launched()
    with shares() if launched else nullcontext(Ranks()) as processes:
        with tqdm(desc="fingerprints", unit="image", disable=not sys.stderr.isatty()) as bar:
            built = build(
                arguments.inputs,
                arguments.output,
                settings,
                shard=shard,
                index=arguments.index,
                force=arguments.force,
                progress=bar.update,
            )
        failures.messages = built.failures
        kept = f", {built.kept} of them from before" if built.kept else ""
        share = "" if shard[1] == 1 else f" of share {shard[0]}/{shard[1]}"
        state = "" if built.complete else "; the table is finished when all shares are"
        if built.differing:
            state += f"; run again, as they saw other files or settings: {', '.join(map(str, built.differing))}"
        print(f"{arguments.output}: {built.rows} images{share}{kept}{state}")
        return int(max(processes.collected(failures.report())))  # torchrun ends all at the first exit code but 0


def _shard(text: str) -> tuple[int, int]:
    number, slash, world = text.partition("/")
    if not (slash and number.isdecimal() and world.isdecimal() and int(number) < int(world)):
        raise argparse.ArgumentTypeError(f"must be I/N with 0 <= I < N, such as 0/4, got {text!r}")
    return int(number), int(world)
