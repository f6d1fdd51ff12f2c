"""What a comparison found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resq_plugin.comparison.pages import draw_report
from resq_plugin.comparison.settings import Setting, checkpoint_path
from resq_plugin.comparison.showcase import Showcase
from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError
from resq_plugin.report import (
    Row,
    accuracy_over_bops,
    cheapest,
    describe_machine,
    finding,
    level_of,
    rich_table,
    row_label,
    write_film,
    write_report,
)
from resq_plugin.tables import table_text

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Rows of accuracy and bit operations, and what can be made of them. Printed, it is a table and a sentence.

    Attributes:
        rows: one per setting, see `resq_plugin.report.rows`; the first is float.
        configs: by name of a row (``row["setting"]``), what the model was converted with; None for float.
        notes: what a reader must know to trust the rows.
        details: what was measured on, for people.
        folder: where rows and checkpoints are, if anywhere.
        showcase: schemes side by side on the first frames; None without a folder, or where nobody knows how to draw.
    """

    rows: Sequence[Row]
    configs: Mapping[str, ResQConfig | None]
    notes: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    showcase: Showcase | None = None

    @property
    def finding(self) -> str:
        """What an accuracy near float costs with each scheme, in plain words."""
        return finding(self.rows)

    def best(self, max_drop: float | None = None) -> Row:
        """The row with the fewest bit operations that stays near float.

        Args:
            max_drop: points of accuracy below float; by default those that `finding` speaks of.

        Raises:
            ConfigError: no row stays that near.
        """
        best = float(self.rows[0]["accuracy"])
        level = level_of(self.rows) if max_drop is None else best - max_drop
        level = best - 1 if level is None else level
        found = [row for scheme in ("frame", "resq", "dynamic") if (row := cheapest(self.rows, scheme, level))]
        if not found:
            nearest = max((row for row in self.rows[1:]), key=lambda row: float(row["accuracy"]))
            msg = (
                f"no setting reaches {level:.1f} % {self.rows[0]['metric']}; the nearest is {row_label(nearest)} with "
                f"{nearest['accuracy']:.1f} %. Allow a larger max_drop, or add settings."
            )
            raise ConfigError(msg)
        return min(found, key=lambda row: float(row["relative_bops"]))

    def python(self, row: Row) -> str:
        """The lines that make the model of a row."""
        config = self.configs[row["setting"]]
        if config is None:
            return "# the float model, as it is"
        lines = [
            "from resq_plugin import ResQConfig, calibrate, convert, stream",
            "",
            f"config = ResQConfig.parse({_arguments(config)})",
            "model = convert(model.eval(), config)",
            "calibrate(model, clips)  # clips of consecutive frames: (T, C, H, W) tensors",
            "with torch.inference_mode(), stream(model) as video:",
            "    outputs = [video(frame) for frame in frames]",
        ]
        return "\n".join(lines)

    def fragment(self, row: Row) -> str:
        """The lines that bring a row into a config of MMSegmentation or MMPose."""
        config = self.configs[row["setting"]]
        if config is None:
            return "resq = None"
        hook = "default_hooks = dict(resq=dict(type='resq_mmengine.ResQHook', priority='VERY_HIGH'))"
        arguments = f"precision={_arguments(config)}"
        return f"resq = dict({arguments})\n{hook}"

    def checkpoint(self, row: Row) -> Path:
        """The file of the calibrated model of a row, which `resq_plugin.load` and ``resq export`` take.

        Raises:
            ConfigError: the comparison was made without a folder, or the row is float.
        """
        config = self.configs[row["setting"]]
        if self.folder is None or config is None:
            msg = "there is no checkpoint of this row; give compare a folder: compare(..., folder='out')."
            raise ConfigError(msg)
        return checkpoint_path(self.folder, Setting(config))

    def table(self, width: int = 80) -> str:
        """The rows as a table of text."""
        return table_text(rich_table(self.rows), width)

    def __str__(self) -> str:
        return "\n".join([self.table(), *filter(None, [self.finding, *self.notes])])

    def plot(self, path: str | Path) -> Path:
        """Draw accuracy over bit operations.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ReportError: the file cannot be written.
        """
        return accuracy_over_bops(self.rows, Path(path))

    def film(self, path: str | Path, *, rate: float = 10.0) -> Path:
        """Write the schemes side by side as a looping film (H.264) of so many frames per second.

        Raises:
            ConfigError: there are no pictures to show.
            MissingExtraError: PyAV or Pillow is not installed.
            ReportError: the file cannot be written.
        """
        if self.showcase is None:
            msg = (
                "there are no pictures of this comparison; give compare a folder, and where predictions are neither "
                "label maps nor joints also draw=: compare(..., folder='out', draw=lambda picture, prediction: ...)."
            )
            raise ConfigError(msg)
        return write_film(Path(path), self.showcase.columns, rate=rate)

    def report(self, path: str | Path, *, title: str = "ResQ on your video") -> Path:
        """Write one HTML page: sentence, table, film, figures, worst layers, cost by module, settings and machine.

        Figures and film lie beside it in a folder ``figures``.

        Raises:
            MissingExtraError: a package of the extra ``report`` is not installed.
            ReportError: the file cannot be written.
        """
        path = Path(path)
        figures, tables = draw_report(self.rows, self.showcase, path.parent / "figures")
        details = {"Run": {**self.details, **self._limits()}, "Machine": describe_machine()}
        summary = " ".join(filter(None, [self.finding, *self.notes]))
        return write_report(path, title, self.rows, figures, details, summary=summary, tables=tables)

    def _limits(self) -> dict[str, str]:
        """What the paper names as limits, of the rows with residual frames: peak and state."""
        streams = [row for row in self.rows if row["interval"] > 1 and "gbops_peak" in row]
        if not streams:
            return {}
        peak, state = (max(float(row[key]) for row in streams) for key in ("gbops_peak", "state_megabytes"))
        return {"Peak": f"{peak:.4g} GBOPs, the dearest frame", "Memory of a stream": f"{state:.4g} MB"}


def _arguments(config: ResQConfig) -> str:
    """Notation and every setting that is not the default, as Python writes them."""
    values, default = config.to_dict(), ResQConfig.parse(config.notation).to_dict()
    shown = set() if config.residual is None else {"interval"}
    changed = {key: value for key, value in values.items() if value != default[key] or key in shown}
    parts = [repr(config.notation)]
    parts += [f"{key}={_difference(value, default[key])!r}" for key, value in changed.items()]
    return ", ".join(parts)


def _difference(value: Any, default: Any) -> Any:
    """Of a section, the settings that differ."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {name: item for name, item in value.items() if item != default.get(name)}
