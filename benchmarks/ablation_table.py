"""Results of the ablations for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bdg_fast.data.degrade import CLEAN

BASE = "base"
Record = Mapping[str, Any]
Runs = Mapping[str, Mapping[str, Record]]


def spread(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Mean and standard deviation (of a sample; from two values on)."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):{sign}.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def of(records: Mapping[str, Record], value: Callable[[Record], float | None]) -> list[float]:
    """A number of each seed that has it."""
    return [x for record in records.values() if (x := value(record)) is not None]


def paired(runs: Runs, arm: str, value: Callable[[Record], float]) -> list[float]:
    """Differences to the base of the same seed, of the same first weights (but for both heads)."""
    base = runs.get(BASE, {})
    return [value(record) - value(base[seed]) for seed, record in runs[arm].items() if seed in base]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables. ± is the standard deviation over seeds."""
    runs: Runs = {arm: records for arm, records in results["runs"].items() if records}
    conditions = results["conditions"]
    mean = lambda name: lambda record: record["scores"]["mean"][name]  # noqa: E731
    rows = [
        [
            arm,
            str(len(records)),
            spread(of(records, mean("psnr"))),
            "" if arm == BASE else spread(paired(runs, arm, mean("psnr")), 2, "+"),
            spread(of(records, mean("ssim")), 4),
            "" if arm == BASE else spread(paired(runs, arm, mean("ssim")), 4, "+"),
            spread(of(records, lambda record: record["readout_accuracy"]), 3),
            spread(of(records, lambda record: record["encoder_accuracy"]), 3),
            spread(of(records, lambda record: record["training_accuracy"]), 3),
            spread(of(records, lambda record: record["seconds"]), 0),
        ]
        for arm, records in runs.items()
    ]
    header = ["arm", "seeds", "PSNR (dB)", "to base", "SSIM", "to base"]
    header += ["accuracy, bottleneck", "accuracy, encoder", "accuracy, (7)", "seconds"]
    first = next(iter(next(iter(runs.values())).values()))["scores"]
    kinds = [*(kind for kind in first if kind not in (CLEAN, "mean")), "mean"]
    before = first["mean"]
    parts = [
        f"{conditions['steps']} steps of the network an arm, trained on {conditions['training']['photographs']} "
        f"photographs, tested on {len(conditions['test']['photographs'])} others. "
        f"Degraded: {before['psnr_degraded']:.2f} dB, SSIM {before['ssim_degraded']:.4f}. "
        '± is the standard deviation over seeds, "to base" the difference of the '
        f"same seed's. Accuracy: share of {len(first) - 1} degradations that are told right, on the test photographs "
        "by the five nearest training photographs, in features of the network's bottleneck and of the fingerprint's "
        "encoder; of (7) by its classifier in the last logged steps of training. Seconds are those of training.",
        table(header, rows),
    ]
    for name, title, digits in (("psnr", "PSNR (dB)", 2), ("ssim", "SSIM", 4)):
        degraded = [f"{first[kind][name + '_degraded']:.{digits}f}" for kind in kinds]
        rows = [["degraded", *degraded, *(["equal"] if CLEAN in first else [])]]
        columns = [*kinds, *([CLEAN] if CLEAN in first else [])]
        for arm, records in runs.items():
            cells = [spread([record["scores"][kind][name] for record in records.values()], digits) for kind in columns]
            rows.append([arm, *cells])
        parts.append(table([title, *kinds, *(["clean (in no mean)"] if CLEAN in first else [])], rows))
    sampled = {arm: records for arm, records in runs.items() if any(one["sampling"] for one in records.values())}
    numbers = sorted(
        {number for records in sampled.values() for one in records.values() for number in one["sampling"]}, key=int
    )
    if numbers:
        rows = [
            [
                f"{arm}: {title}",
                *(
                    spread(
                        of(records, lambda one, at=(number, name): one["sampling"].get(at[0], {}).get(at[1])), digits
                    )
                    for number in numbers
                ),
            ]
            for arm, records in sampled.items()
            for name, title, digits in (("psnr", "PSNR (dB)", 2), ("ssim", "SSIM", 4))
        ]
        parts.append(table(["sampling steps", *numbers], rows))
    return "\n\n".join(parts) + "\n"
