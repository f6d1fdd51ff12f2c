"""The cost of a model as a table for people."""

from __future__ import annotations

import math
from collections import Counter

from rich import box
from rich.table import Table

from resq_plugin.cost.result import Cost, LayerCost

__all__ = ["cost_table", "uncounted_summary"]


def cost_table(cost: Cost, depth: int | None = 1) -> Table:
    """Return a table with one row per module of that depth (None: per layer) and the totals.

    Print it with ``rich.print``; ``print(cost)`` shows that of depth 1.
    """
    prefix, unit = _unit(cost)
    rows = cost.by_module(depth) if depth else cost.by_layer()
    precisions = {layer.precision for layer in cost.layers}
    mixed = len(precisions) > 1
    what = "" if mixed else "".join(precisions) + ", "
    bound = ", an upper bound" if cost.is_upper_bound else ""
    over = f"T={cost.interval} frames" + (" without scene changes" if cost.is_without_scene_changes else "")
    if cost.frames is not None:
        over = f"{cost.frames.keyframes} keyframes and {cost.frames.residual} residual frames"
    over += ", keyframes spread" if cost.groups else ""
    table = Table(
        title=f"{what}averaged over {over}{bound}",
        caption=f"keyframe, residual, per frame: {prefix}BOPs = {prefix}MACs · b_w · b_a; state in MiB",
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
    )
    table.add_column("module" if depth else "layer", overflow="fold", min_width=16)
    if mixed:
        table.add_column("precision", overflow="fold")
    for heading in (f"{prefix}MACs", "keyframe", "residual", "per frame", "share", "state"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *([row.precision] if mixed else []), *_numbers(row, cost, unit))
    table.add_section()
    table.add_row("total", *([""] if mixed else []), *_numbers(cost, cost, unit), style="bold")
    return table


def uncounted_summary(cost: Cost) -> str:
    """Return what ran and was not counted in one line, e.g. ``aten.relu x41, aten.add x18``; or an empty string."""
    calls: Counter[str] = Counter()
    for ops in cost.uncounted:
        calls[ops.operator] += ops.calls
    return ", ".join(f"{operator} x{count}" for operator, count in calls.most_common())


def _unit(cost: Cost) -> tuple[str, float]:
    """Prefix and size of the unit in which the sums have digits to show."""
    units = (("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next(((prefix, unit) for prefix, unit in units if cost.macs >= unit / 10), ("", 1.0))


def _numbers(row: LayerCost | Cost, total: Cost, unit: float) -> tuple[str, ...]:
    values = (row.macs, row.bops_keyframe, row.bops_residual, row.bops_per_frame)
    share = row.bops_per_frame / (total.bops_per_frame or 1)
    return (
        *("–" if math.isnan(value) else f"{value / unit:.2f}" for value in values),
        f"{share:.1%}",
        f"{row.state_bytes / 2**20:.1f}",
    )
