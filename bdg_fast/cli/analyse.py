"""``bdg-fast analyse``: how image files are degraded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from bdg_fast import __version__
from bdg_fast.analysis import Analyser, Report, plot_report
from bdg_fast.data.images import list_images, open_image
from bdg_fast.files import about, write_atomically

from .common import PICTURES, Failures, writable

EXAMPLES = """examples:
  bdg-fast analyse photo.jpg                              a table: kind, level, confidence
  bdg-fast analyse photos/ --json reports.json            all reports in one file
  bdg-fast analyse photo.jpg --plot report.png            a picture of the report
  bdg-fast analyse photos/ --output reports/              NAME.json and NAME.png of each image

Kinds: clean, noise, blur, rain, snow, haze, lowlight, jpeg; unknown is what is far from all of them. docs/analysis.md
tells how often this is right, and for which pictures it is not.

exit code: 0 done, 1 some files failed (named at the end; the rest is done), 2 bad usage
"""


class Job(NamedTuple):
    """An image, and where its report and picture go, if anywhere."""

    source: Path
    report: Path | None
    pictures: tuple[Path, ...]


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "analyse",
        help="how images are degraded: kind, level, confidence",
        description="Tells how each image is degraded, and how strongly, from its co-occurrence fingerprint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="IMAGE", help="image file, folder (with all below it), or quoted glob"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all reports to a .json file")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG|DIR", help="picture of the report; a folder (is made) gets NAME.png of each"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder (is made) for NAME.json and NAME.png")
    parser.add_argument(
        "--index", type=Path, metavar="FILE", help="index and classifier of your own (default: those that come along)"
    )
    parser.add_argument("--force", action="store_true", help="replace existing outputs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Analyse, print a table, write, and name the files that failed."""
    if arguments.json is not None:
        writable("--json", arguments.json, (".json",), arguments.force)
    if arguments.plot is not None or arguments.output is not None:
        from bdg_fast.evaluation.figures import require_matplotlib

        require_matplotlib()
    jobs = plan(arguments.paths, arguments.plot, arguments.output, arguments.force, arguments.json)
    analyser = Analyser.from_pretrained(arguments.index)
    failures = Failures("not analysed")
    done: list[tuple[Path, Report]] = []
    width = max(len("image"), *(len(str(job.source)) for job in jobs))
    for job in tqdm(jobs, desc="analyse", unit="image", disable=not (sys.stderr.isatty() and len(jobs) > 1)):
        try:
            image = open_image(job.source)
            report = analyser(image)
        except Exception as error:  # decoders raise many types; one file must not end the run
            failures.messages.append(about(job.source, error))
            continue
        if not done:
            tqdm.write(f"{'image':{width}}  {'kind':9}{'level':>7}  {'confidence':>10}  {'distance':>8}  unit")
        tqdm.write(f"{job.source!s:{width}}  {_row(report)}")
        done.append((job.source, report))
        for path, write in _outputs(job, image, report):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, write)
            except Exception as error:  # as above
                failures.messages.append(f"{path}: not written: {error}")
    if arguments.json is not None and done:
        reports = [_plain(source, report) for source, report in done]
        write_atomically(arguments.json, partial(_write_json, value={"bdg_fast": __version__, "reports": reports}))
        print(f"{arguments.json}: {len(done)} of {len(jobs)} images")
    return failures.report()


def plan(paths: list[str], plot: Path | None, output: Path | None, force: bool, reports: Path | None) -> list[Job]:
    """What is written of which image; folders keep their layout.

    Raises:
        ValueError, OSError: an output is there already, would be written twice, or is of an unknown kind.
    """
    one_picture = plot is not None and plot.suffix.lower() in PICTURES and not plot.is_dir()
    if plot is not None and one_picture:
        writable("--plot", plot, PICTURES, force)
    for option, folder in (("--plot", None if one_picture else plot), ("--output", output)):
        if folder is not None and (folder.is_file() or folder.suffix.lower() in (".jpg", ".jpeg", ".json")):
            ends = f", or a file that ends in {' or '.join(PICTURES)}" if option == "--plot" else ""
            raise ValueError(f"{option} must name a folder{ends}, got {folder}")
    folders = [folder for folder in (None if one_picture else plot, output) if folder is not None]
    jobs: dict[Path, Job] = {}
    for argument in paths:
        root = Path(argument) if Path(argument).is_dir() else None
        for file in list_images([argument]):
            if root is not None and any(file.resolve().is_relative_to(folder.resolve()) for folder in folders):
                continue  # earlier results are no inputs
            below = file.relative_to(root) if root else Path(file.name)
            pictures = [plot] if plot is not None and one_picture else []
            if plot is not None and not one_picture:
                pictures.append(plot / below.with_suffix(".png"))
            if output is not None:
                pictures.append(output / below.with_suffix(".png"))
            report = None if output is None else output / below.with_suffix(".json")
            jobs.setdefault(file, Job(file, report, tuple(pictures)))
    if not jobs:
        raise ValueError(f"IMAGE names no image outside of {' and '.join(map(str, folders))}, where results go")
    if one_picture and len(jobs) > 1:
        raise ValueError(f"--plot must be a folder for several images ({len(jobs)}), got {plot}")
    sources, written = {file.resolve() for file in jobs}, dict[Path, Path]()
    if reports is not None:
        written[reports.resolve()] = Path("--json")
    for job in jobs.values():
        for path in (*job.pictures, *((job.report,) if job.report else ())):
            if path.resolve() in sources:
                raise ValueError(f"outputs must not replace an input: {path}")
            if path.resolve() in written:
                raise ValueError(f"{path} would be written twice: of {written[path.resolve()]} and of {job.source}")
            if path.exists() and not force:
                raise FileExistsError(f"{path} exists; --force replaces it")
            written[path.resolve()] = job.source
    return list(jobs.values())


def _outputs(job: Job, image: Image.Image, report: Report) -> list[tuple[Path, Callable[[Path], object]]]:
    found: list[tuple[Path, Callable[[Path], object]]] = []
    if job.report is not None:
        found.append((job.report, partial(_write_json, value=_plain(job.source, report))))
    found += [(picture, partial(plot_report, image, report)) for picture in job.pictures]
    return found


def _row(report: Report) -> str:
    level = "" if report.level is None else f"{report.level:.3g}"
    row = f"{report.kind:9}{level:>7}  {report.confidence:10.2f}  {report.distance:8.3f}  {report.unit}"
    return row.rstrip()


def _plain(source: Path, report: Report) -> dict[str, Any]:
    return {"image": str(source), "summary": report.summary(), **report.as_dict()}


def _write_json(path: Path, value: Any) -> None:
    # surrogates of file names that are not UTF-8 are escaped, as all that is not ASCII
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")
