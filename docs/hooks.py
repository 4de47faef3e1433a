"""What the site needs beyond mkdocs' plugins: `bdg_fast.kernels` where it is imported from, and tables of measurements.

Run by mkdocs (``hooks`` in mkdocs.yml). Nothing is fetched, and nothing of the package is imported.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARK = "<!-- results -->"
"""Where `performance.md` gets its tables."""
ELSEWHERE = ("versions", "parts_ms", "degradation", "tail", "traceback", "tracebacks")
"""Of a row, what no table shows: the files hold it."""
_tree = tempfile.TemporaryDirectory(prefix="bdg_fast_docs_")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Show mkdocstrings the tree as it is imported: kernels/ is `bdg_fast.kernels`."""
    package = Path(_tree.name, "bdg_fast")
    package.mkdir(exist_ok=True)
    for source in (*(ROOT / "bdg_fast").iterdir(), ROOT / "kernels"):
        link = package / source.name
        if not link.exists():
            link.symlink_to(source)
    config["plugins"]["mkdocstrings"].config["handlers"]["python"]["paths"] = [_tree.name]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the measurements of `benchmarks/results` where a page marks it."""
    return markdown.replace(MARK, measurements()) if MARK in markdown else markdown


def measurements(folder: Path = RESULTS) -> str:
    """Every file of ``folder`` as a section of tables, in Markdown."""
    files = sorted(folder.glob("*.json"))
    return "\n\n".join(section(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in files)


def section(name: str, content: dict[str, Any]) -> str:
    """One file: where it was measured, then a table for everything that has rows."""
    facts = {key: value for key, value in content.items() if not isinstance(value, dict) and not _rows(value)}
    facts |= content.get("versions", {})
    told = [f"{_words(key)}: {_text(key, value)}" for key, value in facts.items() if value not in (None, [])]
    parts = [f"## `{name}`", "; ".join(told)]
    for key, value in content.items():
        if key not in ELSEWHERE:
            parts += _tables(_words(key), value)
    return "\n\n".join(part for part in parts if part)


def _tables(title: str, value: Any) -> Iterator[str]:
    """Of lists of rows and of what names rows, at any depth."""
    if _rows(value):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in value:
            groups.setdefault(str(row.get("group", title)), []).append(_flat(row, ("group", *ELSEWHERE)))
        for group, rows in groups.items():
            yield f"### {group}\n\n{_table(rows)}"
    elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        if any(isinstance(cell, dict) for row in value.values() for cell in row.values()):
            for name, inner in value.items():
                yield from _tables(name, inner)
        else:
            yield f"### {title}\n\n{_table([{'': name, **row} for name, row in value.items()])}"
    elif isinstance(value, dict) and value:
        single = _flat({key: cell for key, cell in value.items() if not isinstance(cell, dict)}, ELSEWHERE)
        nested = {key: cell for key, cell in value.items() if isinstance(cell, dict) and key not in ELSEWHERE}
        deep = {k: c for k, c in nested.items() if any(isinstance(inner, dict) for inner in c.values())}
        flat = {k: c for k, c in nested.items() if k not in deep}
        if single or flat:
            yield f"### {title}\n\n{_table([{**single, **_flat(flat)}], upright=True)}"
        for name, inner in deep.items():
            yield from _tables(title if name == "groups" else name, inner)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)


def _flat(row: dict[str, Any], without: tuple[str, ...] = (), before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key in without:
            continue
        if isinstance(value, dict):
            found |= _flat(value, without, f"{before}{key} ")
        else:
            found[before + key] = value
    return found


def _table(rows: list[dict[str, Any]], upright: bool = False) -> str:
    """Rows in Markdown; what is the same in all of several rows stands above. ``upright``: a line a value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if upright:
        lines = [f"| {_words(key)} | {_text(key, rows[0][key])} |" for key in columns if rows[0][key] is not None]
        return "\n".join(["| | |", "|---|---|", *lines])
    same = [key for key in columns if len(rows) > 1 and len({str(row.get(key)) for row in rows}) == 1]
    left = [key for key in columns if key not in same]
    told = "; ".join(f"{_words(key)}: {_text(key, rows[0][key])}" for key in same if rows[0].get(key) is not None)
    lines = ["".join(f"| {_words(key)} " for key in left) + "|", "|---" * len(left) + "|"]
    lines += ["".join(f"| {_text(key, row.get(key))} " for key in left) + "|" for row in rows]
    return (f"{told}\n\n" if told else "") + "\n".join(lines)


def _words(key: str) -> str:
    return re.sub(r"_ms$", " (ms)", key).replace("bytes", "MB").replace("_", " ")


def _text(key: str, value: Any) -> str:
    """Of a cell: numbers to four digits, bytes in MB."""
    if value is None:
        return ""
    if isinstance(value, int | float) and "bytes" in key:
        return f"{value / 1e6:,.0f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_text(key, each) for each in value)
    text = str(value)[:10] if key == "commit" else re.sub(r"^test_\w+\[(.*)\]$", r"\1", str(value))
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
