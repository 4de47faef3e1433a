"""Images of a manifest, worked through by one process, by those of `torchrun`, or by Ray's workers; resumable."""

from .here import run_here
from .manifest import Entry, read_manifest
from .record import Line, Record, summary_of
from .work import Item, Work, WorkerLost, failed

__all__ = [
    "Entry",
    "Item",
    "Line",
    "Record",
    "Work",
    "WorkerLost",
    "failed",
    "read_manifest",
    "run_here",
    "summary_of",
]
