"""What the rows say, in one plain sentence."""

from __future__ import annotations

from collections.abc import Sequence

from resq_plugin.report import NAMES, Row, row_label

__all__ = ["finding"]

_NAMES = {**NAMES, "frame": "frame quantization"}

TOLERANCE = {"agreement": 2.0}
"""Points below float that still count as good; 1 for every other metric."""


def finding(rows: Sequence[Row]) -> str:
    """Say what staying near float costs with each scheme, and what ResQ gains at equal bit operations.

    Args:
        rows: results, see `resq_plugin.report.rows`; the first float one is what others are measured against.

    Returns:
        One sentence, or an empty text when there is no row of float or of ResQ.
    """
    floats = [row for row in rows if row["scheme"] == "float"]
    if not floats or not any(row["scheme"] in ("resq", "dynamic") for row in rows):
        return ""
    best, metric = floats[0], floats[0]["metric"]
    tolerance = TOLERANCE.get(metric, 1.0)
    costs = [_cost_of_staying(rows, scheme, best["accuracy"] - tolerance) for scheme in ("frame", "resq", "dynamic")]
    listed = [cost for cost in costs if cost]
    points = f"{tolerance:g} point{'s' if tolerance != 1 else ''}"
    text = f"To stay within {points} of float ({best['accuracy']:.1f} % {metric}), of the bit operations of W8A8 "
    return text + ", ".join(listed) + _gain(rows) + "."


def _cost_of_staying(rows: Sequence[Row], scheme: str, least: float) -> str:
    rows = [row for row in rows if row["scheme"] == scheme]
    if not rows:
        return ""
    good = [row for row in rows if row["accuracy"] >= least]
    if not good:
        return f"{_NAMES[scheme]} finds no setting"
    cheapest = min(good, key=lambda row: float(row["relative_bops"]))
    settings = row_label(cheapest).removeprefix(NAMES[scheme]).strip()
    return f"{_NAMES[scheme]} takes {100 * cheapest['relative_bops']:.0f} % ({settings})"


def _gain(rows: Sequence[Row]) -> str:
    """Compare ResQ with frame quantization of the same precisions at the same T."""
    pairs = [
        (frame, resq)
        for frame in rows
        for resq in rows
        if (frame["scheme"], resq["scheme"]) == ("frame", "resq")
        and (frame["precision"], frame["interval"]) == (resq["precision"], resq["interval"])
    ]
    if not pairs:
        return ""
    # The paper reports T = 3 wherever it reports a single T.
    frame, resq = min(pairs, key=lambda pair: abs(pair[0]["interval"] - 3))
    settings = row_label(resq).removeprefix(NAMES["resq"]).strip()
    return (
        f"; with equal bit operations ({settings}) ResQ reaches {resq['accuracy']:.1f} % "
        f"and frame quantization {frame['accuracy']:.1f} %"
    )
