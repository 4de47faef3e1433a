"""How the reference reads docstrings: mkdocstrings' Google style, and what this project writes beyond it."""

from __future__ import annotations

import re
from typing import Any

import griffe

ERRORS = r"[A-Z]\w*(?:Error|Skipped)"
"""The name of an exception."""


def rewritten(text: str) -> str:
    """A docstring for mkdocstrings: no roles of Sphinx, an item for each kind of error, remarks outside of lists."""
    text = re.sub(r":(?:func|class|data|meth|attr|mod|exc):`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    text = re.sub(r"^ {4}(The other arguments are those of)", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^=+ +=+\n(?:.*\n)*?=+ +=+$", lambda table: _indented(table[0]), text, flags=re.MULTILINE)
    head, mark, errors = text.partition("\nRaises:\n")
    if not mark:
        return text
    first, *others = re.split(r"\n\s*\n", errors)
    items = re.split(rf"(?<=\.) (?={ERRORS}(?:, {ERRORS})*: )", " ".join(first.split()))
    rest = [re.sub(r"^ {4}", "", other, flags=re.MULTILINE) for other in others]
    return head + mark + "\n\n".join(["\n".join(f"    {item}" for item in items), *rest])


def _indented(table: str) -> str:
    """A table of Sphinx, as it is."""
    return "\n".join(f"    {line}".rstrip() for line in table.splitlines() if not line.startswith("=="))


class Docstrings(griffe.Extension):
    """Has every docstring `rewritten`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)
