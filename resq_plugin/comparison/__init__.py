"""Many settings on the same videos: one sweep, one kind of row, one result that prints, draws and reports itself."""

from __future__ import annotations

from resq_plugin.comparison.result import Comparison
from resq_plugin.comparison.rows import row_of
from resq_plugin.comparison.settings import DEFAULT_SETTINGS, Setting, expand
from resq_plugin.comparison.sweep import compare, default_predict, first_output

__all__ = [
    "DEFAULT_SETTINGS",
    "Comparison",
    "Setting",
    "compare",
    "default_predict",
    "expand",
    "first_output",
    "row_of",
]
