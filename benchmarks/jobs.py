"""Images per second of a manifest's job with one worker of Ray against the local run: ``python -m benchmarks.jobs``.

Both are commands of their own on the same crops of photographs. Two rates are printed: of the worker at work (by its
lines' seconds), and of the whole job, with everything it waits for: Ray's start, the worker's, and the loading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from bdg_fast.data.images import bundled_photographs

SIZES = (64, 128, 192, 256)


def write_crops(folder: Path, number: int) -> Path:
    """PNG files of the sizes in turn, and their manifest."""
    photographs = [Image.open(path).convert("RGB") for path in bundled_photographs()]
    names = []
    for i in range(number):
        photo, side = photographs[i % len(photographs)], SIZES[i % len(SIZES)]
        x, y = (i * 37) % (photo.width - side + 1), (i * 53) % (photo.height - side + 1)
        names.append(f"{i:06d}.png")
        photo.crop((x, y, x + side, y + side)).save(folder / names[-1], compress_level=1)
    manifest = folder / f"{number}.jsonl"
    manifest.write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    return manifest


def summary_of(command: list[str], state: Path) -> dict[str, Any]:
    # Ray's workers leave a busy processor to others (niceness 15): here they shall not
    environment = os.environ | {"RAY_worker_niceness": "0"}
    run = [sys.executable, "-m", "bdg_fast.cli", *command]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
    summary: dict[str, Any] = json.loads(state.read_text())["summary"]
    return summary


def rates(summary: dict[str, Any]) -> tuple[float, float]:
    (worker,) = summary["by_worker"].values()
    return worker["images_per_second"], summary["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restore", type=int, default=32, help="crops to restore")
    parser.add_argument("--glcm", type=int, default=512, help="crops to describe")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, number in (("restore", arguments.restore), ("glcm", arguments.glcm)):
            manifest = write_crops(folder, number)
            found: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
            for at in range(-1, arguments.rounds):  # the first compiles, and is not counted
                for runner, options in (("local", []), ("ray", ["--ray", "--workers", "1"])):
                    if at < 0 and runner == "ray":
                        continue
                    out = folder / f"{what}-{runner}-{at}"
                    out.mkdir()
                    result = ["--output-dir", str(out)] if what == "restore" else ["--output", str(out / "x.csv")]
                    state = out / ("_manifest.json" if what == "restore" else "x.csv.manifest.json")
                    summary = summary_of([what, "--manifest", str(manifest), *result, *options], state)
                    if at >= 0:
                        found[runner].append(rates(summary))
                        print(f"{what} {runner}: {found[runner][-1]}", file=sys.stderr)
            for i, which in enumerate(("at work", "whole job")):
                local, ray = ([each[i] for each in found[runner]] for runner in ("local", "ray"))
                ratios = [b / a for a, b in zip(local, ray, strict=True)]
                told = f"local {statistics.median(local):.2f}, Ray {statistics.median(ray):.2f} images/s"
                span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{what}, {which}: {told}; ratio {span}", flush=True)


if __name__ == "__main__":
    main()
