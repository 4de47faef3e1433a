"""``bdg-fast train``: train a network by a file of settings."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  bdg-fast train --config configs/demo.yaml
  bdg-fast train --config configs/paper.yaml data.root=photos/ output=runs/first
  bdg-fast train --config configs/demo.yaml stages.bridging.losses.bridging=0 output=runs/without-bridging
  torchrun --nproc-per-node 8 -m bdg_fast.cli train --config configs/paper.yaml data.root=photos/
  accelerate launch --multi_gpu --num_processes 8 -m bdg_fast.cli train --config configs/paper.yaml data.root=photos/

Settings, such as data.root, device, dtype=bfloat16, compile=true, parallel=fsdp or stages.NAME.steps, are those of the
file unless given; --check prints them all. What each means: docs/training.md, help(bdg_fast.training.TrainConfig) and,
of a stage, help(bdg_fast.training.config_stage.Stage).

A run whose folder holds checkpoints goes on from the newest, so the same command continues what was stopped. The folder
gets the settings as they were understood (config.json), log.jsonl, samples/, checkpoints/, best/ and network/: the last
two are what `bdg-fast restore --checkpoint` takes.

SIGTERM and Ctrl-C save after the step that a run is in; a second one ends it at once.

exit code: 0 done, 2 bad usage or a run that had to stop (the message says why), 143 saved and stopped by SIGTERM,
130 by Ctrl-C
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on a folder of photographs",
        description="Trains a network in stages: generation, bridging, restoration.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, .yaml or .json")
    parser.add_argument("settings", nargs="*", metavar="KEY.SUB=VALUE", help="settings that replace those of the file")
    parser.add_argument("--check", action="store_true", help="check and print the settings, train nothing")
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on with a run although its settings have changed"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then train."""
    from bdg_fast.training import Trainer, load_config
    from bdg_fast.training.launchers import unread
    from bdg_fast.training.settings import as_dict
    from bdg_fast.training.signals import stop_on_signals

    config = load_config(arguments.config, arguments.settings)
    if arguments.check:
        print(json.dumps(as_dict(config), indent=1))
        return 0
    first = os.environ.get("RANK", "0") == "0"  # one of several processes tells
    for line in unread(os.environ, config) if first else ():
        print(f"bdg-fast: {line}", file=sys.stderr)
    trainer = Trainer(config, allow_changes=arguments.allow_changes)
    with stop_on_signals() as stop:
        result = trainer.run(stop=stop)
    if stop.agreed and not result.finished:
        if first:
            name = signal.Signals(stop.agreed).name
            told = f"{name}: {config.output} is saved after step {result.step}; the same command goes on from there"
            print(f"bdg-fast: {told}", file=sys.stderr)
        return 128 + stop.agreed
    if not first:
        return 0
    skipped = f", {result.skipped} of them skipped" if result.skipped else ""
    skipped += f", {result.unreadable} reads of images failed (named above)" if result.unreadable else ""
    network, kind = Path(config.output, "network"), str(as_dict(config)["network"].get("kind", ""))
    named = f" --backbone {kind}" if ":" in kind else ""
    print(f"{config.output}: {result.step} steps{skipped}; bdg-fast restore --checkpoint {network}{named}")
    return 0
