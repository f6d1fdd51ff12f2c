"""What the rows say, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from resq_plugin.report.rows import Row, row_label
from resq_plugin.report.style import NAMES

__all__ = ["cheapest", "finding", "level_of"]

_NAMES = {**NAMES, "frame": "frame quantization"}
_SCHEMES = ("frame", "resq", "dynamic")

TOLERANCES = {"agreement": (2.0, 3.0, 5.0, 10.0)}
"""Points below float that count as good, of each metric: the first at which ResQ has a setting."""
ELSE = (1.0, 2.0, 3.0, 5.0, 10.0)


def level_of(rows: Sequence[Row]) -> float | None:
    """The accuracy in percent that the finding speaks of: the highest of a few below float that ResQ reaches.

    None where there is no row of float, or none of ResQ.
    """
    floats = [row for row in rows if row["scheme"] == "float"]
    streams = [row["accuracy"] for row in rows if row["scheme"] in ("resq", "dynamic")]
    if not floats or not streams:
        return None
    best, metric = float(floats[0]["accuracy"]), floats[0]["metric"]
    steps = TOLERANCES.get(metric, ELSE)
    return next((best - step for step in steps if max(streams) >= best - step), best - steps[0])


def cheapest(rows: Sequence[Row], scheme: str, level: float) -> Row | None:
    """The row of a scheme with the fewest bit operations among those of at least that accuracy."""
    good = [row for row in rows if row["scheme"] == scheme and row["accuracy"] >= level]
    return min(good, key=lambda row: float(row["relative_bops"])) if good else None


def finding(rows: Sequence[Row]) -> str:
    """Say what an accuracy near float costs with each scheme, and which is the cheapest.

    Args:
        rows: results, see `resq_plugin.report.rows`; the first float one is what others are measured against.

    Returns:
        One or two sentences, or an empty text when there is no row of float or of ResQ.
    """
    level = level_of(rows)
    if level is None:
        return ""
    metric = next(row["metric"] for row in rows if row["scheme"] == "float")
    what = "agreement with the float model" if metric == "agreement" else str(metric)
    present = [scheme for scheme in _SCHEMES if any(row["scheme"] == scheme for row in rows)]
    found = {scheme: cheapest(rows, scheme, level) for scheme in present}
    reached = {scheme: row for scheme, row in found.items() if row is not None}
    parts = [_cost(scheme, row, first=scheme == next(iter(reached))) for scheme, row in reached.items()]
    text = f"At {level:.4g} % {what}: {', '.join(parts)}" if parts else f"No setting reaches {level:.4g} % {what}"
    missing = [_NAMES[scheme] for scheme in present if scheme not in reached]
    if parts and missing:
        text += f"; no setting of {' or '.join(missing)} reaches it"
    return text + "." + _verdict(reached) + _gain(rows)


def _cost(scheme: str, row: Row, *, first: bool) -> str:
    settings = row_label(row).removeprefix(NAMES[scheme]).strip()
    share = f"{100 * row['relative_bops']:.0f} %"
    needs = f"needs {share} of the bit operations of 8 bits" if first else share
    return f"{_NAMES[scheme]} {needs} ({settings})"


def _verdict(reached: dict[str, Row]) -> str:
    """Say so where plain quantization is the cheapest."""
    frame = reached.get("frame")
    others = [row for scheme, row in reached.items() if scheme != "frame"]
    if frame is None or any(row["relative_bops"] < frame["relative_bops"] for row in others):
        return ""
    return " Plain frame quantization is the cheapest here."


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
        f" With equal bit operations ({settings}) ResQ reaches {resq['accuracy']:.1f} % "
        f"and frame quantization {frame['accuracy']:.1f} %."
    )
