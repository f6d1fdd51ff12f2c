"""A search as one HTML page: the sentence, the measured plans, the front, the plan per layer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from resq_plugin.config import ResQConfig
from resq_plugin.planning.pictures import draw_front, draw_layers
from resq_plugin.planning.plan import LayerPlan, Point
from resq_plugin.report import ReportTable, Row, describe_machine, figure_of, write_report

__all__ = ["rows_of", "write_page"]

FLOAT_OVER_W8A8 = 32 * 32 / (8 * 8)


def rows_of(front: Sequence[Point], metric: str, float_accuracy: float) -> list[Row]:
    """The float model and the plans that were measured, the finest first, as rows of a report."""
    known = [point for point in front if point.verified is not None]
    rows: list[Row] = []
    for point in sorted(known, key=lambda p: p.verified.gbops, reverse=True):  # type: ignore[union-attr]
        config, found = point.config, point.verified
        if found is None:
            continue
        if not rows:
            gbops = found.gbops / found.relative * FLOAT_OVER_W8A8
            rows.append(_row("float", "float", 1, metric, (float_accuracy, 100.0, gbops, FLOAT_OVER_W8A8)))
        values = found.accuracy, found.agreement, found.gbops, found.relative
        more = {"weights": config.weights, "reference": config.reference if config.residual else None}
        interval = config.interval if config.residual else 1
        rows.append({**_row(_scheme(config), config.notation, interval, metric, values), **more})
    return rows


def _row(scheme: str, precision: str, interval: int, metric: str, values: tuple[float, float, float, float]) -> Row:
    names = "accuracy", "agreement", "gbops_per_frame", "relative_bops"
    head = {"scheme": scheme, "precision": precision, "interval": interval, "metric": metric}
    return {**head, **dict(zip(names, values, strict=True))}


def _scheme(config: ResQConfig) -> str:
    if config.residual is None:
        return "frame"
    return "dynamic" if config.residual.is_dynamic or any("{" in text for _, text in config.overrides) else "resq"


def write_page(
    path: Path,
    front: Sequence[Point],
    chosen: Point | None,
    layers: Sequence[LayerPlan],
    *,
    title: str,
    summary: str,
    asked: str,
    metric: str,
    float_accuracy: float,
    notes: Sequence[str],
) -> Path:
    """Write the page.

    Args:
        path: the file.
        front: of the search.
        chosen: the plan that was asked for, if any does what was asked.
        layers: of that plan.
        title: headline.
        summary: what was found, in a sentence.
        asked: what was asked.
        metric: name of the accuracy.
        float_accuracy: of the float model.
        notes: what a reader must know.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        ReportError: a file cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        figures = [
            figure_of(
                lambda target, look: draw_front(front, chosen, metric, float_accuracy, target, look=look),
                Path(scratch) / "front.svg",
                "The front",
                "Each point is a plan with a precision per layer, of which the table above names the most frequent. "
                "Up and to the left is better. Measured plans were calibrated and run on frames that no range and no "
                "sensitivity comes from.",
            )
        ]
        tables = []
        if layers:
            figures.append(
                figure_of(
                    lambda target, look: draw_layers(layers, target, look=look),
                    Path(scratch) / "plan.svg",
                    "The plan, layer by layer",
                    "Bits in the order of the calls; of a pool, each pixel gets what it needs while running.",
                )
            )
            tables.append(_table(layers))
        details = {
            "Search": {"Asked": asked, **{f"Note {number}": note for number, note in enumerate(notes, 1)}},
            "Machine": describe_machine(),
        }
        rows = rows_of(front, metric, float_accuracy)
        return write_report(path, title, rows, figures, details, summary=summary, tables=tables)


def _table(layers: Sequence[LayerPlan]) -> ReportTable:
    lines = [
        (layer.name, str(layer.choice).replace("->", "→"), f"{layer.bops_share:.1%}", f"{layer.error_share:.1%}")
        for layer in layers
    ]
    return ReportTable(
        "The plan as a table",
        ("Layer", "Precision", "of BOPs", "of error"),
        lines,
        "plan.json has the reason of each layer, too: what its next finer and next coarser choice would change.",
        wide=(3,),
    )
