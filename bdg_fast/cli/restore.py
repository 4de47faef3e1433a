"""``bdg-fast restore``: restored pictures and videos of files and folders."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from bdg_fast.backends import BACKENDS, default_device
from bdg_fast.data.convert import eight_bits, shown
from bdg_fast.data.images import EXTENSIONS, list_images, open_image, turn_of
from bdg_fast.files import about, write_atomically
from bdg_fast.memory import keep_freed_memory
from bdg_fast.restorer import DTYPES, Restorer
from bdg_fast.video import CONTAINERS, is_video
from bdg_fast.video.formats import READ_ONLY, VIDEOS

from . import manifests, video
from .common import Failures

EXAMPLES = """examples:
  bdg-fast restore hazy.jpg clear.jpg                           with the small network that comes along
  bdg-fast restore rainy.jpg clear.jpg --checkpoint model-300.pt
  bdg-fast restore photos/ restored/ --checkpoint model/        a folder and all below it
  bdg-fast restore 'photos/*.png' restored/ --checkpoint model/ --compare
  bdg-fast restore clip.mp4 clear.mp4                           frame by frame; sound and subtitles are copied
  bdg-fast restore --manifest files.jsonl --output-dir restored/        a list; on a cluster: docs/howto/cluster.md

A checkpoint is a folder that `UNet.save_pretrained` wrote, or an official DiffUIR or RDDM file. Outputs that exist are
skipped, so that an interrupted run goes on where it stopped, within a video too (OUT.parts/ holds what it has);
--compare adds the comparisons that pictures lack. Of hidden files in a folder (.name) none is taken.

exit code: 0 done, 1 some files failed (named at the end; the rest is done), 2 bad usage
"""
WRITERS, GPU_WRITERS = 2, min(16, os.cpu_count() or 1)
"""Threads that encode and write pictures behind the network: on the same processors, or on a GPU."""
JPEG = {"quality": 95, "subsampling": 0}
WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm")
WITH_16_BITS = (".png", ".tif", ".tiff", ".pgm", ".ppm")
WITH_EXIF = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
# PNG: a quarter of the time of Pillow's level 6, which a GPU would wait for, and 5 to 21 % more bytes
QUALITY = {".jpg": JPEG, ".jpeg": JPEG, ".webp": {"quality": 95}, ".png": {"compress_level": 2}}
BEHIND_BYTES = 1 << 29
"""Of pictures that wait to be written, but for one."""


class Job(NamedTuple):
    """A file to restore."""

    source: Path
    target: Path

    @property
    def moves(self) -> bool:
        """Whether it is a video."""
        return self.target.suffix.lower() in CONTAINERS

    @property
    def compared(self) -> Path:
        """Where ``--compare`` shows it before and after."""
        return self.target.with_name(f"{self.target.stem}_compare.png")


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "restore",
        help="restore degraded images and videos",
        description="Restores images and videos with a trained network.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inputs = parser.add_argument(
        "inputs", nargs="+", metavar="IN", help="image or video, folder (and all below), or quoted glob"
    )
    output = parser.add_argument("output", metavar="OUT", help="folder; for a single file also a file name")
    parser.add_argument("--checkpoint", metavar="PATH", help="trained weights (default: what comes along)")
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="class of a checkpoint's network that is not ours")
    parser.add_argument("--vae", metavar="PATH", help="of a network of latents, if its VAE is not where it was")
    parser.add_argument("--steps", type=int, help="network evaluations a picture (default: as the network was trained)")
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="largest side evaluated at once (default: by memory)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps ...")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto (default): bfloat16 where it is native"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="how the network is evaluated: auto (default) takes what is fastest; a first compiled run takes minutes",
    )
    parser.add_argument("--batch", type=int, default=1, help="most pictures of one size evaluated together (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--compare", action="store_true", help="also write NAME_compare.png: before and after")
    parser.add_argument("--force", action="store_true", help="restore again what is there already")
    video.add_arguments(parser)
    group = manifests.add_arguments(parser, 64, (inputs, output))
    group.add_argument("--output-dir", type=Path, metavar="DIR", help="where results of a manifest go (is made)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Restore, write, and name the files that failed."""
    if arguments.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {arguments.batch}")
    manifests.check(arguments, ("inputs", "output"), "output_dir")
    if arguments.manifest is not None:
        from . import manifest_restore

        return manifest_restore.run(arguments)
    jobs = plan(arguments.inputs, arguments.output, arguments.compare)
    video.check(arguments, [job.target for job in jobs if job.moves])
    waiting = [job for job in jobs if arguments.force or not job.target.exists()]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} are there already; --force restores them again")
    # comparisons that exist may be anybody's
    shown = [job for job in jobs if arguments.compare and not job.moves]
    compare = [job for job in shown if arguments.force or not job.compared.exists()]
    kept = len(shown) - len(compare)
    if kept:
        print(f"{kept} of {len(shown)} comparisons are there already; --force writes them again")
    failures = Failures("not restored")
    device = default_device() if arguments.device == "auto" else _device(arguments.device)
    count = WRITERS if device.startswith(("cpu", "mps")) else GPU_WRITERS
    with ThreadPoolExecutor(count) as writers:
        late = [job for job in compare if job.target.exists() and not arguments.force]
        written = _settle([(job.compared, writers.submit(write_comparison, job)) for job in late], failures, keep=0)
        if late:
            print(f"{written} of {len(late)} comparisons added to what was there")
        if waiting:
            restorer = _load(arguments)
            make_folders(waiting)
        if pictures := [job for job in waiting if not job.moves]:
            _restore(arguments, restorer, pictures, set(compare), writers, count + arguments.batch, failures)
        if clips := [(job.source, job.target) for job in waiting if job.moves]:
            video.restore_videos(arguments, clips, restorer, failures)
    return failures.report()


def _load(arguments: argparse.Namespace) -> Restorer:
    keep_freed_memory()
    return Restorer.from_pretrained(arguments.checkpoint, **options_of(arguments))


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of :meth:`Restorer.from_pretrained`."""
    options = {
        name: getattr(arguments, name) for name in ("steps", "backbone", "dtype", "backend", "tile", "seed", "vae")
    }
    return options | {"device": _device(arguments.device)}


def _restore(
    arguments: argparse.Namespace,
    restorer: Restorer,
    waiting: list[Job],
    compare: set[Job],
    writers: ThreadPoolExecutor,
    most: int,
    failures: Failures,
) -> None:
    """``most``: pictures that may wait to be written."""
    begin, done = time.monotonic(), 0
    writing: list[tuple[Path, Future[None]]] = []
    opaque: list[Path] = []
    bar = tqdm(total=len(waiting), desc="restore", unit="image", disable=not sys.stderr.isatty())
    for restored in restorer.stream((job.source for job in waiting), batch=arguments.batch):
        bar.update()
        job = waiting[restored.number]
        if restored.error is not None:
            failures.messages.append(about(job.source, restored.error))
            continue
        if job.target.suffix.lower() in WITHOUT_ALPHA and has_alpha(restored.image):
            opaque.append(job.target)
        writing.append((job.target, writers.submit(write_picture, job, restored.image, job in compare)))
        done += _settle(writing, failures, keep=behind(most, restored.image))
    done += _settle(writing, failures, keep=0)
    bar.close()
    if opaque:
        print(f"bdg-fast: transparency lost in {len(opaque)}, as {opaque[0]} has a format without", file=sys.stderr)
    seconds = time.monotonic() - begin
    where = waiting[0].target if len(waiting) == 1 else arguments.output
    print(f"{where}: {done} of {len(waiting)} images, {done / max(seconds, 1e-9):.2f} images/s")


def plan(inputs: list[str], out: str, compare: bool = False) -> list[Job]:
    """Which file becomes which; folders keep their layout.

    Raises:
        ValueError: an output would replace an input, two inputs would become one output, or an output's name tells no
            format to write.
    """
    output = Path(out)
    folder = output.is_dir() or out.endswith(("/", os.sep))
    jobs = []
    for argument in inputs:
        files = list_images([argument], (*EXTENSIONS, *VIDEOS))
        root = Path(argument) if Path(argument).is_dir() else None
        if root is not None and root.resolve() in output.resolve().parents:  # earlier results are no inputs
            files = [file for file in files if not file.resolve().is_relative_to(output.resolve())]
        if root is None and len(inputs) == len(files) == 1 and output.suffix and not folder:
            jobs.append(Job(files[0], output))
        else:
            jobs += [Job(file, _written_as(output / (file.relative_to(root) if root else file.name))) for file in files]
    if not jobs:
        raise ValueError(f"IN holds no image or video outside of OUT, {output}")
    jobs, formats = list(dict.fromkeys(jobs)), (*EXTENSIONS, *CONTAINERS)
    if jobs[0].target != output and (output.is_file() or (output.suffix.lower() in formats and not folder)):
        raise ValueError(f"OUT must be a folder{' for several images' if len(jobs) > 1 else ''}, got {output}")
    check_targets(jobs, output, compare)
    return jobs


def check_targets(jobs: list[Job], output: Path, compare: bool) -> None:
    """As :func:`plan`."""
    formats = (*EXTENSIONS, *CONTAINERS)
    sources = {os.path.realpath(job.source) for job in jobs}
    targets: dict[str, Path] = {}
    for job in jobs:
        known = CONTAINERS if is_video(job.source) else formats
        if job.target.suffix.lower() not in known:
            told = "end in / to be a folder, or " if job.target == output else ""
            raise ValueError(f"OUT must {told}tell a format by {', '.join(known)}, got {job.target}")
        for path in (job.target, job.compared) if compare and not job.moves else (job.target,):
            target = os.path.realpath(path)
            if target in sources:
                raise ValueError(f"OUT must not replace an input: {path}")
            if target in targets:
                raise ValueError(f"OUT would hold {path} twice: of {targets[target]} and of {job.source}")
            targets[target] = job.source


def _written_as(path: Path) -> Path:
    return path.with_suffix(".mkv") if path.suffix.lower() in READ_ONLY else path


def make_folders(jobs: list[Job]) -> None:
    """Before any work, so that what cannot be written to is told once."""
    for folder in dict.fromkeys(job.target.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"OUT must be a folder, or one that can be made: {error}") from None
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"OUT must be writable, got {folder}")


def _device(text: str) -> str:
    try:
        return text if text == "auto" else str(torch.device(text))
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:N, mps or the like, got {text!r}") from None


def _settle(pending: list[tuple[Path, Future[None]]], failures: Failures, keep: int) -> int:
    """Wait for all but ``keep`` writes; returns how many succeeded."""
    succeeded = 0
    while len(pending) > keep:
        path, future = pending.pop(0)
        try:
            future.result()
            succeeded += 1
        except Exception as error:  # as when reading
            failures.messages.append(f"{path}: not written: {error}")
    return succeeded


def write_picture(job: Job, restored: Image.Image, compare: bool) -> None:
    """Write what was restored, as its target's format can hold it, and before it what ``--compare`` shows."""
    suffix = job.target.suffix.lower()
    options: dict[str, Any] = dict(QUALITY.get(suffix, {}))
    options |= {str(key): value for key, value in restored.info.items()}
    if suffix in WITHOUT_ALPHA and restored.mode in ("RGBA", "LA"):
        restored = restored.convert(restored.mode.removesuffix("A"))
    if suffix not in WITH_16_BITS:  # Pillow clips them instead
        restored = eight_bits(restored)
    if suffix not in WITH_EXIF:  # the file could not tell which way is up
        turn = turn_of(restored)
        restored = restored.copy() if turn is None else restored.transpose(turn)
        restored.info.pop("exif", None)
        options.pop("exif", None)
    if compare:
        write_comparison(job, restored)
    # last, as it marks the file as done
    write_atomically(job.target, lambda file: restored.save(file, **options))


def behind(most: int, image: Image.Image) -> int:
    """How many pictures like this one may wait to be written."""
    size = image.width * image.height * len(image.getbands())
    return min(most, max(1, BEHIND_BYTES // max(1, size)))


def has_alpha(image: Image.Image) -> bool:
    """Whether anything in it is transparent."""
    return image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] != 255


def write_comparison(job: Job, restored: Image.Image | None = None) -> None:
    """Write what ``--compare`` shows; the restored picture is read where it is not at hand."""
    picture = _side_by_side(job.source, restored or open_image(job.target))
    write_atomically(job.compared, lambda file: picture.save(file))


def _side_by_side(source: Path, restored: Image.Image) -> Image.Image:
    """Before and after, upright; before enlarged where after is larger."""
    before, after = (shown(image) for image in (open_image(source), restored))
    if before.size != after.size:
        before = before.resize(after.size, Image.Resampling.BICUBIC)
    both = Image.new("RGB", (before.width + after.width, after.height))
    both.paste(before, (0, 0))
    both.paste(after, (before.width, 0))
    return both
