"""How well representations tell degradations apart: the protocol of the paper's Table 1.

A k-nearest-neighbour vote (Euclidean distance) assigns test samples the class of training samples. *Type*:
noise, blur, haze, low light and rain, each at a random strength; *all types* adds snow and JPEG. *Level*:
noise 15/25/50 and blur 1/2/3 as six classes. Training and test photographs come from disjoint sources. Each
photograph is degraded once a class, so all classes are equally frequent.
"""

from __future__ import annotations

import csv
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bdg_fast.data.degradations import KINDS, LEVELS, degrade

from .representations import REPRESENTATIONS, Fingerprint

TYPES = ("noise", "blur", "haze", "lowlight", "rain")
LEVEL_CLASSES = tuple((kind, level) for kind in ("noise", "blur") for level in LEVELS[kind])
TASKS = ("type", "level", "all types")
_CROP = re.compile(r"_s\d+_\d+_\d+$")

Represent = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """Photographs to train and to test on, and the source each came from."""

    train: list[Path]
    test: list[Path]
    source_of: dict[Path, str]


def read_sources(paths: Sequence[Path], manifest: Path | None, by_package: bool = False) -> dict[Path, str]:
    """The source of each photograph: what must not stand on both sides of a split.

    From the manifest (columns ``crop`` or ``name``, ``source_package``, ``source_file``) it is the original
    picture, or with ``by_package`` the whole collection that it came in. Photographs that the manifest does
    not list fall back to their names, up to a crop suffix ``_s<scale>_<x>_<y>``.

    Raises:
        ValueError: the manifest is no such table, or lists none of the photographs.
    """
    listed: dict[str, str] = {}
    if manifest is not None:
        try:
            with manifest.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                columns = set(rows.fieldnames or ())
                if not columns & {"crop", "name"} or not {"source_package", "source_file"} <= columns:
                    raise ValueError(
                        f"manifest {manifest} must have the columns crop or name, source_package and source_file, "
                        f"got {', '.join(rows.fieldnames or ()) or 'none'}"
                    )
                for row in rows:
                    name = Path(row.get("crop") or row.get("name") or "").name
                    listed[name] = f"{row['source_package']}:{'' if by_package else row['source_file']}"
        except UnicodeDecodeError:
            raise ValueError(f"manifest {manifest} must be a CSV file in UTF-8") from None
        if not any(path.name in listed for path in paths):
            raise ValueError(f"manifest {manifest} lists none of the {len(paths)} photographs")
    return {path: listed.get(path.name, _CROP.sub("", path.stem)) for path in paths}


def split_by_source(source_of: dict[Path, str], train: int, test: int, seed: int) -> Split:
    """Assign whole sources at random to training (about the asked share) and test, then draw photographs.

    Photographs are drawn from the sources in turn, so that no large source dominates.

    Raises:
        ValueError: fewer than two sources.
    """
    shuffle = random.Random(seed)
    groups: dict[str, list[Path]] = {}
    for path in sorted(source_of):
        groups.setdefault(source_of[path], []).append(path)
    if len(groups) < 2:
        raise ValueError(f"photographs must come from at least 2 sources, got {len(groups)}: {', '.join(groups)}")
    names = sorted(groups)
    shuffle.shuffle(names)
    for name in names:
        shuffle.shuffle(groups[name])
    share = max(1, min(len(names) - 1, round(len(names) * test / (train + test))))
    return Split(
        _in_turn([groups[name] for name in names[share:]], train),
        _in_turn([groups[name] for name in names[:share]], test),
        source_of,
    )


def _in_turn(groups: list[list[Path]], count: int) -> list[Path]:
    longest = max(map(len, groups))
    turns = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return turns[:count]


@dataclass(frozen=True)
class Samples:
    """Degraded versions of photographs: class labels and, per representation, features."""

    labels: dict[str, Tensor]  # task -> int64 [photographs, classes]
    features: dict[str, dict[str, Tensor]]  # representation -> task -> [photographs, classes, D]


def make_samples(
    photographs: Iterable[Tensor], represent: dict[str, Represent], seed: int, tasks: Sequence[str] = TASKS
) -> Samples:
    """Degrade float32 ``[3, H, W]`` photographs into every class of every task, and represent them."""
    collected: dict[str, dict[str, list[Tensor]]] = {name: {} for name in represent}
    count = 0
    for index, photograph in enumerate(photographs):
        count += 1
        strength = random.Random(f"{seed}-{index}")
        versions: dict[tuple[str, str | float], Tensor] = {}
        for number, kind in enumerate(KINDS):
            low, _, high = LEVELS[kind]
            level = strength.uniform(low, high)
            versions[kind, "any"] = degrade(photograph[None], kind, level, _seed(seed, index, number))
        for number, (kind, level) in enumerate(LEVEL_CLASSES):
            versions[kind, level] = degrade(photograph[None], kind, level, _seed(seed, index, 100 + number))
        # as a file would hold them: digits below 8 bits tell JPEG from the rest and one blur from another
        batch = torch.cat(list(versions.values())).mul(255).round().div(255)
        places = {key: place for place, key in enumerate(versions)}
        for name, function in represent.items():
            features = function(batch)
            for task in tasks:
                chosen = [places[key] for key in _classes(task)]
                collected[name].setdefault(task, []).append(features[chosen])
    labels = {task: torch.arange(len(_classes(task))).expand(count, -1) for task in tasks}
    stacked = {name: {task: torch.stack(rows) for task, rows in by_task.items()} for name, by_task in collected.items()}
    return Samples(labels, stacked)


def _seed(seed: int, index: int, number: int) -> int:
    return (seed * 1_000_003 + index) * 1_000 + number


def _classes(task: str) -> list[tuple[str, str | float]]:
    if task == "level":
        return list(LEVEL_CLASSES)
    return [(kind, "any") for kind in (TYPES if task == "type" else KINDS)]


def knn(train: Tensor, labels: Tensor, test: Tensor, k: int = 5, order: float = 2.0) -> Tensor:
    """Majority class int64 ``[n]`` of the ``k`` nearest training samples; ties go to the nearer ones.

    ``train [m, D]``, ``labels [m]``, ``test [n, D]``; ``order`` of the Minkowski distance.
    """
    distance, nearest = torch.cdist(test, train, p=order).topk(min(k, len(train)), largest=False)
    votes = torch.nn.functional.one_hot(labels[nearest], int(labels.max()) + 1).double()
    closeness = 1e-6 / (1 + distance.double())  # far below one vote: only breaks ties
    return (votes * (1 + closeness)[..., None]).sum(1).argmax(1)


def correct(train: Samples, test: Samples, representation: str, task: str, k: int, order: float = 2.0) -> Tensor:
    """Whether each test sample is classified right: bool ``[photographs, classes]``."""
    labels = test.labels[task]
    found = knn(
        train.features[representation][task].flatten(0, 1),
        train.labels[task].flatten(),
        test.features[representation][task].flatten(0, 1),
        k,
        order,
    )
    return found.view(labels.shape) == labels


def interval(right: Tensor, groups: Sequence[str], seed: int, draws: int = 2000) -> tuple[float, float]:
    """95% confidence interval of the accuracy: a bootstrap over whole sources, since their pictures are alike.

    NaN for a single source, which tells nothing about others.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return math.nan, math.nan
    member = torch.tensor([names.index(group) for group in groups])
    hits = torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, right.double().sum(1))
    sizes = torch.zeros(len(names), dtype=torch.float64).index_add_(
        0, member, torch.full((len(groups),), float(right.shape[1]), dtype=torch.float64)
    )
    drawn = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(seed))
    accuracy = hits[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = accuracy.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class Score:
    """Accuracy of one representation at one task, with its 95% confidence interval; shares of 1."""

    representation: str
    task: str
    accuracy: float
    low: float
    high: float


def run_probe(
    train: Iterable[Tensor],
    test: Iterable[Tensor],
    test_sources: Sequence[str],
    seed: int = 0,
    k: int = 5,
    represent: dict[str, Represent] | None = None,
) -> list[Score]:
    """Accuracy of every representation at every task.

    Args:
        train, test: photographs, float32 ``[3, H, W]`` in [0, 1], from disjoint sources.
        test_sources: source of each test photograph.
        represent: :data:`REPRESENTATIONS` by default.
    """
    represent = REPRESENTATIONS if represent is None else represent
    trained, tested = make_samples(train, represent, seed), make_samples(test, represent, seed + 1)
    scores = []
    for name in represent:
        for task in TASKS:
            right = correct(trained, tested, name, task, k, getattr(represent[name], "order", 2.0))
            scores.append(Score(name, task, right.double().mean().item(), *interval(right, test_sources, seed)))
    return scores


def candidates() -> list[Fingerprint]:
    """What ``tune`` tries: changes around the default, and the published settings for both parts."""
    published = {"residual_angles": 9, "residual_scales": (1, 2, 3, 4, 5, 6)}
    gray = [(angles, scales) for angles in (2, 4) for scales in ((1,), (1, 2), (1, 2, 4, 8))]
    residual = [(angles, scales) for angles in (2, 4) for scales in ((1,), (2,), (3,), (1, 2), (1, 2, 4))]
    return [
        Fingerprint(),
        *(Fingerprint(levels=levels) for levels in (8, 16, 64)),
        *(Fingerprint(power=power) for power in (0.125, 0.18, 0.35, 0.5, 1.0)),
        *(Fingerprint(gray_weight=weight) for weight in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)),
        *(Fingerprint(gray_angles=angles, gray_scales=scales) for angles, scales in gray),
        *(Fingerprint(residual_angles=a, residual_scales=s) for a, s in residual if (a, s) != (2, (2,))),
        *(Fingerprint(residual_scales=(1,), gray_weight=weight) for weight in (0.2, 0.3)),
        *(Fingerprint(gray_weight=weight, **published) for weight in (0.15, 1.0)),  # type: ignore[arg-type]
        Fingerprint(residual_weight=0.0),
        Fingerprint(order=1.0),
    ]


def tune(
    photographs: Sequence[Tensor],
    sources: Sequence[str],
    seed: int = 0,
    k: int = 5,
    folds: int = 4,
    tried: Sequence[Fingerprint] | None = None,
) -> list[tuple[Fingerprint, dict[str, float]]]:
    """Cross-validate fingerprints on training photographs, whole sources to a fold.

    Returns:
        Each candidate with its accuracy by task, best sum of type and level first: the paper's two tasks.
    """
    tried = candidates() if tried is None else tried
    represent: dict[str, Represent] = {str(candidate): candidate for candidate in tried}
    samples = make_samples(photographs, represent, seed)
    names = sorted(set(sources))
    random.Random(seed).shuffle(names)
    fold = torch.tensor([names.index(source) % folds for source in sources])
    results = []
    for candidate in tried:
        accuracy = {}
        for task in TASKS:
            right = []
            for number in range(min(folds, len(names))):
                inside, outside = _part(samples, fold != number), _part(samples, fold == number)
                right.append(correct(inside, outside, str(candidate), task, k, candidate.order).double())
            accuracy[task] = torch.cat(right).mean().item()
        results.append((candidate, accuracy))
    return sorted(results, key=lambda result: -result[1]["type"] - result[1]["level"])


def _part(samples: Samples, chosen: Tensor) -> Samples:
    return Samples(
        {task: labels[chosen] for task, labels in samples.labels.items()},
        {
            name: {task: features[chosen] for task, features in by_task.items()}
            for name, by_task in samples.features.items()
        },
    )
