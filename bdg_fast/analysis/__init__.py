"""How a picture is degraded: kind, level and confidence, from its fingerprint.

:class:`Analyser` gives a :class:`Report` of a picture, :func:`plot_report` draws it.
"""

from .analyser import Analyser
from .figure import plot_report
from .report import KINDS, UNITS, UNKNOWN, Report

__all__ = ["KINDS", "UNITS", "UNKNOWN", "Analyser", "Report", "plot_report"]
