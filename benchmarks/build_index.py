"""Builds what `bdg_fast.analysis` ships: ``python -m benchmarks.build_index --photos DIR --manifest CSV``.

Photographs of all collections but the held-out ones are degraded in all kinds at random levels (`analysis_data`). A
fifth of the originals calibrates: the temperature of the probabilities and the threshold of the distance. The others
train the network, span the projection and fill the index. About 15 minutes on one core, most of them for degradations;
``--cache`` keeps their fingerprints.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bdg_fast import __version__
from bdg_fast.analysis import KINDS, UNITS
from bdg_fast.analysis.analyser import METADATA_KEY, NETWORK, SHIPPED, nearest, project
from bdg_fast.analysis.network import FingerprintReader
from bdg_fast.data.degrade import RANGES
from bdg_fast.files import write_atomically

from .analysis_data import HELD_OUT, QUALITIES, SMALLEST, TOGETHER, Samples, groups_of, larger, samples_of

DRAWS = 3
"""Times that each group of crops is degraded in each kind."""
LARGER = 2
"""Larger pictures drawn of each group that was degraded."""
CALIBRATION = 0.2
"""Share of the originals that calibrate."""
DIMENSIONS, ENTRIES = 32, 4000
"""Of the projection, and of the index."""
KNOWN = 0.98
"""Share of calibration pictures that lie within the threshold of the kind that is nearest."""
EPOCHS, BATCH, RATE, DECAY = 10, 256, 2e-3, 1e-2
LEVEL_WEIGHT, LEVEL_BEND = 3.0, 0.05
"""Of the loss of levels beside that of kinds, and where it turns from quadratic to linear."""


def main() -> None:
    """Build, calibrate and write; says what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="clean photographs")
    parser.add_argument(
        "--manifest", type=Path, required=True, metavar="CSV", help="crop, source_package, source_file, scale, licence"
    )
    parser.add_argument("--output", type=Path, default=SHIPPED, metavar="FILE", help="default: what is shipped")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="fingerprints: read if it is there, else written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    samples = cached(arguments.photos, arguments.manifest, arguments.cache, arguments.seed)
    samples = Samples.join([samples, larger(samples, LARGER, arguments.seed)])
    fit, calibration = split(samples, arguments.seed)
    print(f"{len(fit)} fingerprints to learn from, {len(calibration)} of other originals to calibrate")
    network = trained(fit, arguments.seed)
    tensors, settings = calibrated(network, fit, calibration, arguments.seed)
    settings |= provenance(arguments.manifest, arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {METADATA_KEY: json.dumps(settings)}
    write_atomically(arguments.output, lambda file: save_file(tensors, file, metadata))
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {size:.2f} MB; temperature {settings['temperature']:.3f}; thresholds", end=" ")
    print(", ".join(f"{kind} {value:.3f}" for kind, value in zip(KINDS, settings["thresholds"], strict=True)))


def cached(photos: Path, manifest: Path, cache: Path | None, seed: int) -> Samples:
    """Fingerprints of all but the held-out collections."""
    if cache is not None and cache.is_file():
        return Samples(**torch.load(cache, weights_only=True))
    samples = samples_of(groups_of(photos, manifest, held_out=False), DRAWS, seed)
    if cache is not None:
        write_atomically(cache, lambda file: torch.save(vars(samples), file))
    return samples


def split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """What is learned from, and what calibrates: whole originals to either."""
    count = int(samples.originals.max()) + 1
    draws = torch.tensor([random.Random(f"{seed} {original}").random() for original in range(count)])
    apart = (draws < CALIBRATION)[samples.originals]
    return samples[~apart], samples[apart]


def trained(fit: Samples, seed: int) -> FingerprintReader:
    """The network, by AdamW and one cycle of its rate."""
    network = FingerprintReader(len(KINDS))
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = len(fit) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(fit), generator=generator)[: steps * BATCH].view(-1, BATCH):
            part = fit[chosen]
            logits, shares = network(part.vectors.float())
            own = shares.gather(1, part.kinds[:, None])[:, 0]
            has_level = part.kinds != KINDS.index("clean")
            error = F.smooth_l1_loss(own[has_level], part.shares[has_level], beta=LEVEL_BEND)
            loss = F.cross_entropy(logits, part.kinds) + LEVEL_WEIGHT * error
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def calibrated(
    network: FingerprintReader, fit: Samples, calibration: Samples, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of the file: weights, projection, index, temperature, threshold."""
    generator = torch.Generator().manual_seed(seed)
    vectors = fit.vectors[torch.randperm(len(fit), generator=generator)[:8000]].float()
    mean = vectors.mean(0)
    axes = torch.linalg.eigh((vectors - mean).mT @ (vectors - mean)).eigenvectors[:, -DIMENSIONS:].flip(1)
    mean, axes = mean.half(), axes.half()
    chosen = torch.randperm(len(fit), generator=generator)[:ENTRIES]
    index = project(fit.vectors[chosen].float(), mean.float(), axes.float()).half()
    points = project(calibration.vectors.float(), mean.float(), axes.float())
    distances, near = nearest(points, index.float(), fit.kinds[chosen])
    of_kinds = [distances[near == kind] for kind in range(len(KINDS))]
    logits = torch.cat([network(part.float())[0] for part in calibration.vectors.split(1024)])
    tensors = {
        "mean": mean,
        "axes": axes.contiguous(),
        "index": index,
        "index_kinds": fit.kinds[chosen].to(torch.uint8),
        "distances": torch.stack([own.quantile(torch.linspace(0, 1, 201)) for own in of_kinds]),
    }
    tensors |= {NETWORK + name: value.half() for name, value in network.state_dict().items()}
    settings = {
        "kinds": KINDS,
        "thresholds": [float(own.quantile(KNOWN)) for own in of_kinds],
        "temperature": temperature(logits, calibration.kinds),
    }
    return tensors, settings


def temperature(logits: Tensor, kinds: Tensor) -> float:
    """The one of least cross-entropy."""
    tried = torch.logspace(-0.7, 1, 171)
    losses = [float(F.cross_entropy(logits / t, kinds)) for t in tried]
    return float(tried[losses.index(min(losses))])


def provenance(manifest: Path, seed: int) -> dict[str, Any]:
    """What the file was made of, for its metadata."""
    photographs: Counter[tuple[str, str]] = Counter()
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["source_package"].startswith(HELD_OUT):
                photographs[row["source_package"], row["licence"]] += 1
    return {
        "bdg_fast": __version__,
        "units": UNITS,
        "ranges": {kind: RANGES[kind] for kind in KINDS},
        "photographs": [
            {"collection": name, "licence": licence, "crops": count} for (name, licence), count in photographs.items()
        ],
        "held_out": HELD_OUT,
        "recipe": {
            "seed": seed,
            "draws": DRAWS,
            "larger": LARGER,
            "most_crops_together": TOGETHER,
            "smallest_side": SMALLEST,
            "resaved_qualities": QUALITIES,
            "calibration": CALIBRATION,
            "known": KNOWN,
            "epochs": EPOCHS,
            "batch": BATCH,
            "learning_rate": RATE,
            "weight_decay": DECAY,
        },
    }


if __name__ == "__main__":
    main()
