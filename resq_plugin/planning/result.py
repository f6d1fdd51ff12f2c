"""What a search found: the whole front, and the plan on it that was asked for."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from resq_plugin.errors import ConfigError
from resq_plugin.files import write_text
from resq_plugin.planning.page import write_page
from resq_plugin.planning.pictures import draw_front, draw_layers
from resq_plugin.planning.plan import Plan, Point

__all__ = ["Goal", "SearchResult"]


@dataclass(frozen=True)
class Goal:
    """What is asked of a plan.

    Attributes:
        max_drop: points of accuracy that may be lost on held-out frames; of the plans that lose no more, the one with
            the fewest bit operations is taken.
        max_gbops: bit operations per frame; without ``max_drop`` the most accurate plan within them is taken.
        max_state_mb: megabytes kept between frames.
    """

    max_drop: float | None = None
    max_gbops: float | None = None
    max_state_mb: float | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        if all(value is None for value in values.values()):
            msg = "say what is asked: max_drop=0.5 (points of accuracy), max_gbops=... or max_state_mb=..."
            raise ConfigError(msg)
        for key, value in values.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                msg = f"{key}={value!r} is not allowed; write a number of at least 0."
                raise ConfigError(msg)

    def __str__(self) -> str:
        return ", ".join(f"{key}={value:g}" for key, value in dataclasses.asdict(self).items() if value is not None)

    def is_met_by(self, point: Point) -> bool:
        """Whether a measured plan does what is asked."""
        found = point.verified
        return found is not None and (
            (self.max_drop is None or found.drop <= self.max_drop)
            and (self.max_gbops is None or found.gbops <= self.max_gbops)
            and (self.max_state_mb is None or found.state_megabytes <= self.max_state_mb)
        )

    def best(self, points: Sequence[Point]) -> Point | None:
        """Of the measured plans that do what is asked, the best; None if there is none."""
        fit = [point for point in points if self.is_met_by(point)]
        if self.max_drop is not None:
            return min(fit, key=lambda p: (p.verified.gbops, p.error), default=None)  # type: ignore[union-attr]
        return min(fit, key=lambda p: (_loss(p), p.gbops), default=None)


def _loss(point: Point) -> float:
    """What separates a measured plan from float."""
    found = point.verified
    return math.inf if found is None else found.drop if found.divergence is None else found.divergence


@dataclass(frozen=True)
class SearchResult:
    """What `search` found. Printed, it is the table of the front and a sentence.

    Attributes:
        front: plans from the fewest bit operations on; some are verified.
        goal: what was asked.
        metric: name of the accuracy.
        float_accuracy: of the float model on the held-out frames, in percent.
        planned: makes the plan of a point, with the reasons.
        notes: what a reader must know.
    """

    front: tuple[Point, ...]
    goal: Goal
    metric: str
    float_accuracy: float
    planned: Callable[[Point], Plan]
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """The plan that was asked for.

        Raises:
            ConfigError: no verified plan does what was asked; the message names the nearest.
        """
        point = self.goal.best(self.front)
        if point is not None:
            return self.planned(point)
        known = [point for point in self.front if point.verified is not None]
        best = min(known, key=lambda p: p.verified.drop)  # type: ignore[union-attr]
        found = best.verified
        msg = (
            f"no plan does what was asked ({self.goal}); the most accurate loses {found.drop:.2f} points at "  # type: ignore[union-attr]
            f"{found.gbops:.4g} GBOPs and {found.state_megabytes:.4g} MB. Ask for less, or allow more bits: "  # type: ignore[union-attr]
            "target=Target(weight_bits=..., activation_bits=...)."
        )
        raise ConfigError(msg)

    def at(self, point: Point) -> Plan:
        """The plan of any point of the front."""
        return self.planned(point)

    def table(self, width: int = 100) -> str:
        """The front as a table of text."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in (
            "T",
            "most layers",
            "reference",
            "predicted",
            "GBOPs",
            "of W8A8",
            self.metric,
            "drop",
            "MB state",
        ):
            table.add_column(name, overflow="fold")  # nothing is cut
        for point in self.front:
            config, found = point.config, point.verified
            cells = [str(config.interval), config.notation, config.reference if config.residual else ""]
            cells += [f"{point.error:.2e}"]
            if found is None:
                cells += [f"~{point.gbops:.4g}", f"~{point.relative:.1%}", "", "", f"{point.state_megabytes:.4g}"]
            else:
                cells += [f"{found.gbops:.4g}", f"{found.relative:.1%}", f"{found.accuracy:.2f}", f"{found.drop:+.2f}"]
                cells += [f"{found.state_megabytes:.4g}"]
            table.add_row(*cells)
        buffer = io.StringIO()
        Console(file=buffer, width=width, color_system=None, markup=False, emoji=False).print(table)
        return buffer.getvalue().rstrip("\n")

    @property
    def finding(self) -> str:
        """The plan in a sentence."""
        try:
            plan = self.plan
        except ConfigError as error:
            return str(error)
        found = plan.point.verified
        return (
            f"{found.relative:.1%} of the bit operations of W8A8 ({found.gbops:.4g} GBOPs per frame) at "  # type: ignore[union-attr]
            f"{found.drop:+.2f} points of {self.metric} lost on held-out frames, with T = {plan.config.interval} and "  # type: ignore[union-attr]
            f"{found.state_megabytes:.4g} MB between frames."  # type: ignore[union-attr]
        )

    def __str__(self) -> str:
        return "\n".join([self.table(), self.finding, *self.notes])

    def plot(self, folder: str | Path) -> tuple[Path, ...]:
        """Draw ``front.png`` and, where a plan does what was asked, ``plan.png``, its bits per layer.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ReportError: a file cannot be written.
        """
        folder, chosen = Path(folder), self.goal.best(self.front)
        drawn = draw_front(self.front, chosen, self.metric, self.float_accuracy, folder / "front.png")
        if chosen is None:
            return (drawn,)
        return drawn, draw_layers(self.planned(chosen).layers, folder / "plan.png")

    def report(self, folder: str | Path, *, title: str = "The fewest bits") -> Path:
        """Write ``report.html``: the sentence, the plans that were measured, the front, and the plan per layer.

        Raises:
            MissingExtraError: matplotlib or jinja2 is not installed.
            ReportError: the file cannot be written.
        """
        chosen = self.goal.best(self.front)
        return write_page(
            Path(folder) / "report.html",
            self.front,
            chosen,
            () if chosen is None else self.planned(chosen).layers,
            title=title,
            summary=self.finding,
            asked=str(self.goal),
            metric=self.metric,
            float_accuracy=self.float_accuracy,
            notes=self.notes,
        )

    def rows(self) -> list[dict[str, Any]]:
        """The front as plain values."""
        return [
            {
                **{key: getattr(point, key) for key in ("error", "gbops", "relative", "state_megabytes")},
                "interval": point.config.interval,
                "verified": None if point.verified is None else dataclasses.asdict(point.verified),
                "config": point.config.to_dict(),
            }
            for point in self.front
        ]

    def save(self, folder: str | Path) -> Path:
        """Write ``front.json``, and ``plan.json`` and ``plan.py`` of the plan that was asked for.

        Raises:
            ConfigError: no plan does what was asked (``front.json`` is written), or a file cannot be written.
        """
        folder = Path(folder)
        self.save_front(folder)
        self.plan.save(folder / "plan.py")
        return self.plan.save(folder / "plan.json")

    def save_front(self, folder: str | Path) -> Path:
        """Write ``front.json``."""
        path = Path(folder) / "front.json"
        text = json.dumps({"goal": str(self.goal), "finding": self.finding, "front": self.rows()}, indent=1) + "\n"
        write_text(path, text, ConfigError)
        return path
