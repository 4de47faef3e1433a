"""``python -m benchmarks.card``: what a checkpoint's card says of it, in numbers and pictures.

Photographs are degraded in known ways (`bdg_fast.evaluation.restoration`), restored with as many steps as it was
trained for, and compared. Writes ``scores.json``, ``tables.md`` and ``worst.png``: the cases that lost most, degraded,
restored, clean.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bdg_fast import ResidualSampler, Restorer, UNet
from bdg_fast.data.degrade import CLEAN
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, list_images, read_image
from bdg_fast.evaluation.restoration import KINDS, SHARES, Score, means, score, table, versions
from bdg_fast.files import sha256_of, write_atomically
from bdg_fast.models import SHIPPED
from bdg_fast.models.checkpoints import WEIGHTS_FILE

from .ablation_scores import LEARNT, Represent, bottleneck, photographs
from .card_readout import known, readout
from .peers import available

MILD = ("noise", "jpeg")
"""Degradations that are also scored at the least of their levels: what is nearly clean is to be left nearly alone."""
WORST = 6
READOUT_TRAIN, READOUT_CROP = 96, 128


def plain(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """For JSON, which has no infinity: the PSNR of what was not degraded is null."""
    return [
        {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in one._asdict().items()
        }
        for one in scores
    ]


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them, evenly over their names."""
    return [files[index * len(files) // count] for index in range(min(count, len(files)))]


def chosen(checkpoint: Path, pattern: Sequence[str], count: int) -> dict[str, Any]:
    """For JSON: what results depend on among the arguments; folders go by what is in them."""
    weights = checkpoint / WEIGHTS_FILE if checkpoint.is_dir() else checkpoint
    return {"pattern": list(pattern), "count": count, "weights": sha256_of(weights)}


def worst(scores: Sequence[Score], files: Sequence[Path], restorer: Restorer) -> Tensor:
    """uint8 ``[3, H, W]``: the cases that lost most, a row each."""
    rows = []
    by_name = {file.name: file for file in files}
    lost = sorted((one for one in scores if one.kind != CLEAN), key=lambda one: one.psnr - one.psnr_degraded)[:WORST]
    for one in lost:
        clean = as_unit_rgb(read_image(by_name[one.photograph]))
        degraded = next(x for kind, level, x in versions(clean) if (kind, level) == (one.kind, one.level))
        rows.append(torch.cat((degraded[0], restorer.restore(degraded)[0].clamp(0, 1), clean), 2))
        print(f"lost: {one.photograph}, {one.kind} {one.level:.3g}: {one.psnr_degraded:.2f} to {one.psnr:.2f} dB")
    return (torch.cat(rows, 1) * 255).round().to(torch.uint8)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="folder of trained weights (default: shipped)")
    parser.add_argument("--photographs", type=Path, help="folder of further clean photographs that were not trained on")
    parser.add_argument("--pattern", nargs="+", default=["*"], help="file names in it")
    parser.add_argument("--count", type=int, default=24, help="of them, at most (default 24)")
    parser.add_argument("--train", type=Path, help="folder of photographs for the readout; --pattern is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/card"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    restorer = Restorer.from_pretrained(arguments.checkpoint)
    sets = {"photographs that come along": bundled_photographs()}
    if arguments.photographs:
        found = [
            file
            for file in list_images([arguments.photographs])
            if any(fnmatch.fnmatch(file.name, each) for each in arguments.pattern)
        ]
        sets["held-out photographs"] = spread(found, arguments.count)
    content: dict[str, Any] = {
        "versions": available("torch", "numba"),
        "backend": restorer.backend,
        "arguments": chosen(arguments.checkpoint, arguments.pattern, arguments.count),
        "shares": SHARES,
        "sets": {},
    }
    texts = []
    for name, files in sets.items():
        began = time.monotonic()
        scores = score(restorer.restore, photographs(files, 0))
        mild = score(restorer.restore, photographs(files, 0), MILD, (0.0,))
        content["sets"][name] = {"scores": plain(scores), "mild": plain(mild)}
        kept = means(mild)
        texts.append(
            f"{len(files)} {name}:\n\n{table(scores)}\n\nChanged (root mean square, in 1/255): "
            + ", ".join(f"{kind} {kept[kind].change:.2f}" for kind in (CLEAN, *MILD))
            + f"\n\n{time.monotonic() - began:.0f} s\n"
        )
        print(texts[-1], flush=True)
        if name == "photographs that come along":
            picture = worst(scores, files, restorer)
            write_atomically(arguments.out / "worst.png", Image.fromarray(picture.permute(1, 2, 0).numpy()).save)
    if arguments.train:
        content["readout"] = {}
        test = [file for files in sets.values() for file in files]
        unet = UNet.from_pretrained(arguments.checkpoint)
        known_files = [
            file
            for file in list_images([arguments.train])
            if not any(fnmatch.fnmatch(file.name, each) for each in arguments.pattern if arguments.photographs)
        ]
        train, kinds = spread(known_files, READOUT_TRAIN), (CLEAN, *KINDS)
        features: dict[str, Represent] = {"bottleneck": bottleneck(unet, ResidualSampler.of(unet.config))}
        if unet.condition is not None:
            features["told of the fingerprint"] = lambda x, seeds: unet.told(x)
        for name, represent in features.items():
            learnt, asked = (
                known(represent, train, kinds, READOUT_CROP, LEARNT),
                known(represent, test, kinds, READOUT_CROP),
            )
            found = readout(learnt, asked, kinds)
            content["readout"][name] = found._asdict() | {"train": len(train), "test": len(test)}
            each = ", ".join(f"{kind} {share:.0%}" for kind, share in found.by_kind.items())
            texts.append(
                f"Features of {name}: kind told {found.accuracy:.1%} ({each}), level off by {found.level_error:.1%} of "
                "its range\n"
            )
            print(texts[-1])
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(arguments.out / "scores.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(arguments.out / "tables.md", lambda file: file.write_text("\n".join(texts), encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
