"""A file of a table: rows, and as a note what they were made of and which images failed.

Parquet has the columns ``key``, ``width``, ``height``, ``fingerprint`` (a list of fixed length) and, of an analysis,
``kind``, ``level``, ``confidence``. safetensors has a tensor for each column of numbers; its texts are lists in the
metadata, with the note.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .describe import DTYPES, Row, Settings

KEY = "bdg_fast_part"
"""Of the note in a file's metadata; the only one, as safetensors does not keep an order of several."""
TEXTS = ("key", "kind")
NUMBERS = {"width": torch.int32, "height": torch.int32, "level": torch.float32, "confidence": torch.float32}


def required(module: str, what: str, package: str) -> Any:
    """An optional module.

    Raises:
        ImportError: says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {package}: pip install 'bdg-fast[table]'") from error


def require_pyarrow() -> Any:
    """The module that reads and writes Parquet; ImportError as :func:`required`."""
    required("pyarrow.parquet", "Parquet", "pyarrow")
    return importlib.import_module("pyarrow")


def write_part(path: Path, keys: Sequence[str], rows: Sequence[Row], width: int, settings: Settings, note: Any) -> None:
    """Write a file; the same rows give the same bytes.

    Args:
        path: ends in ``.parquet`` or ``.safetensors``.
        keys: of the rows.
        rows: perhaps none.
        width: of fingerprints.
        settings: of the table.
        note: what :func:`read_note` shall give, plain values.
    """
    vectors = torch.zeros(0, width, dtype=DTYPES[settings.dtype])
    if rows:
        vectors = torch.stack([row.fingerprint for row in rows])
    texts = {"key": list(keys)} | ({"kind": [row.kind for row in rows]} if settings.analyse else {})
    numbers = {
        name: torch.tensor([getattr(row, name) for row in rows], dtype=dtype)
        for name, dtype in NUMBERS.items()
        if settings.analyse or name not in ("level", "confidence")
    }
    if path.suffix == ".parquet":
        _write_parquet(path, texts, numbers, vectors, json.dumps(note))
        return
    from safetensors.torch import save_file

    save_file({"fingerprint": vectors, **numbers}, path, metadata={KEY: json.dumps({"note": note, "texts": texts})})


def _write_parquet(
    path: Path, texts: dict[str, list[str]], numbers: dict[str, Tensor], vectors: Tensor, note: str
) -> None:
    arrow = require_pyarrow()
    columns = {name: arrow.array(column, arrow.string()) for name, column in texts.items()}
    # a level that is not a number is one that is not there
    columns |= {name: arrow.array(column.numpy(), from_pandas=True) for name, column in numbers.items()}
    flat = arrow.array(vectors.flatten().numpy())
    columns["fingerprint"] = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    order = ("key", "width", "height", "kind", "level", "confidence", "fingerprint")
    table = arrow.table({name: columns[name] for name in order if name in columns})
    arrow.parquet.write_table(table.replace_schema_metadata({KEY: note}), path, compression="zstd")


def read_note(path: Path) -> Any:
    """The note of a file.

    Raises:
        ValueError: it is damaged or of another kind.
    """
    try:
        if path.suffix == ".parquet":
            metadata = require_pyarrow().parquet.read_schema(path).metadata or {}
            return json.loads(metadata[KEY.encode()])
        return _safetensors_texts(path)["note"]
    except ImportError:
        raise
    except Exception as error:  # libraries raise types of their own
        raise ValueError(f"{path} is no part of a table, or damaged: {error}") from error


def read_column(path: Path, name: str) -> Any:
    """A column of a file: texts as a list, numbers as a tensor, fingerprints as float32 ``[n, D]``."""
    if path.suffix == ".parquet":
        column = require_pyarrow().parquet.read_table(path, columns=[name])[name].combine_chunks()
        if name in TEXTS:
            return column.to_pylist()
        if name == "fingerprint":
            flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
            return flat.float().view(-1, column.type.list_size)
        return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    if name in TEXTS:
        return _safetensors_texts(path)["texts"][name]
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float() if name == "fingerprint" else tensor


def _safetensors_texts(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})[KEY])
