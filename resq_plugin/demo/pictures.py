"""The figures of the demo's report."""

from __future__ import annotations

from pathlib import Path

from resq_plugin.demo.result import DemoResult
from resq_plugin.demo.shapes import CLASSES, PALETTE
from resq_plugin.demo.video import to_rgb
from resq_plugin.report import (
    ReportFigure,
    Series,
    accuracy_by_distance,
    accuracy_over_bops,
    policy_maps,
    predictions,
    row_label,
)

__all__ = ["FIGURES", "draw_figures"]

FIGURES = ("accuracy_over_bops.png", "agreement_by_distance.png", "policy_maps.png", "predictions.png")

_SHOWN_FRAMES = 3


def draw_figures(result: DemoResult, out: Path, *, labelled: bool) -> list[ReportFigure]:
    """Draw every figure that the result has data for.

    Args:
        result: of `run_demo`.
        out: folder of the PNG files.
        labelled: whether the true labels are known, rather than those of the float model.
    """
    figures = [
        ReportFigure(
            accuracy_over_bops(result.rows, out / "accuracy_over_bops.png"),
            "Accuracy over bit operations",
            "Up and to the left is better; T is the interval, τ the threshold. Frame quantization with an arrow "
            "runs every T-th frame at the first precision and the others at the second, at the cost of ResQ.",
        )
    ]
    series = _series(result)
    if series:
        title = "Agreement with float, by distance from the keyframe"
        path = accuracy_by_distance(series, out / "agreement_by_distance.png", metric="agreement", title=title)
        caption = (
            "How far a keyframe carries: share of the pixels labelled as by the float model. Unlike accuracy it does "
            "not go up and down with what is to be seen at each position."
        )
        figures.append(ReportFigure(path, title, caption))
    showcase, images = result.showcase, to_rgb(result.showcase.frames)
    shown = _spread(1, len(images) - 1, _SHOWN_FRAMES)
    if showcase.choices:
        chosen = _spread(1, len(showcase.choices), 4)
        path = policy_maps(
            [images[0], *(images[index] for index in chosen)],
            [showcase.choices[index - 1] for index in chosen],
            showcase.pool,
            out / "policy_maps.png",
            title=f"Bits that the policy gives each pixel of layer {showcase.layer}",
            distances=chosen,
        )
        caption = (
            "Where bits are spent: the policy is to skip what stands still, and to spend more on what has changed."
        )
        figures.append(ReportFigure(path, "Decisions of the policy", caption))
    wanted = [name for name in showcase.predictions if name.startswith(("ResQ", "Dynamic")) or name == "Frame\nW4A4"]
    columns = (["Float"] if labelled else []) + wanted
    path = predictions(
        [images[index] for index in shown],
        [showcase.labels[index] for index in shown],
        {name.replace("->", "→"): [showcase.predictions[name][index] for index in shown] for name in columns},
        PALETTE,
        out / "predictions.png",
        title="Residual frames of one interval",
        row_names=[f"Δt = {index}" for index in shown],
        classes=CLASSES,
        reference="ground truth" if labelled else "float model",
        verdict="right" if labelled else "equal",
    )
    target = "the truth" if labelled else "the float model"
    caption = f"Pixels labelled otherwise than by {target} stand out in the colour of the wrong class."
    if not labelled:
        caption += " The net knows only the shapes of the embedded scenes: look at what changes, not at what it sees."
    figures.append(ReportFigure(path, "Predictions", caption))
    return figures


def _series(result: DemoResult) -> list[Series]:
    """One curve per row of the longest T that there is."""
    longest = max(row["interval"] for row in result.rows)
    rows = [row for row in result.rows if row["interval"] == longest > 1]
    if not rows:
        return []
    return [Series(row_label(row), row["scheme"], row["agreement_by_distance"]) for row in rows]


def _spread(first: int, last: int, count: int) -> list[int]:
    """Up to ``count`` whole numbers from first to last, both included, evenly apart.

    >>> _spread(1, 5, 3), _spread(1, 2, 4)
    ([1, 3, 5], [1, 2])
    """
    if last - first + 1 <= count:
        return list(range(first, last + 1))
    return [first + round(index * (last - first) / (count - 1)) for index in range(count)]
