"""What was found: as Markdown, as rows of tables, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .evaluate import Row, differences, paired_summaries
from .published import Published
from .statistics import Summary

MEAN = "mean"
INTERVALS = (
    "Means with 95% confidence intervals: a seeded bootstrap over clean images (2000 draws), each drawn with all of "
    "its degraded versions. Degradations are means of their test sets, the mean is that of degradations."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation.

    Fields:
        title: what was evaluated.
        facts: settings and the like, by name.
        metrics: by name, whether less is better.
        rows: of every method, in the order of columns.
        summaries: of every method and metric.
        missing: metrics that could not be had, with the reason.
        failures: what failed.
        published: by peers.
        whole: all degradations of the protocol were evaluated, so that the mean stands beside theirs.
        seed: of the bootstrap.
    """

    title: str
    facts: Mapping[str, Any]
    metrics: Mapping[str, bool]
    rows: Mapping[str, Sequence[Row]]
    summaries: Mapping[tuple[str, str], Sequence[Summary]]
    missing: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    published: Sequence[Published] = ()
    whole: bool = True
    seed: int = 0

    def pairs(self) -> list[tuple[str, str]]:
        """Methods that are compared: each with all before it."""
        names = list(self.rows)
        return [(before, after) for index, after in enumerate(names) for before in names[:index]]

    @cached_property
    def compared(self) -> dict[tuple[str, str], dict[str, list[Summary]]]:
        """Mean differences of each pair by metric, the second minus the first, on the same images."""
        found = {}
        for before, after in self.pairs():
            by_metric = {
                metric: paired_summaries(differences(self.rows[before], self.rows[after], metric), self.seed)
                for metric in self.metrics
            }
            found[before, after] = {metric: summaries for metric, summaries in by_metric.items() if summaries}
        return found


def markdown(report: Report) -> str:
    """All of it, but single images."""
    lines = [f"# {report.title}", "", *(f"- {name}: {value}" for name, value in report.facts.items()), "", INTERVALS]
    for metric, lower in report.metrics.items():
        lines += ["", f"## {metric} ({'lower' if lower else 'higher'} is better)", "", *_means(report, metric)]
    if report.published:
        lines += ["", "## Beside published numbers", "", *_published(report)]
    for before, after in report.pairs():
        lines += ["", f"## {after} minus {before}, on the same images", "", *_differences(report, before, after)]
    if report.missing:
        lines += ["", "## Not available", "", *(f"- {name}: {reason}" for name, reason in report.missing.items())]
    if report.failures:
        lines += ["", "## Failed", "", *(f"- {message}" for message in report.failures)]
    return "\n".join(lines) + "\n"


def _means(report: Report, metric: str) -> list[str]:
    cells = {method: {_label(one): one for one in report.summaries.get((method, metric), ())} for method in report.rows}
    labels = [_label(one) for one in _ordered([one for method in report.rows for one in cells[method].values()])]
    lines = [_row(["", "images", *report.rows]), _rule(2 + len(report.rows))]
    for label in labels:
        found = [cells[method].get(label) for method in report.rows]
        images = max(one.images for one in found if one is not None)
        lines.append(_row([label, str(images), *(_cell(one, metric) for one in found)]))
    return lines


def _published(report: Report) -> list[str]:
    """Ours above, theirs below; a column a degradation, metrics one after another."""
    lines = []
    sources = list(dict.fromkeys(one.source for one in report.published))
    for metric in report.metrics:
        theirs = [(one, one.scores[metric]) for one in report.published if metric in one.scores]
        ours = {
            method: {
                one.kind or MEAN: one.mean
                for one in report.summaries.get((method, metric), ())
                if one.level == "degradation" or (one.level == "mean" and report.whole)
            }
            for method in report.rows
        }
        if not theirs:
            continue
        columns = list(
            dict.fromkeys(kind for scores in (*ours.values(), *(both[1] for both in theirs)) for kind in scores)
        )
        columns = [kind for kind in columns if kind != MEAN] + [kind for kind in columns if kind == MEAN]
        lines += [_row([metric, *columns, "source"]), _rule(len(columns) + 2)]
        lines += [_row([method, *_numbers(scores, columns, metric), "this run"]) for method, scores in ours.items()]
        for one, scores in theirs:
            lines.append(
                _row(
                    [one.method, *_numbers(scores, columns, metric, as_read=True), f"[{sources.index(one.source) + 1}]"]
                )
            )
        lines.append("")
    lines += [f"[{number}] {source}  " for number, source in enumerate(sources, 1)]
    return lines


def _differences(report: Report, before: str, after: str) -> list[str]:
    compared = report.compared[before, after]
    if not compared:
        return ["No image has scores of both."]
    cells = {metric: {_label(one): one for one in found if one.level != "set"} for metric, found in compared.items()}
    labels = list(dict.fromkeys(label for found in cells.values() for label in found))
    lines = [_row(["", "images", *cells]), _rule(2 + len(cells))]
    for label in labels:
        found = [cells[metric].get(label) for metric in cells]
        images = max(one.images for one in found if one is not None)
        lines.append(
            _row([label, str(images), *(_cell(one, metric, "+") for one, metric in zip(found, cells, strict=True))])
        )
    return lines


def image_rows(report: Report) -> list[list[str]]:
    """A row for each method and image, with a head."""
    rows = [["method", "degradation", "set", "image", "clean", *report.metrics]]
    for method, found in report.rows.items():
        for row in found:
            case = row.case
            scores = [_plain(row.scores.get(metric, math.nan)) for metric in report.metrics]
            rows.append([method, case.kind, case.set, case.name, case.scene, *scores])
    return rows


def summary_rows(report: Report) -> list[list[str]]:
    """A row for each method, metric and mean, with a head."""
    rows = [["method", "metric", *Summary._fields]]
    for (method, metric), found in report.summaries.items():
        for one in found:
            rows.append([method, metric, one.level, one.kind, one.set, str(one.images), *map(_plain, one[4:])])
    return rows


def difference_rows(report: Report) -> list[list[str]]:
    """A row for each pair of methods and image, ``after`` minus ``before``, with a head."""
    rows = [["before", "after", "degradation", "set", "image", *report.metrics]]
    for before, after in report.pairs():
        found = {
            metric: {case.key: value for case, value in differences(report.rows[before], report.rows[after], metric)}
            for metric in report.metrics
        }
        for row in report.rows[after]:
            key = row.case.key
            if any(key in values for values in found.values()):
                rows.append([before, after, *key, *(_plain(found[m].get(key, math.nan)) for m in report.metrics)])
    return rows


def as_json(report: Report) -> str:
    """All of it; null where there is no number."""
    content = {
        "title": report.title,
        "facts": dict(report.facts),
        "metrics": {name: {"lower_better": lower} for name, lower in report.metrics.items()},
        "means": [
            {"method": method, "metric": metric, **_clean(one._asdict())}
            for (method, metric), found in report.summaries.items()
            for one in found
        ],
        "differences": [
            {"before": before, "after": after, "metric": metric, **_clean(one._asdict())}
            for before, after in report.pairs()
            for metric, found in report.compared[before, after].items()
            for one in found
        ],
        "images": [
            {
                "method": method,
                **dict(zip(("degradation", "set", "image"), row.case.key, strict=True)),
                "clean": row.case.scene,
                "scores": _clean(row.scores),
            }
            for method, rows in report.rows.items()
            for row in rows
        ],
        "unavailable": dict(report.missing),
        "failed": list(report.failures),
        "published": [one._asdict() for one in report.published],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _clean(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _label(one: Summary) -> str:
    return MEAN if one.level == "mean" else one.kind if one.level == "degradation" else f"{one.kind}: {one.set}"


def _ordered(found: Sequence[Summary]) -> list[Summary]:
    """The first of each label: of each degradation its sets, where it has several, and itself; at last the mean."""
    first: dict[str, Summary] = {}
    for one in found:
        first.setdefault(_label(one), one)
    ordered = []
    for kind in dict.fromkeys(one.kind for one in first.values() if one.level != "mean"):
        sets = [one for one in first.values() if one.kind == kind and one.level == "set"]
        ordered += sets if len(sets) > 1 else []
        ordered += [one for one in first.values() if one.kind == kind and one.level == "degradation"]
    return ordered + [one for one in first.values() if one.level == "mean"]


def _cell(one: Summary | None, metric: str, sign: str = "") -> str:
    if one is None or not math.isfinite(one.mean):
        return ""
    if math.isnan(one.low):
        return _number(one.mean, metric, sign)
    return f"{_number(one.mean, metric, sign)} ({_number(one.low, metric, sign)} to {_number(one.high, metric, sign)})"


def _numbers(scores: Mapping[str, float], columns: Sequence[str], metric: str, *, as_read: bool = False) -> list[str]:
    """``as_read``: with no more digits than they have."""
    plain = as_read and _digits(metric) > 2
    return [
        "" if kind not in scores else f"{scores[kind]:g}" if plain else _number(scores[kind], metric)
        for kind in columns
    ]


def _digits(metric: str) -> int:
    return 2 if metric.startswith(("psnr", "fid", "musiq")) else 4


def _number(value: float, metric: str, sign: str = "") -> str:
    digits = _digits(metric)
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no -0.00


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
