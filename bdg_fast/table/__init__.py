"""Fingerprints of a collection: a folder of parts, made in constant memory, and the search in it.

:func:`build` makes a table of any number of images, :class:`Table` reads it, :func:`nearest` and :func:`duplicates`
search it.
"""

from .build import Built, build
from .describe import Describer, Settings
from .search import BACKENDS, duplicates, near_pairs, nearest
from .table import Table

__all__ = ["BACKENDS", "Built", "Describer", "Settings", "Table", "build", "duplicates", "near_pairs", "nearest"]
