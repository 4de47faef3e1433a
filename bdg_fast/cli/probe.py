"""``bdg-fast probe``: how well fingerprints tell degradations apart, on your photographs."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bdg_fast.data.images import as_unit_rgb, list_images
from bdg_fast.evaluation.probe import TASKS, Score, read_sources, run_probe, split_by_source, tune
from bdg_fast.files import write_atomically

from .common import PICTURES, Failures, read_all, writable

EXAMPLES = """examples:
  bdg-fast probe --images photos/                          the table
  bdg-fast probe --images photos/ --plot probe.png --output probe.csv
  bdg-fast probe --images photos/ --tune                   choose the fingerprint's settings

Photographs of one source never stand on both sides. The source is the original picture that the manifest names
(columns crop or name, source_package, source_file), or else the file name up to a suffix _s<scale>_<x>_<y>.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "probe",
        help="accuracy of representations at telling degradations apart",
        description="k-nearest-neighbour accuracy on degradation type and level (the paper's Table 1): degrades clean "
        "photographs in known ways and measures how often each representation tells which.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="folder of clean photographs, which are degraded"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="CSV",
        help="their sources; default DIR/manifest.csv or DIR_manifest.csv, if there and about them",
    )
    parser.add_argument(
        "--by-package",
        action="store_true",
        help="stricter: the source is the whole collection, the manifest's source_package",
    )
    parser.add_argument("--train", type=int, default=300, help="training photographs (default 300)")
    parser.add_argument("--test", type=int, default=150, help="test photographs (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the degradations (default 0)")
    parser.add_argument("--k", type=int, default=5, help="neighbours that vote (default 5)")
    parser.add_argument(
        "--tune", action="store_true", help="cross-validate the fingerprint's settings on the training photographs only"
    )
    parser.add_argument("--output", type=Path, metavar="CSV", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it")
    parser.add_argument("--force", action="store_true", help="replace existing outputs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Split, degrade, represent, classify; name the files that failed."""
    for name in ("train", "test", "k"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.output is not None:
        writable("--output", arguments.output, (".csv",), arguments.force)
    if arguments.plot is not None:
        if arguments.tune:
            raise ValueError("--plot draws the table of representations: it does not go with --tune")
        writable("--plot", arguments.plot, PICTURES, arguments.force)
        from bdg_fast.evaluation.figures import require_matplotlib

        require_matplotlib()
    sources = _sources(list_images([arguments.images]), arguments)
    split = split_by_source(sources, arguments.train, arguments.test, arguments.seed)
    failures = Failures()
    train = {path: as_unit_rgb(image) for path, image in read_all(split.train, failures, "train")}
    if not train:
        print("bdg-fast: no training photograph could be read", file=sys.stderr)
        return failures.report()
    if arguments.tune:
        print(f"{len(train)} training photographs; the test photographs are not read\n")
        results = tune(list(train.values()), [sources[path] for path in train], arguments.seed, arguments.k)
        print("cross-validated accuracy in %, whole sources to a fold; what differs from the default settings:\n")
        print(f"| settings | {' | '.join(TASKS)} |\n|---|{'---|' * len(TASKS)}")
        for candidate, accuracy in results:
            print(f"| {candidate} | " + " | ".join(f"{100 * accuracy[task]:.1f}" for task in TASKS) + " |")
        print(f"\nbest: {results[0][0]!r}")
        if arguments.output is not None:
            header = ["settings", *TASKS]
            found = [[str(candidate), *(f"{accuracy[task]:.4f}" for task in TASKS)] for candidate, accuracy in results]
            write_atomically(arguments.output, lambda file: _write_csv(file, [header, *found]))
        return failures.report()
    test: dict[Path, Tensor] = {p: as_unit_rgb(image) for p, image in read_all(split.test, failures, "test")}
    if not test:
        print("bdg-fast: no test photograph could be read", file=sys.stderr)
        return failures.report()
    test_sources = [sources[path] for path in test]
    train_sources = {sources[path] for path in train}
    print(
        f"train: {len(train)} photographs of {len(train_sources)} sources; "
        f"test: {len(test)} of {len(set(test_sources))} other sources; k = {arguments.k}, seed = {arguments.seed}"
    )
    if len(train) < arguments.train or len(test) < arguments.test:
        print(f"(asked for {arguments.train} and {arguments.test}: there are no more)")
    print()
    scores = run_probe(train.values(), test.values(), test_sources, arguments.seed, arguments.k)
    print(_table(scores))
    if arguments.output is not None:
        rows = [["representation", "task", "accuracy", "low", "high"]]
        rows += [[s.representation, s.task, *(f"{v:.4f}" for v in (s.accuracy, s.low, s.high))] for s in scores]
        write_atomically(arguments.output, lambda file: _write_csv(file, rows))
    if arguments.plot is not None:
        from bdg_fast.evaluation.figures import plot_scores

        write_atomically(arguments.plot, lambda file: plot_scores(scores, file))
    return failures.report()


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _sources(paths: Sequence[Path], arguments: argparse.Namespace) -> dict[Path, str]:
    """The source of each photograph; a manifest that was only found, not named, may turn out to be another's."""
    if arguments.manifest is not None:
        return read_sources(paths, arguments.manifest, arguments.by_package)
    folder = Path(arguments.images).resolve()
    for manifest in (folder / "manifest.csv", folder.with_name(f"{folder.name}_manifest.csv")):
        if manifest.is_file():
            try:
                return read_sources(paths, manifest, arguments.by_package)
            except (ValueError, OSError) as error:
                print(f"bdg-fast: ignored: {error}; --manifest names one", file=sys.stderr)
    if arguments.by_package:
        raise ValueError("--by-package needs a manifest that names the collections; see --help")
    return read_sources(paths, None)


def _table(scores: Sequence[Score]) -> str:
    lines = [
        "accuracy in % with 95% confidence interval",
        "",
        "| representation | " + " | ".join(TASKS) + " |",
        "|---|" + "---|" * len(TASKS),
    ]
    for name in dict.fromkeys(score.representation for score in scores):
        cells = [
            f"{100 * s.accuracy:.1f} ({100 * s.low:.1f}-{100 * s.high:.1f})" for s in scores if s.representation == name
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
