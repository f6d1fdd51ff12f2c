"""Figures, tables and one HTML report of results; figures and HTML need ``pip install 'resq-plugin[report]'``."""

from __future__ import annotations

from resq_plugin.errors import MissingExtraError, ReportError
from resq_plugin.report.bar import progress_bar
from resq_plugin.report.drawing import Draw, draw_bits, draw_joints, draw_labels, drawer_of, pictures_of
from resq_plugin.report.error_maps import error_maps, relative_error
from resq_plugin.report.figures import Series, accuracy_by_distance, accuracy_over_bops
from resq_plugin.report.film import write_film, write_strip
from resq_plugin.report.finding import cheapest, finding, level_of
from resq_plugin.report.html import ReportFigure, ReportTable, figure_of, is_report, write_report
from resq_plugin.report.images import policy_maps, predictions
from resq_plugin.report.layers import layer_chart, worst_layers
from resq_plugin.report.machine import describe_machine
from resq_plugin.report.rows import Row, rich_table, row_label
from resq_plugin.report.style import NAMES, Look, colours_of, figure

__all__ = [
    "NAMES",
    "Draw",
    "Look",
    "MissingExtraError",
    "ReportError",
    "ReportFigure",
    "ReportTable",
    "Row",
    "Series",
    "accuracy_by_distance",
    "accuracy_over_bops",
    "cheapest",
    "colours_of",
    "describe_machine",
    "draw_bits",
    "draw_joints",
    "draw_labels",
    "drawer_of",
    "error_maps",
    "figure",
    "figure_of",
    "finding",
    "is_report",
    "layer_chart",
    "level_of",
    "pictures_of",
    "policy_maps",
    "predictions",
    "progress_bar",
    "relative_error",
    "rich_table",
    "row_label",
    "worst_layers",
    "write_film",
    "write_report",
    "write_strip",
]
