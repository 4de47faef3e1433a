"""``bdg-fast evaluate``: checkpoints and results of others, measured on test sets and compared."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bdg_fast import __version__
from bdg_fast.backends import BACKENDS, default_device
from bdg_fast.data.pairing import RULES
from bdg_fast.evaluation.cases import Case, collection_cases, paired_cases, photograph_cases
from bdg_fast.evaluation.evaluate import (
    Method,
    Network,
    Row,
    differences,
    folder_scores,
    score,
    values,
)
from bdg_fast.evaluation.measures import COLORS, DEFAULT, SSIMS, Measure, Settings, open_measures
from bdg_fast.evaluation.pictures import Line, compare, extremes
from bdg_fast.evaluation.protocols import PROTOCOLS
from bdg_fast.evaluation.published import PUBLISHED
from bdg_fast.evaluation.reports import Report, as_json, difference_rows, image_rows, markdown, summary_rows
from bdg_fast.evaluation.restoration import KINDS
from bdg_fast.evaluation.statistics import Summary, summarize
from bdg_fast.evaluation.store import Store
from bdg_fast.files import write_atomically
from bdg_fast.restorer import DTYPES

from .common import Failures
from .methods import Made, add_arguments, methods

EXAMPLES = """examples:
  bdg-fast evaluate --protocol cdd11 --root data/CDD-11 --checkpoint model/ --output report/
  bdg-fast evaluate --input rainy/ --target clean/ --checkpoint A=old/ --checkpoint B=new/ --output report/
  bdg-fast evaluate --protocol diffuir-5 --root data/ --kinds rain haze --results PromptIR=theirs/ --output report/
  bdg-fast evaluate --images photos/ --checkpoint small --metrics psnr ssim lpips      degrades clean photographs

The degraded images themselves are always scored, as `input`. With --output the report (report.md, report.json,
images.csv, means.csv, differences.csv, a picture of the best and worst cases of each comparison) is written there, and
the same command goes on where it stopped. Results of others are found by the degraded file's name in DIR/TEST SET,
DIR/DEGRADATION or DIR.

exit code: 0 done, 1 some images failed or metrics were not available (named; the rest is done), 2 bad usage
"""
OWN = "left out: with settings, or a part of the images, of one's own they say nothing"


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure and compare restorations",
        description="Measures checkpoints and folders of results on test sets, and compares them image by image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("what is restored (one of)")
    data.add_argument("--protocol", choices=PROTOCOLS, help="test sets and settings by name, in the folder --root")
    data.add_argument("--root", metavar="DIR", help="folder of the collection; a wrong one is told what it should hold")
    data.add_argument("--input", metavar="DIR", help="degraded images, whose clean ones are in --target")
    data.add_argument("--target", metavar="DIR")
    data.add_argument("--images", metavar="DIR", help="clean photographs, degraded in known ways")
    data.add_argument(
        "--match", choices=("auto", *RULES), default="auto", help="how names of --input and --target match"
    )
    data.add_argument(
        "--kinds", nargs="+", metavar="NAME", help="degradations, of --protocol or --images (default all)"
    )
    data.add_argument(
        "--limit", type=int, metavar="N", help="of at most N clean images of each test set, evenly over them"
    )
    what = parser.add_argument_group("what restores (any number)")
    add_arguments(what)
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="psnr, ssim, or any of pyiqa's: lpips, dists, niqe, musiq, clipiqa, fid",
    )
    how.add_argument("--color", choices=COLORS, help="of PSNR and SSIM (default rgb, or as the protocol has it)")
    how.add_argument("--crop", type=int, metavar="PIXELS", help="cut off each side before measuring (default likewise)")
    how.add_argument("--ssim", choices=SSIMS, help="whose SSIM (default pyiqa's, or as the protocol has it)")
    run_ = parser.add_argument_group("how it runs")
    run_.add_argument("--steps", type=int, help="network evaluations an image (default: as each network was trained)")
    run_.add_argument("--tile", type=int, metavar="PIXELS", help="largest side evaluated at once (default: by memory)")
    run_.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps ...")
    run_.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    run_.add_argument("--backend", choices=BACKENDS, default="auto")
    run_.add_argument("--batch", type=int, default=1, help="most images of one size evaluated together (default 1)")
    run_.add_argument("--seed", type=int, default=0, help="of the restorers' noise and the bootstrap (default 0)")
    run_.add_argument("--output", type=Path, metavar="DIR", help="write the report there (default: print it)")
    run_.add_argument("--save-images", action="store_true", help="keep restored images in --output")
    run_.add_argument(
        "--pictured", type=int, default=3, metavar="N", help="best and worst cases shown (default 3; 0: none)"
    )
    run_.add_argument("--force", action="store_true", help="measure again what is there already")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure every method on every case, and report."""
    for name, least in (("batch", 1), ("steps", 1), ("pictured", 0), ("limit", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if arguments.save_images and arguments.output is None:
        raise ValueError("--save-images needs --output, a folder to keep them in")
    protocol = PROTOCOLS.get(arguments.protocol)
    base = protocol.settings if protocol is not None else Settings()
    given = {name: getattr(arguments, name) for name in ("color", "crop", "ssim")}
    settings = Settings(**{name: getattr(base, name) if value is None else value for name, value in given.items()})
    cases, title, lost = _cases(arguments)
    made = methods(arguments)
    names = arguments.metrics or (DEFAULT if protocol is None else protocol.metrics)
    device = default_device() if arguments.device == "auto" else arguments.device
    measures, missing = open_measures(names, settings, device=device)
    for name, reason in missing.items():
        print(f"bdg-fast: {name} is not available: {reason}", file=sys.stderr)
    if not measures:
        return 1
    failures = Failures("not evaluated")
    failures.messages += lost
    rows, summaries = _evaluate(arguments, title, settings, cases, made, measures, failures)
    own = settings != base or arguments.limit is not None
    steps = "as trained" if arguments.steps is None else arguments.steps
    told = ", ".join(f"{name} {getattr(arguments, name)}" for name in ("seed", "dtype", "backend"))
    report = Report(
        title=f"Evaluation: {arguments.protocol or 'own images'}",
        facts={
            "data": title,
            "images": len(cases),
            "PSNR and SSIM": f"{settings.color}, border {settings.crop}, SSIM of {settings.ssim}",
            **({"settings from": protocol.source} if protocol is not None else {}),
            **({"published numbers": OWN} if protocol is not None and own else {}),
            "restorers": f"steps {steps}, {told}",
            "bdg_fast": __version__,
        },
        metrics={measure.name: measure.lower_better for measure in measures},
        rows=rows,
        summaries=summaries,
        missing=missing,
        failures=failures.messages,
        published=() if own else PUBLISHED.get(arguments.protocol, ()),
        whole=arguments.kinds is None,
        seed=arguments.seed,
    )
    if arguments.output is None:
        print(markdown(report), end="")
    else:
        _write(arguments.output, report)
        _draw(arguments, report, [one.method for one in made], measures)
        print(f"{arguments.output / 'report.md'}: {len(made)} methods, {len(cases)} images")
    return max(failures.report(), 1 if missing else 0)


def _evaluate(
    arguments: argparse.Namespace,
    title: str,
    settings: Settings,
    cases: Sequence[Case],
    made: Sequence[Made],
    measures: Sequence[Measure],
    failures: Failures,
) -> tuple[dict[str, list[Row]], dict[tuple[str, str], Sequence[Summary]]]:
    """Rows of every method, and summaries of every method and metric."""
    rows: dict[str, list[Row]] = {}
    summaries: dict[tuple[str, str], Sequence[Summary]] = {}
    folders = any(measure.compute is None for measure in measures)
    with ExitStack() as leaving:
        place = arguments.output
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        elif folders:
            place = Path(leaving.enter_context(tempfile.TemporaryDirectory()))
        key = {
            "bdg_fast": __version__,
            "data": title,
            "metrics": [one.name for one in measures],
            "settings": [settings.color, settings.crop, settings.ssim],
            **{name: getattr(arguments, name) for name in ("steps", "tile", "dtype", "backend", "seed")},
        }
        store = Store(place, key, images=folders or arguments.save_images, force=arguments.force)
        for one in made:
            name = one.method.name
            rows[name] = _measure(one.method, one.identity, cases, measures, store, failures)
            for measure in measures:
                found = _summaries(measure, name, rows[name], store, arguments.seed, failures)
                summaries[name, measure.name] = found
    return rows, summaries


def _summaries(
    measure: Measure, method: str, rows: Sequence[Row], store: Store, seed: int, failures: Failures
) -> Sequence[Summary]:
    if measure.compute is not None:
        return summarize(values(rows, measure.name), seed)
    try:
        with store.folders(method, rows) as folders:
            return folder_scores(measure, folders)
    except Exception as error:  # of pyiqa, of any type: a single image has no covariance
        failures.messages.append(f"{method}: {measure.name}: {str(error) or type(error).__name__}")
        return []


def _cases(arguments: argparse.Namespace) -> tuple[list[Case], str, list[str]]:
    """What is restored, what to call it, and files without a clean one."""
    ways = {
        "--protocol and --root": (arguments.protocol, arguments.root),
        "--input and --target": (arguments.input, arguments.target),
        "--images": (arguments.images,),
    }
    chosen = [way for way, options in ways.items() if any(options)]
    if len(chosen) != 1 or not all(ways[chosen[0]]):
        raise ValueError(f"give one of {', '.join(ways)}")
    lost: list[str] = []
    if arguments.protocol:
        protocol = PROTOCOLS[arguments.protocol]
        cases, lost = collection_cases(
            protocol.layout,
            arguments.root,
            factor=protocol.factor,
            kinds=arguments.kinds or protocol.kinds,
            preparation=protocol.preparation,
        )
        title = f"{protocol.title}, in {arguments.root}"
    elif arguments.input:
        cases, lost = paired_cases(arguments.input, arguments.target, match=arguments.match)
        title = f"{arguments.input} against {arguments.target}"
    else:
        unknown = [kind for kind in arguments.kinds or () if kind not in KINDS]
        if unknown:
            raise ValueError(f"--kinds must be among {', '.join(KINDS)}, got {', '.join(unknown)}")
        cases = photograph_cases(arguments.images, kinds=arguments.kinds or KINDS)
        title = f"photographs of {arguments.images}, degraded"
    if arguments.limit is not None:
        cases = _some(cases, arguments.limit)
    return cases, title, lost


def _some(cases: Sequence[Case], limit: int) -> list[Case]:
    """Those of ``limit`` clean images of each test set, evenly over their names."""
    scenes: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        scenes.setdefault((case.kind, case.set), []).append(case.scene)
    chosen = {}
    for key, found in scenes.items():
        names = sorted(set(found))
        count = min(limit, len(names))
        chosen[key] = {names[index * len(names) // count] for index in range(count)}
    return [case for case in cases if case.scene in chosen[case.kind, case.set]]


def _measure(
    method: Method,
    made_of: object,
    cases: Sequence[Case],
    measures: Sequence[Measure],
    store: Store,
    failures: Failures,
) -> list[Row]:
    rows = store.known(method.name, made_of, cases)
    known = {row.case.key for row in rows}
    waiting = [case for case in cases if case.key not in known]
    if known:
        print(f"{method.name}: {len(known)} of {len(cases)} are there already; --force measures them again")
    if waiting and isinstance(method, Network):
        try:
            method.open()
        except Exception as error:  # files of weights fail in any way; other methods are measured nevertheless
            failures.messages.append(f"{method.name}: {str(error) or type(error).__name__}")
            waiting = []
    bar = tqdm(total=len(waiting), desc=method.name, unit="image", disable=not sys.stderr.isatty())
    try:
        for row, failed in score(method, waiting, measures, store.keeper(method.name)) if waiting else ():
            bar.update()
            failures.messages += [f"{method.name}: {message}" for message in failed]
            if row is not None:
                rows.append(row)
                store.save(method.name, made_of, rows, now=False)
    finally:  # of an interrupted run too
        bar.close()
        store.save(method.name, made_of, rows)
        if isinstance(method, Network):
            method.close()
    order = {case.key: number for number, case in enumerate(cases)}
    return sorted(rows, key=lambda row: order[row.case.key])


def _write(folder: Path, report: Report) -> None:
    texts = {"report.md": markdown(report), "report.json": as_json(report)}
    tables = {"images.csv": image_rows, "means.csv": summary_rows, "differences.csv": difference_rows}
    for name, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows(report))
        texts[name] = text.getvalue()
    for name, content in texts.items():
        write_atomically(folder / name, lambda file, content=content: file.write_text(content, encoding="utf-8"))  # type: ignore[misc]


def _draw(
    arguments: argparse.Namespace, report: Report, methods: Sequence[Method], measures: Sequence[Measure]
) -> None:
    """The best and worst cases of each pair, by the first metric of single images."""
    measure = next((one for one in measures if one.compute is not None), None)
    if measure is None or arguments.pictured == 0:
        return
    by_name = {method.name: method for method in methods}
    for before, after in report.pairs():
        found = differences(report.rows[before], report.rows[after], measure.name)
        found = [one for one in found if one[0].counted]
        best, worst = extremes(found, arguments.pictured, lower_better=measure.lower_better)
        lines = [
            Line(case, f"{label}: {case.kind} {case.name}: {measure.name} {value:+.4g}")
            for label, some in (("best", best), ("worst", worst))
            for case, value in some
        ]
        if lines:
            picture = compare([by_name[before], by_name[after]], lines)
            write_atomically(arguments.output / f"{after}_minus_{before}.png", picture.save)
    for method in methods:
        if isinstance(method, Network):
            method.close()
